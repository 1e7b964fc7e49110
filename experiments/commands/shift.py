"""Measures rules for the norms' statistics on corrupted test data: tables, a plot, JSON."""

import dataclasses
import importlib.metadata
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data, tasks
from experiments.commands.console import Bar, Display, make_folder
from experiments.commands.training_display import shown_reading
from experiments.configs.data import CityscapesData
from experiments.data import devices
from experiments.data.cityscapes import in_file_order
from experiments.data.examples import Dataset, Examples
from experiments.errors import ConfigError
from experiments.evaluation.calibration import Calibrating
from experiments.evaluation.plan import Watcher
from experiments.evaluation.shift import evidence
from experiments.evaluation.shift.network import Network, measure_all, steps
from experiments.evaluation.shift.plan import Plan, all_fitting, by_class
from experiments.evaluation.shift.store import Store, identity
from experiments.report.figures import file_name
from experiments.report.plots import against_batch_size
from experiments.report.shift import tables
from experiments.report.shift.document import Facts, Part, document, rows
from experiments.report.shift.scores import average, scores_of
from experiments.training.folder import (
    RunSettings,
    data_dir_of,
    git_commit,
    machine,
    read_settings,
)
from experiments.training.weights import load_weights
from steinnorm.attacks.files import write_bytes, write_json, write_text


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
      out: folder for the results.
      data_dir: the data set; the folder that each training read by default.
      data_name: name of the data set in the report; the configuration's by default.
      test_examples: at most so many of the first test examples.
      seed: of corruptions and bootstrap.
      smoke: few examples, corruptions and batch sizes.
      weights: ``best`` (by validation) or ``last``.
      cache_dir: decoded data.
    """

    out: Path
    data_dir: Path | None = None
    data_name: str = ""
    test_examples: int = 1024
    seed: int = 0
    smoke: bool = False
    weights: str = "best"
    cache_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A network with what only the report needs."""

    network: Network
    settings: RunSettings
    plan: Plan
    about: str


def run(
    workdirs: Sequence[Path], request: Request, *, display: Display | None = None
) -> list[dict[str, Any]]:
    """Measures, prints and writes ``shift.md``, ``shift.json`` and a plot per data set.

    Per-example results are kept in ``out/measured/`` as conditions are done; a command that was
    stopped goes on from them.

    Args:
      workdirs: of trainings.
      request: what is measured.
      display: where to print and to show bars; standard output by default.

    Returns:
      The rows of ``shift.json``.

    Raises:
      ConfigError: a folder without a training, a norm without statistics, data that cannot be used.
      CheckpointError: the weights cannot be read.
    """
    settings = _checked(workdirs, request)
    make_folder(request.out)
    display = display or Display()
    with display:
        groups: dict[str, list[_Loaded]] = {}
        for workdir, label in _labels(workdirs).items():
            loaded = _load(workdir, label, settings[workdir], request, display)
            # The same data with other settings is other data.
            data_of = json.dumps(dataclasses.asdict(loaded.settings.config.data))
            groups.setdefault(data_of, []).append(loaded)
        total = sum(steps([x.network for x in found], found[0].plan) for found in groups.values())
        chosen = []
        with display.bar("compiling", total) as bar:
            for found in groups.values():
                networks = [x.network for x in found]
                chosen.append(measure_all(networks, found[0].plan, _Shown(bar)))
        return _report(workdirs, request, list(groups.values()), chosen, display)


def _checked(workdirs: Sequence[Path], request: Request) -> Mapping[Path, RunSettings]:
    """Returns the settings of all trainings, once everything that is quickly checked is right."""
    if not workdirs:
        raise ConfigError("expected at least one work folder of a training; got none")
    if request.seed < 0:
        raise ConfigError(f"seed must be at least 0; got {request.seed}")
    if request.test_examples < 2:
        raise ConfigError(f"test_examples must be at least 2; got {request.test_examples}")
    if len({w.resolve() for w in workdirs}) < len(workdirs):
        raise ConfigError("a work folder was named twice; name each once")
    settings = {workdir: read_settings(workdir) for workdir in workdirs}
    for workdir, found in settings.items():
        if found.norm == "group":
            raise ConfigError(
                f"{workdir} was trained with norm group, which has no batch statistics to choose; "
                "expected another norm"
            )
    names = sorted({found.config.name for found in settings.values()})
    if request.data_name and len(names) > 1:
        raise ConfigError(
            f"--data-name names one data set, but the folders are of {', '.join(names)}; "
            "measure each data set with a command of its own"
        )
    if (request.out / "config.json").exists():
        raise ConfigError(f"{request.out} is a work folder; choose another --out")
    return settings


def _labels(workdirs: Sequence[Path]) -> dict[Path, str]:
    """Returns the shortest ends of the paths that tell the folders apart."""
    whole = {w: w.resolve().parts for w in workdirs}
    for length in range(1, max(len(parts) for parts in whole.values()) + 1):
        labels = {w: "/".join(parts[-length:]) for w, parts in whole.items()}
        # Folders of results are named after them.
        if len({file_name(label) for label in labels.values()}) == len(labels):
            break
    return labels


