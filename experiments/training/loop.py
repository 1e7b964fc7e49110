"""Trains: the one loop of the experiments, on the host, over a jitted step.

A loop on the host may report, checkpoint and stop at any step, and on a CPU it is faster than a
scan around convolutions.  All that a step depends on is the arrays, the seed and the step's
number, so a training that was killed goes on bit for bit from its last checkpoint.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.configs.schema import Statistics, TrainConfig
from experiments.data import devices
from experiments.data.augment import Augmentation
from experiments.data.batches import TrainBatches, ahead
from experiments.data.examples import Examples
from experiments.errors import CheckpointError
from experiments.results import LoggedStep
from experiments.tasks import Task
from experiments.training.adversarial import Adversary
from experiments.training.checkpoints import Checkpoints, Progress
from experiments.training.interrupts import Interrupts
from experiments.training.step import (
    CompiledStep,
    StepReport,
    TrainState,
    learning_rate,
    optimiser,
    split_model,
)

Validation = Callable[[nnx.Module], dict[str, float]]
"""Gives the scores of a model, in training mode, on the validation part."""


class Observer:
    """Is told what happens in a training; does nothing unless a method is overridden."""

    def resumed(self, step: int, total: int) -> None:
        """A checkpoint of ``step`` was found."""

    def stepped(self, step: int, total: int, loss: float) -> None:
        """A step is done."""

    def logged(self, row: LoggedStep) -> None:
        """A step that is kept is done."""

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """An epoch is done and the weights were scored on the validation part."""


class Trained(NamedTuple):
    """A trained model and how far it got.

    Attributes:
      model: with the weights of the last step; the one that was passed in is left alone.
      progress: step, scores, and which step was best.
      stopped_early: whether ``patience`` ended the training.
    """

    model: nnx.Module
    progress: Progress
    stopped_early: bool


@dataclasses.dataclass(frozen=True)
class Loop:
    """One training: what is trained how, and where it is kept.

    Attributes:
      task: loss and scores.
      config: the optimisation.
      seed: of the order of the examples, of augmentation and of attacks.
      statistics: the source of the norm's statistics in evaluation; ``none`` for norms without.
      validate: scores the weights at the end of each epoch; None where nothing is validated.
      checkpoints: where to resume from and to write to; None for neither.
      checkpoint_every: steps between checkpoints besides those at the ends of epochs.
      checkpoint_at_epochs: write one at the end of every epoch; else of the last epoch only.
      loader_threads: that make batches; by default one for each core, at most 8.
      log_every: steps between two rows for the observer, besides the first and the last.
      observer: is told what happens.
    """

    task: Task
    config: TrainConfig
    seed: int
    statistics: Statistics = "running"
    validate: Validation | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_every: int | None = None
    checkpoint_at_epochs: bool = True
    loader_threads: int | None = None
    log_every: int = 2
    observer: Observer = dataclasses.field(default_factory=Observer)

    def run(self, model: nnx.Module, examples: Examples) -> Trained:
        """Trains ``model``, from the newest checkpoint where there is one.

        Args:
          model: maps inputs (B, ..., C) in [0, 1] to outputs, in training mode.
          examples: the training part.

        Raises:
          ConfigError: the examples do not fill a batch, or the processes cannot share it.
          FloatingPointError: loss or weights are not finite; the message names the step and the
            last good checkpoint.
          CheckpointError: a checkpoint cannot be written, or none of those found can be read.
          KeyboardInterrupt: on Ctrl-C, after a checkpoint (of several processes only those at the
            usual steps: the others do not know of it); on SIGTERM likewise SystemExit.
        """
        batches = TrainBatches(
            examples,
            self.config.batch_size,
            seed=self.seed,
            augmentation=Augmentation(self.config.augment, self.config.shift),
            process=devices.process(),
        )
        run = _Run(self, model, batches)
        with Interrupts() as interrupts:
            try:
                trained = run.to_the_end(interrupts)
            except BaseException:
                # This process only: the others may not have failed.
                if self.checkpoints is not None:
                    self.checkpoints.wait()
                raise
            if self.checkpoints is not None:
                self.checkpoints.complete()
            return trained


class _Run:
    """The state of one training while it runs."""

    def __init__(self, loop: Loop, model: nnx.Module, batches: TrainBatches):
        self._loop, self._batches = loop, batches
        self._total = batches.per_epoch * loop.config.epochs
        self._rate = learning_rate(loop.config, batches.per_epoch)
        self._graphdef, params, rest = split_model(model)
        transformation = optimiser(loop.config, batches.per_epoch)
        self._mesh = devices.mesh(loop.config.batch_size)
        self._adversary = Adversary.of(
            loop.config.adversary, loop.task, model, loop.statistics, loop.seed
        )
        # Copies: the step gives its arguments up, and the caller keeps the model.
        state = devices.replicate(TrainState(params, rest, transformation.init(params)), self._mesh)
        self._step = CompiledStep(
            loop.task,
            transformation,
            graphdef=self._graphdef,
            state=state,
            mesh=self._mesh,
            input_rank=batches.input_rank,
        )
        self._arrays = jax.tree.leaves(state)
        self._progress = Progress(step=0)
        self._resume()

    def to_the_end(self, interrupts: Interrupts) -> Trained:
        """Trains until the last step, until patience ends or until a signal asks to stop."""
        waiting: tuple[int, StepReport] | None = None
        for step, batch in self._numbered_batches():
            spread = devices.spread(batch, self._mesh)
            if self._adversary:
                spread = self._adversary.attack(self._state, spread, step)
            self._arrays, report = self._step.take(self._arrays, spread)
            # The report of the step before: reading this one now would make the device wait.
            if waiting:
                self._look_at(*waiting)
            waiting = step, report
            self._progress = self._progress._replace(step=step, score=None)
            ends_epoch = step % self._batches.per_epoch == 0
            if ends_epoch or self._is_due(step) or interrupts.pending:
                self._look_at(*waiting)
                waiting = None
                if ends_epoch:
                    self._validate()
                if self._saves(step, ends_epoch, interrupts):
                    self.save()
                interrupts.act()
                if self._out_of_patience():
                    break
        return Trained(self._model(), self._progress, self._progress.step < self._total)

    @property
    def _state(self) -> TrainState:
        """The state as it is now, with arrays that the next step gives up."""
        return self._step.state(self._arrays)

    def _model(self) -> nnx.Module:
        """Returns the model as it is now, with arrays that the next step gives up."""
        params, rest = jax.tree.map(_local, self._state[:2])
        return nnx.merge(self._graphdef, params, rest)

    def save(self) -> None:
        """Writes a checkpoint of where the training is."""
        if self._loop.checkpoints is None or self._progress.step == 0:
            return
        if not bool(_all_finite(self._arrays)):
            raise FloatingPointError(
                f"weights that are not finite after step {self._progress.step}; {self._last_good()}"
            )
        self._loop.checkpoints.save(self._state, self._progress)

    def _resume(self) -> None:
        found = self._loop.checkpoints and self._loop.checkpoints.load_newest(self._state)
        if found:
            state, self._progress = found
            self._arrays = jax.tree.leaves(state)
            self._loop.observer.resumed(self._progress.step, self._total)

    def _numbered_batches(self) -> Iterator[tuple[int, Any]]:
        if self._out_of_patience():
            return
        left = range(self._progress.step, self._total)
        made = ahead(self._batches, left, threads=self._loop.loader_threads)
        for index, batch in zip(left, made, strict=True):
            yield index + 1, batch

    def _is_due(self, step: int) -> bool:
        every = self._loop.checkpoint_every
        return every is not None and step % every == 0

    def _saves(self, step: int, ends_epoch: bool, interrupts: Interrupts) -> bool:
        """Returns whether a checkpoint is written after a step at which the loop looks up."""
        if self._is_due(step) or (ends_epoch and self._loop.checkpoint_at_epochs):
            return True
        if ends_epoch and (step == self._total or self._out_of_patience()):
            return True
        # For an interrupt, of which the other one of several processes knows nothing.
        return bool(interrupts.pending) and jax.process_count() == 1

    def _look_at(self, step: int, report: StepReport) -> None:
        """Checks the report of a step and passes it on."""
        loss = float(report.loss)
        if not math.isfinite(loss):
            peak = self._loop.config.learning_rate
            raise FloatingPointError(
                f"the loss is {loss} at step {step} of {self._total} (peak learning rate "
                f"{peak:g}); training stops here; {self._last_good()}"
            )
        if step % self._loop.log_every == 0 or step in (1, self._total):
            values = jax.tree.map(float, jax.device_get(report))
            row = LoggedStep(
                step=step,
                epoch=step / self._batches.per_epoch,
                loss=values.loss,
                accuracy=values.score,
                factors=values.factors,
                learning_rate=float(self._rate(jnp.float32(step - 1))),
            )
            self._loop.observer.logged(row)
        self._loop.observer.stepped(step, self._total, loss)

    def _validate(self) -> None:
        if self._loop.validate is None:
            return
        scores = self._loop.validate(self._model())
        self._loop.observer.validated(self._progress.step, scores)
        value = scores[self._loop.task.score]
        best = self._progress.best_score
        if math.isnan(value):
            # Not defined on this validation part: the last weights are as good as any.
            self._progress = self._progress._replace(best_step=self._progress.step)
        elif best is None or value > best:
            self._progress = Progress(self._progress.step, value, value, self._progress.step, 0)
        else:
            waited = self._progress.epochs_without_gain + 1
            self._progress = self._progress._replace(score=value, epochs_without_gain=waited)

    def _out_of_patience(self) -> bool:
        patience = self._loop.config.patience
        return patience is not None and self._progress.epochs_without_gain >= patience

    def _last_good(self) -> str:
        try:
            kept = self._loop.checkpoints.steps if self._loop.checkpoints else []
        except CheckpointError as error:  # beside what went wrong first
            return f"besides, {error}"
        if not kept:
            return "there is no checkpoint to go back to; try a smaller train.learning_rate"
        return (
            f"the last good checkpoint is that of step {kept[-1]}; "
            "try a smaller train.learning_rate in a new work folder"
        )


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    floating = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floating]))


def _local(x: jax.Array) -> jax.Array:
    """Returns the array on this process's first device alone."""
    return x.addressable_data(0)
