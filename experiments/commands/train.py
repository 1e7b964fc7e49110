"""Trains one network into a work folder, or goes on with the training that is there."""

import dataclasses
import importlib.util
import shlex
import sys
import time
from pathlib import Path

import jax
from rich.console import Console

from experiments import data
from experiments.commands.watch import Reading, Watch, tensorboard_writer
from experiments.configs.schema import ExperimentConfig
from experiments.data.batches import check_fills
from experiments.errors import ConfigError
from experiments.models.build import build
from experiments.models.norms import NORMS, sources
from experiments.tasks import by_name
from experiments.training import devices
from experiments.training.checkpoints import Checkpoints
from experiments.training.folder import RunFolder, RunSettings
from experiments.training.loop import Loop, Trained


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders of a command.

    Attributes:
      workdir: settings, log and checkpoints.
      data_dir: the data set; None where the configuration needs none.
      cache_dir: decoded data, shared by all runs; None for the user's cache folder.
    """

    workdir: Path
    data_dir: Path | None = None
    cache_dir: Path | None = None


def run(
    config: ExperimentConfig,
    places: Places,
    *,
    norm: str = "stein",
    seed: int = 0,
    checkpoint_every: int | None = None,
    log_every: int = 20,
    tensorboard: bool = False,
    console: Console | None = None,
) -> Trained:
    """Trains, with a log and checkpoints in the work folder.

    A training of the same settings that is found there goes on from its newest checkpoint; one
    that is finished is only loaded.

    Args:
      config: the experiment.
      places: folders.
      norm: one of ``NORMS``.
      seed: of the weights and of the order of the examples.
      checkpoint_every: steps between checkpoints besides those at the ends of epochs.
      log_every: steps between two lines of the log.
      tensorboard: write event files too.
      console: where to print; standard output by default.

    Raises:
      ConfigError: a setting, the data or the work folder cannot be used.
      FloatingPointError: loss or weights are not finite.
      CheckpointError: a checkpoint cannot be written or read.
    """
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r}; expected one of {', '.join(NORMS)}")
    if tensorboard:
        _check_tensorboard()
    first = devices.is_first()
    console = console or _console(quiet=not first)
    mesh = devices.mesh()
    devices.check_batch(config.train.batch_size, mesh)
    settings = RunSettings(config, norm, seed)
    with RunFolder(places.workdir, settings, places.data_dir, writes=first) as folder:
        with Reading(console) as reading:
            dataset = data.load(config.data, places.data_dir, places.cache_dir, reading.progress)
        check_fills(dataset.train, config.train.batch_size)
        console.print(_begins(config, norm, seed, dataset), highlight=False, markup=False)
        task = by_name(config.task, dataset.classes, config.train.label_smoothing)
        model = build(
            config.model,
            norm,
            config.train,
            examples=dataset.train,
            outputs=task.outputs,
            seed=seed,
        )
        events = (
            tensorboard_writer(places.workdir / "tensorboard") if tensorboard and first else None
        )
        checkpoints = Checkpoints(folder.checkpoints)
        folder.begin(anew=not checkpoints.steps)
        began = time.perf_counter()
        with Watch(folder, console, config.train.batch_size, task.score, events) as watch:
            loop = Loop(
                task=task,
                config=config.train,
                seed=seed,
                validation_statistics=sources(norm, ("running",))[0],
                mesh=mesh,
                checkpoints=checkpoints,
                checkpoint_every=checkpoint_every,
                log_every=log_every,
                observer=watch,
            )
            try:
                trained = loop.run(model, dataset)
            finally:
                checkpoints.close()
        _print_end(trained, places.workdir, task.score, time.perf_counter() - began, console)
    return trained


def _check_tensorboard() -> None:
    # At once: reading the data may take minutes.
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "--tensorboard needs the package tensorboardX, which is not installed; "
            "install it with: pip install tensorboardX"
        )


def _console(quiet: bool) -> Console:
    # Where there is no terminal to ask, rich would break lines at 80 columns.
    return Console(quiet=quiet) if sys.stdout.isatty() else Console(width=120, quiet=quiet)


def _begins(config: ExperimentConfig, norm: str, seed: int, dataset: data.Dataset) -> str:
    parts = f"{len(dataset.train)} training, {len(dataset.validation)} validation examples"
    where = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    if jax.process_count() > 1:
        where += f" in {jax.process_count()} processes"
    return f"{config.name} ({config.preset}), norm {norm}, seed {seed}: {parts}, {where}"


def _print_end(
    trained: Trained, workdir: Path, name: str, seconds: float, console: Console
) -> None:
    progress = trained.progress
    why = "no gain within train.patience epochs" if trained.stopped_early else "all steps done"
    best = ""
    if progress.best_score is not None:
        best = f"; best validation {name} {progress.best_score:.4f} at step {progress.best_step}"
    line = f"finished at step {progress.step} ({why}) after {seconds:.0f} s in this command{best}"
    console.print(line, highlight=False, markup=False)
    # soft_wrap: a command that is broken over two lines cannot be copied.
    console.print(
        f"measure it: python -m experiments evaluate {shlex.quote(str(workdir))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
