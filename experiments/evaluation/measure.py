"""Measures a trained model on the test part: clean, under noise and under attack."""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.configs.schema import AttackConfig, Statistics
from experiments.data.batches import Batch, in_order
from experiments.data.examples import Examples, as_inputs
from experiments.evaluation import aggregate, per_example
from experiments.evaluation.attack_batch import DEPENDENT, AttackedModel, ThreatModel, check_fits
from experiments.evaluation.identity import identity_of
from experiments.evaluation.per_example import PerExampleResults, Values
from experiments.models.norms import in_evaluation
from experiments.results import ResultKey, Row
from experiments.tasks import Summary, Task

_SAVE_EVERY = 5.0  # seconds of work that a kill loses at most, besides the batch it interrupts


class Run(NamedTuple):
    """The training whose model is measured.

    Attributes:
      config: name of the configuration.
      norm: name of the norm.
      seed: of the training; also of noise and random starts.
      class_names: for pictures; may be empty.
    """

    config: str
    norm: str
    seed: int
    class_names: tuple[str, ...] = ()


class Watcher:
    """Is told how far an evaluation is; does nothing unless a method is overridden."""

    def begins(self, what: str) -> None:
        """The attack, or the check, that is called so begins."""

    def within(self, how_far: str) -> None:
        """A long attack is so far, in words."""

    def advanced(self) -> None:
        """A batch, or a check, is done."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
      statistics: the source of the norm's statistics.
      batch_size: with statistics of the test batch, scores depend on it.
      attacks: measured besides the clean scores.
      threat_model: who attacks whom in a batch whose statistics count; elsewhere there is nothing
        to choose.
      victims: with the threat models ``independent`` and ``companion``, which attack one example
        at a time, how many of the first examples; None is all.
    """

    statistics: Statistics
    batch_size: int
    attacks: Sequence[AttackConfig] = ()
    threat_model: ThreatModel = "joint"
    victims: int | None = None

    @property
    def dependent(self) -> bool:
        """Whether an example's answer depends on its batch."""
        return self.statistics in DEPENDENT

    @property
    def threat(self) -> str:
        """The threat model, as rows state it; empty where there is nothing to choose."""
        return self.threat_model if self.dependent else ""

    @property
    def alone(self) -> bool:
        """Whether examples are attacked one at a time."""
        return self.threat not in ("", "joint")

    @property
    def measurements(self) -> list[tuple[AttackConfig, float]]:
        """Attacks and strengths, in the order in which they are measured."""
        attacks = (aggregate.NO_ATTACK, *self.attacks)
        return [(attack, epsilon) for attack in attacks for epsilon in attack.epsilons]

    def measured(self, examples: int) -> int:
        """Returns how many of so many examples are measured."""
        return min(self.victims or examples, examples) if self.alone else examples

    def batches(self, examples: int) -> int:
        """Returns how many batches ``measure`` goes through, over all attacks and strengths."""
        return len(self.measurements) * -(-self.measured(examples) // self.batch_size)


def measure(
    model: nnx.Module,
    task: Task,
    examples: Examples,
    plan: Plan,
    *,
    run: Run,
    workdir: Path | None = None,
    watcher: Watcher | None = None,
) -> list[PerExampleResults]:
    """Measures all examples with one source of statistics, under one attack after another.

    The attacker sees the model that is evaluated: gradients go through the statistics of the test
    batch where those are used.

    Args:
      model: the trained model.
      task: what is kept of each example.
      examples: the test part.
      plan: what is measured.
      run: that the model comes from, with the seed of noise and random starts.
      workdir: where per-example results are kept as batches are done; what is found there, measured
        with the same weights, settings and versions, is not measured again.
      watcher: is told how far it is.

    Raises:
      ConfigError: an attack that does not exist for this task.
      LeftThreatError: an attack left its ball or box.
    """
    for attack in plan.attacks:
        check_fits(attack, task)
    measuring = _Measuring(
        AttackedModel(
            as_logits_fn(in_evaluation(model, plan.statistics)), plan.threat_model, plan.dependent
        ),
        task,
        examples,
        plan,
        workdir,
        watcher or Watcher(),
    )
    count = plan.measured(len(examples))
    identity = {**identity_of(model, examples, plan.batch_size), "measured": count}
    done = []
    for attack, epsilon in plan.measurements:
        key = ResultKey(
            config=run.config,
            norm=run.norm,
            seed=run.seed,
            statistics=plan.statistics,
            threat_model=plan.threat,
            attack=attack.name,
            epsilon=float(epsilon),
            norm_order=attack.norm if attack.has_ball else "",
        )
        about = per_example.describe(key, attack, identity, run.class_names)
        done.append(measuring.under(attack, about))
    return done


def evaluate(
    model: nnx.Module, task: Task, examples: Examples, plan: Plan, **settings: Any
) -> list[Row]:
    """Measures, and returns the rows of all scores; arguments as in ``measure``."""
    return aggregate.rows_of_all(task, measure(model, task, examples, plan, **settings))


def as_logits_fn(model: nnx.Module) -> jax.tree_util.Partial:
    """Returns a model as a pure function of inputs that compiles once per architecture.

    Whatever a layer records while it runs is dropped: the model stays as it is.

    Args:
      model: ready for evaluation.
    """
    graphdef, state = nnx.split(model)
    return jax.tree_util.Partial(_apply, graphdef, state)


def _apply(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    # Copies: under a gradient, writing to the caller's variables would be an error in NNX.
    return nnx.merge(graphdef, state, copy=True)(x)


class _Saver:
    """Writes results that grow, now and then, and what is new in the end."""

    def __init__(self, workdir: Path | None):
        self._workdir = workdir
        self._unsaved: PerExampleResults | None = None
        self._saved = time.monotonic()

    def keep(self, results: PerExampleResults) -> None:
        """Takes results with one more batch."""
        self._unsaved = results
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes what was not written yet."""
        if self._workdir and self._unsaved is not None:
            self._unsaved.save(self._workdir)
            self._unsaved, self._saved = None, time.monotonic()


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """One model with one source of statistics, attack after attack."""

    model: AttackedModel
    task: Task
    examples: Examples
    plan: Plan
    workdir: Path | None
    watcher: Watcher

    def under(self, attack: AttackConfig, about: dict[str, Any]) -> PerExampleResults:
        """Returns the results under an attack; what is on disk already is taken from there."""
        key = ResultKey.of(about)
        results = per_example.load(self.workdir, key) if self.workdir else None
        if results is not None and results.about != about:
            results = None
        self.watcher.begins(f"{key.statistics}, {key.attack} {key.epsilon:.3g}")
        model = dataclasses.replace(self.model, on_progress=self.watcher.within)
        random = jax.random.fold_in(jax.random.key(key.seed), _stream(key.attack))
        saver = _Saver(self.workdir)
        try:
            for place, batch in enumerate(self._batches()):
                if results is None or place >= results.batches:
                    at_batch = jax.random.fold_in(random, place)
                    more = self._batch(model, (attack, about), batch, place, at_batch)
                    results = more if results is None else results.extended(more)
                    saver.keep(results)
                self.watcher.advanced()
        finally:
            saver.save()
        assert results is not None  # a test part is never empty
        return results

    def _batches(self) -> Iterator[Batch]:
        """Yields the batches that are measured; ``victims`` may cut the last of them later."""
        # Copies that fill the last batch would count in its statistics.
        fill = not self.plan.dependent
        left = self.plan.measured(len(self.examples))
        for batch in in_order(self.examples, self.plan.batch_size, fill=fill):
            if left <= 0:
                return
            yield batch
            left -= len(batch.real)

    def _batch(
        self,
        model: AttackedModel,
        what: tuple[AttackConfig, dict[str, Any]],
        batch: Batch,
        place: int,
        key: jax.Array,
    ) -> PerExampleResults:
        attack, about = what
        x, y = as_inputs(jnp.asarray(batch.inputs)), jnp.asarray(batch.targets)
        before = place * self.plan.batch_size
        left = self.plan.measured(len(self.examples)) - before
        attacked = model.attack(attack, about["epsilon"], (x, y), key, left)
        count = min(int(batch.real.sum()), len(attacked.distance), left)
        summary = _summary(attacked.outputs, y[: len(attacked.outputs)], task=self.task)
        shown = min(count, per_example.SHOWN)
        return PerExampleResults(
            about=about,
            summary={name: np.asarray(v)[:count] for name, v in summary.items()},
            distance=np.asarray(attacked.distance)[:count],
            batch=np.full(count, place),
            values=Values.of(np.asarray(attacked.inputs)),
            zero_gradients=min(attacked.zero_gradients, count),
            shown={
                "x": np.asarray(x[:shown]),
                "x_adv": np.asarray(attacked.inputs[:shown]),
                "y": np.asarray(y[:shown]),
                "prediction": _predictions(np.asarray(attacked.outputs[:shown])),
            },
        )


@functools.partial(jax.jit, static_argnames="task")
def _summary(outputs: jax.Array, y: jax.Array, *, task: Task) -> Summary:
    return task.summary(outputs, y)


def _predictions(outputs: np.ndarray) -> np.ndarray:
    """Returns the classes that K logits, or one, stand for."""
    if outputs.shape[-1] == 1:
        return (outputs[..., 0] > 0).astype(np.int32)
    return np.argmax(outputs, axis=-1).astype(np.int32)


def _stream(attack: str) -> int:
    """Returns the same stream of random numbers for an attack, whatever is measured beside it."""
    return int(hashlib.sha256(attack.encode()).hexdigest()[:7], 16)
