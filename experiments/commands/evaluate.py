"""Measures a trained network on the test part of its data set."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import get_args

import jax
from flax import nnx
from rich.console import Console

from experiments import data, devices
from experiments.checkpoints import Checkpoints, Progress
from experiments.config import AttackConfig, ConfigError, Statistics
from experiments.data.examples import Dataset
from experiments.evaluate import Labels, evaluate
from experiments.files import write_json
from experiments.models.build import build
from experiments.models.norms import sources
from experiments.record import Row
from experiments.runfolder import RunSettings, data_dir_of, read_settings
from experiments.step import TrainState, optimiser, split
from experiments.tasks import Task, by_name
from experiments.watch import Reading


def run(
    workdir: Path,
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    statistics: str = "",
    attacks: str = "",
    epsilons: str = "",
    weights: str = "best",
    console: Console | None = None,
) -> list[Row]:
    """Measures, prints and writes ``results.json`` into the work folder.

    Args:
      workdir: of a training.
      data_dir: the data set; the folder that the training read by default.
      cache_dir: decoded data.
      statistics: names separated by commas; empty for the configuration's.
      attacks: names of the configuration's attacks, separated by commas, or ``all``; empty for
        none.
      epsilons: strengths separated by commas, as ``2/255,8/255``; empty for the configuration's.
      weights: ``best`` (by validation) or ``last``.
      console: where to print; standard output by default.

    Raises:
      ConfigError: a name that is not known, a folder without a training, data that cannot be used.
      CheckpointError: the weights cannot be read.
    """
    console = console or Console(soft_wrap=True)
    settings = read_settings(workdir)
    config = settings.config
    chosen = _attacks(config.evaluation.attacks, attacks, epsilons)
    wanted = _statistics(statistics) or config.evaluation.statistics
    with Reading(console) as reading:
        dataset = data.load(
            config.data, data_dir or data_dir_of(workdir), cache_dir, reading.progress
        )
    task = by_name(config.task, dataset.classes)
    model, progress = load_weights(workdir, settings, dataset, task, weights)
    console.print(
        f"{config.name} ({config.preset}), norm {settings.norm}, seed {settings.seed}: {weights} "
        f"weights, of step {progress.step}; {len(dataset.test)} test examples in batches of "
        f"{config.evaluation.batch_size}",
        highlight=False,
    )
    rows: list[Row] = []
    for source in sources(settings.norm, wanted):
        rows += evaluate(
            model,
            task,
            dataset.test,
            statistics=source,
            batch_size=config.evaluation.batch_size,
            labels=Labels(config.name, settings.norm, settings.seed),
            attack_configs=chosen,
            on_row=lambda row: console.print(_line(row), highlight=False, markup=False),
        )
    write_json(workdir / "results.json", [dataclasses.asdict(row) for row in rows])
    console.print(f"written: {workdir / 'results.json'}", highlight=False)
    return rows


def load_weights(
    workdir: Path, settings: RunSettings, dataset: Dataset, task: Task, weights: str
) -> tuple[nnx.Module, Progress]:
    """The trained network of a work folder, in training mode, and how far it had got.

    Args:
      workdir: of a training.
      settings: of that training.
      dataset: the training part gives the shapes.
      task: gives the number of outputs.
      weights: ``best`` or ``last``.

    Raises:
      ConfigError: there is no checkpoint, or ``weights`` is neither.
      CheckpointError: it cannot be read.
    """
    if weights not in ("best", "last"):
        raise ConfigError(f"weights must be best or last; got {weights!r}")
    config = settings.config
    model = build(
        config.model,
        settings.norm,
        config.train,
        examples=dataset.train,
        outputs=task.outputs,
        seed=settings.seed,
    )
    graphdef, params, rest = split(model)
    state = TrainState(params, rest, optimiser(config.train, 1).init(params))
    folder = workdir / "checkpoints"
    checkpoints = Checkpoints(folder) if folder.is_dir() else None
    if checkpoints is None or not checkpoints.steps:
        raise ConfigError(f"{workdir} holds no checkpoint yet; run its training first")
    step = checkpoints.best_step() if weights == "best" else checkpoints.steps[-1]
    assert step is not None  # there are some
    found, progress = checkpoints.load(devices.replicate(state, devices.mesh()), step)
    checkpoints.close()
    local = jax.tree.map(lambda x: x.addressable_data(0), found)
    return nnx.merge(graphdef, local.params, local.rest), progress


def _attacks(known: tuple[AttackConfig, ...], names: str, epsilons: str) -> list[AttackConfig]:
    by_attack = {attack.name: attack for attack in known}
    wanted = list(by_attack) if names == "all" else [n.strip() for n in names.split(",") if n]
    for name in wanted:
        if name not in by_attack:
            raise ConfigError(
                f"unknown attack {name!r}; this configuration has: {', '.join(by_attack) or 'none'}"
            )
    radii = tuple(_epsilon(text) for text in epsilons.split(",") if text)
    return [
        dataclasses.replace(by_attack[name], epsilons=radii or by_attack[name].epsilons)
        for name in wanted
    ]


def _epsilon(text: str) -> float:
    try:
        value = float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"a strength is a number such as 0.03 or 8/255; got {text!r}") from error
    if value < 0:
        raise ConfigError(f"a strength must not be negative; got {text!r}")
    return value


def _statistics(text: str) -> tuple[Statistics, ...]:
    known = [name for name in get_args(Statistics) if name != "none"]
    wanted = [name.strip() for name in text.split(",") if name]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"unknown statistics {name!r}; expected some of {', '.join(known)}")
    return tuple(wanted)  # type: ignore[arg-type]


def _line(row: Row) -> str:
    attack = row.attack if row.attack == "clean" else f"{row.attack} {row.epsilon:.4g}"
    return (
        f"{row.statistics:8} {attack:22} {row.metric:15} {row.value:.4f} "
        f"[{row.ci_low:.4f}, {row.ci_high:.4f}]"
    )
