"""Trains one network in a work folder, or goes on with the training that is there."""

import dataclasses
import functools
import shlex
import time
from pathlib import Path
from typing import Any

import jax

from experiments import data, tasks
from experiments.commands.console import Display, make_console
from experiments.commands.seeds import check_seed
from experiments.commands.training_display import (
    TrainingDisplay,
    check_tensorboard,
    shown_reading,
    tensorboard_writer,
)
from experiments.configs.schema import ExperimentConfig, Statistics
from experiments.data import devices
from experiments.data.batches import check_fills
from experiments.errors import ConfigError
from experiments.evaluation.measure import clean_scores
from experiments.models.build import build
from experiments.models.norms import NORMS, shrinkage, sources
from experiments.tasks import Task
from experiments.training.checkpoints import Checkpoints
from experiments.training.folder import RunFolder, RunSettings
from experiments.training.loop import Loop, Trained, Validation
from experiments.training.shrinkage_notes import ShrinkageNotes


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
    checkpoint_at_epochs: bool = True,
    log_every: int = 20,
    loader_threads: int | None = None,
    tensorboard: bool = False,
    display: Display | None = None,
) -> Trained:
    """Trains, with a log and checkpoints in the work folder.

    A training of the same settings that is found there goes on from its newest checkpoint; one
    that is finished is only loaded.

    Args:
      config: the experiment.
      places: folders.
      norm: one of ``NORMS``.
      seed: of the weights and of the order of the examples; from 0 to 2^32 - 1.
      checkpoint_every: steps between checkpoints besides those at the ends of epochs.
      checkpoint_at_epochs: write one at the end of every epoch, not only of the last.
      log_every: steps between two lines of the log.
      loader_threads: that make batches; by default one for each core, at most 8.
      tensorboard: write event files too.
      display: where to print and to show bars; standard output by default.

    Raises:
      ConfigError: a setting, the data or the work folder cannot be used.
      FloatingPointError: loss or weights are not finite.
      CheckpointError: a checkpoint cannot be written or read.
    """
    _check(norm, seed, loader_threads)
    if tensorboard:
        check_tensorboard()  # at once: reading the data may take minutes
    first = devices.is_first()
    mesh = devices.mesh(config.train.batch_size)
    settings = RunSettings(config, norm, seed)
    display = display or Display(make_console(quiet=not first))
    with (
        display,
        devices.products(config.train.matmul_precision),
        RunFolder(places.workdir, settings, places.data_dir, writes=first) as folder,
    ):
        with shown_reading(display) as on_progress:
            dataset = data.load(config.data, places.data_dir, places.cache_dir, on_progress)
        check_fills(dataset.train, config.train.batch_size)
        display.say(_begins(config, norm, seed, dataset))
        for note in filter(None, (devices.idle(mesh), *dataset.notes)):
            display.say(note)
        task = tasks.create(config.task, dataset.classes, config.train.label_smoothing)
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
        folder.begin(anew=not checkpoints.steps, data_notes=dataset.notes)
        began = time.perf_counter()
        batch_size = config.train.batch_size
        notes = ShrinkageNotes(shrinkage(norm))
        with TrainingDisplay(
            folder, display, batch_size, task.score, events=events, notes=notes
        ) as observer:
            loop = _loop(
                settings,
                dataset,
                task,
                checkpoints=checkpoints,
                checkpoint_every=checkpoint_every,
                checkpoint_at_epochs=checkpoint_at_epochs,
                loader_threads=loader_threads,
                log_every=log_every,
                observer=observer,
            )
            try:
                trained = loop.run(model, dataset.train)
            finally:
                checkpoints.close()
        seconds = time.perf_counter() - began
        for line in _ends(trained, places.workdir, task.score, seconds):
            display.say(line)
    return trained


def _check(norm: str, seed: int, loader_threads: int | None) -> None:
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r}; expected one of {', '.join(NORMS)}")
    check_seed(seed)
    if loader_threads is not None and loader_threads < 1:
        raise ConfigError(f"--loader-threads must be at least 1; got {loader_threads}")


def _loop(settings: RunSettings, dataset: data.Dataset, task: Task, **more: Any) -> Loop:
    """Returns the training of these settings; ``more`` are its fields that change no result."""
    return Loop(
        task=task,
        config=settings.config.train,
        seed=settings.seed,
        statistics=_statistics(settings.norm),
        validate=_validation(settings, dataset, task),
        **more,
    )


def _statistics(norm: str) -> Statistics:
    """Returns the source of the norm's statistics when weights are chosen."""
    return sources(norm, ("running",))[0]


def _validation(settings: RunSettings, dataset: data.Dataset, task: Task) -> Validation | None:
    """Returns what scores the weights; None where there is no validation part."""
    if not len(dataset.validation):
        return None
    return functools.partial(
        clean_scores,
        task=task,
        examples=dataset.validation,
        statistics=_statistics(settings.norm),
        batch_size=settings.config.train.batch_size,
    )


def _begins(config: ExperimentConfig, norm: str, seed: int, dataset: data.Dataset) -> str:
    parts = f"{len(dataset.train)} training, {len(dataset.validation)} validation examples"
    where = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    if jax.process_count() > 1:
        where += f" in {jax.process_count()} processes"
    return f"{config.name} ({config.preset}), norm {norm}, seed {seed}: {parts}, {where}"


def _ends(trained: Trained, workdir: Path, score: str, seconds: float) -> list[str]:
    progress = trained.progress
    why = "no gain within train.patience epochs" if trained.stopped_early else "all steps done"
    best = ""
    if progress.best_score is not None:
        best = f"; best validation {score} {progress.best_score:.4f} at step {progress.best_step}"
    command = f"python -m experiments evaluate {shlex.quote(str(workdir))}"
    return [
        f"finished at step {progress.step} ({why}) after {seconds:.0f} s in this command{best}",
        f"measure it: {command}",
    ]