def _load(
    workdir: Path, label: str, settings: RunSettings, request: Request, display: Display
) -> _Loaded:
    config = settings.config
    place = request.data_dir or data_dir_of(workdir)
    with shown_reading(display) as on_progress:
        dataset = data.load(config.data, place, request.cache_dir, on_progress)
    task = tasks.create(config.task, dataset.classes)
    model, progress = load_weights(workdir, settings, dataset, task, request.weights)
    plan = _plan(dataset, request, pixel_labels=config.task == "segmentation")
    test = dataset.test.take(np.arange(plan.test_examples))
    calibrating = Calibrating(model, dataset.train, config.evaluation)
    most = config.evaluation.calibration_examples
    if isinstance(config.data, CityscapesData):
        places = in_file_order(config.data, len(dataset.test))
        order, sizes = places[places < len(test)], [s for s in plan.batch_sizes if s > 1]
    else:
        order, sizes = by_class(test.targets, plan.batch_sizes)
    precision = config.train.matmul_precision
    with devices.products(precision):
        about = identity(model, (dataset.train, test), most, order, plan)
    store = Store(request.out / "measured" / file_name(label), about)
    display.say(
        f"{label}: {config.name} ({config.preset}), norm {settings.norm}, seed {settings.seed}, "
        f"{request.weights} weights, of step {progress.step}; {len(test)} test examples"
    )
    words = (
        f"{config.name} ({config.preset}), norm {settings.norm}, training seed {settings.seed}, "
        f"{request.weights} weights, of step {progress.step}; {len(dataset.train)} training "
        f"examples, {min(most, len(dataset.train))} of them for calibration"
    )
    network = Network(label, calibrating, task, test, order, sizes, store, precision)
    return _Loaded(network, settings, plan, words)


def _plan(dataset: Dataset, request: Request, *, pixel_labels: bool) -> Plan:
    names = all_fitting(dataset.test.inputs.shape[1:], pixel_labels=pixel_labels)
    plan = Plan(names, test_examples=request.test_examples, seed=request.seed)
    if request.smoke:
        plan = dataclasses.replace(
            plan,
            corruptions=(names[0], "contrast", "darkness"),
            severities=(2,),
            batch_sizes=(1, 4),
            strengths=(4, 16),
            test_examples=min(32, request.test_examples),
        )
    return plan.for_examples(len(dataset.test))


class _Shown(Watcher):
    """Moves the bar, which says what is being measured."""

    def __init__(self, bar: Bar):
        self._bar = bar

    def begins(self, what: str) -> None:
        """A cell begins."""
        self._bar.note(what)

    def advanced(self) -> None:
        """A cell is done."""
        self._bar.advance()


def _report(
    workdirs: Sequence[Path],
    request: Request,
    groups: Sequence[Sequence[_Loaded]],
    chosen: Sequence[Sequence[int]],
    display: Display,
) -> list[dict[str, Any]]:
    sections, written = [], []
    names = [found[0].settings.config.name for found in groups]
    for i, (found, numbers) in enumerate(zip(groups, chosen, strict=True)):
        facts = _facts(found[0], request)
        parts = _parts(found, numbers)
        # A configuration may occur twice, with other settings of its data.
        suffix = "" if len(groups) == 1 else f"-{file_name(names[i])}"
        suffix += f"-{names[: i + 1].count(names[i])}" if names.count(names[i]) > 1 else ""
        plot = f"shift{suffix}.png"
        drawn = [(part.label, part.mixed, part.ordered) for part in parts if part.drawn]
        write_bytes(request.out / plot, against_batch_size.draw(drawn, facts.score))
        sections.append((facts, parts, plot))
        written += [row for part in parts for row in rows(facts, part)]
        for part in parts:
            display.say(f"{part.label}: mean {facts.score} over all conditions, in %")
            display.say(tables.mean_scores(part.mixed))
    write_json(request.out / "shift.json", written)
    text = document(_command(workdirs, request), _machine(), sections)
    write_text(request.out / "shift.md", text)
    display.say(f"written: {request.out / 'shift.md'}")
    return written


def _facts(loaded: _Loaded, request: Request) -> Facts:
    test: Examples = loaded.network.test
    return Facts(
        request.data_name or loaded.settings.config.dataset,
        evidence.score_name(loaded.network.task),
        loaded.plan,
        test.inputs.shape[1:],
    )


def _parts(found: Sequence[_Loaded], chosen: Sequence[int]) -> list[Part]:
    """Returns a part for each network, and for each group of equal settings its mean before it."""
    kinds: dict[str, list[Part]] = {}
    for loaded, n in zip(found, chosen, strict=True):
        mixed, ordered = scores_of(loaded.network, loaded.plan, n)
        about = f"{loaded.about}. Best n: {n}"
        edge = n in (loaded.plan.strengths[0], loaded.plan.strengths[-1])
        about += ", at the end of the list: one beyond it may be better." if edge else "."
        key = json.dumps([dataclasses.asdict(loaded.settings.config), loaded.settings.norm])
        part = Part(loaded.network.label, about, mixed, ordered)
        kinds.setdefault(key, []).append(part)
    return [part for same in kinds.values() for part in _with_mean(same)]


def _with_mean(same: Sequence[Part]) -> list[Part]:
    """Returns the parts of trainings that differ in their seed, and before them their mean."""
    if len(same) == 1:
        return list(same)
    ordered = [part.ordered for part in same if part.ordered is not None]
    mean = Part(
        f"Mean of {', '.join(part.label for part in same)}",
        "Trainings that differ in their seed, each with its own n.",
        average(part.mixed for part in same),
        average(ordered) if ordered else None,
        len(same),
    )
    return [mean, *(dataclasses.replace(part, drawn=False) for part in same)]


def _machine() -> str:
    commit = git_commit()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
    return f"{machine()}; {versions}" + (f"; commit {commit[:12]}." if commit else ".")


def _command(workdirs: Sequence[Path], request: Request) -> str:
    words = ["python -m experiments shift", *(shlex.quote(str(w)) for w in workdirs)]
    words.append(f"--out {shlex.quote(str(request.out))}")
    if request.data_name:
        words.append(f"--data-name {shlex.quote(request.data_name)}")
    words += [f"--test-examples {request.test_examples}", f"--seed {request.seed}"]
    words += ["--smoke"] if request.smoke else []
    words += ["--weights last"] if request.weights == "last" else []
    return " ".join(words)
