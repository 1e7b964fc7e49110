"""Measures a trained model on the test part: clean, under noise and under attack."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from experiments.configs.schema import AttackConfig, Statistics
from experiments.data import devices
from experiments.data.batches import Batch, InOrder, ahead
from experiments.data.examples import Examples, as_inputs
from experiments.errors import ConfigError
from experiments.evaluation import aggregate, per_example
from experiments.evaluation.attack_batch import AttackedModel, as_logits_fn, check_fits
from experiments.evaluation.batch_results import BatchResults
from experiments.evaluation.compiled_programs import release_where_many
from experiments.evaluation.identity import identity_of
from experiments.evaluation.per_example import PerExampleResults
from experiments.evaluation.plan import Plan, Run, Watcher
from experiments.models.norms import in_evaluation
from experiments.results import ResultKey
from experiments.tasks import Task

_SAVE_EVERY = 5.0  # seconds of work that a kill loses at most, besides the batch it interrupts


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
    batch where those are used. Each batch lies on as many of the process's devices as can share it
    evenly. Several processes take batches in turn; each gets the results of all, the first writes.

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
      ConfigError: an attack that does not exist for this task, or processes that do not share the
        work folder or do not measure the same.
      LeftThreatError: an attack left its ball or box.
      NotFiniteError: the model answers NaN or infinity.
    """
    for attack in plan.attacks:
        check_fits(attack, task)
    attacked = _ready(model, plan)
    measuring = _Measuring(attacked, task, examples, plan, workdir, watcher or Watcher())
    count = plan.measured(len(examples))
    identity = identity_of(model, examples, plan.batch_size, plan.statistics, run.calibrated_on)
    identity["measured"] = count
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
        release_where_many()
    return done


def clean_scores(
    model: nnx.Module, task: Task, examples: Examples, statistics: Statistics, batch_size: int
) -> dict[str, float]:
    """Returns the scores of a model on clean examples, such as those of a validation part.

    Args:
      model: in training mode; left as it is.
      task: whose scores they are.
      examples: all of which are measured.
      statistics: the source of the norm's statistics.
      batch_size: of the batches.
    """
    plan = Plan(statistics, batch_size)
    measuring = _Measuring(_ready(model, plan), task, examples, plan, None, Watcher())
    key = ResultKey("", "", 0, statistics, "", aggregate.NO_ATTACK.name, 0.0, "")
    results = measuring.under(
        aggregate.NO_ATTACK, per_example.describe(key, aggregate.NO_ATTACK, {}, ())
    )
    return task.scores(results.summary)


def _ready(model: nnx.Module, plan: Plan) -> AttackedModel:
    """Returns a model in evaluation, as a plan says."""
    logits_fn = as_logits_fn(in_evaluation(model, plan.statistics))
    return AttackedModel(logits_fn, plan.threat_model, plan.dependent)


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
        done = 0 if results is None else results.batches
        self._check_agreement(done, about)
        for _ in range(done):
            self.watcher.advanced()
        mine, processes = devices.process()
        total = -(-self.plan.measured(len(self.examples)) // self.plan.batch_size)
        computed = self._computed(attack, about, range(done + mine, total, processes))
        saver = _Saver(self.workdir if devices.is_first() else None)
        try:
            for _ in range(done, total, processes):
                for more in _of_all_processes(next(computed, None)):
                    results = more if results is None else results.extended(more)
                    saver.keep(results)
                    self.watcher.advanced()
        finally:
            saver.save()
        assert results is not None  # a test part is never empty
        assert len(results) == self.plan.measured(len(self.examples))
        return results

    def _check_agreement(self, done: int, about: dict[str, Any]) -> None:
        """Checks that all processes measure the same, and found the same results of it.

        Returns once all have looked.
        """
        content = json.dumps([about, done]).encode()
        found = [json.loads(each) for each in devices.exchange(content)]
        first = found[0][0]
        for each, _ in found:
            parts = {**each, **each["identity"]}
            others = {**first, **first["identity"]}
            different = [n for n in parts if n != "identity" and parts[n] != others.get(n)]
            if different:
                raise ConfigError(
                    f"the processes differ in {', '.join(different)}: all of them must run the "
                    "same command with the same code, data and versions"
                )
        counts = [count for _, count in found]
        if len(set(counts)) > 1:
            raise ConfigError(
                f"the processes find {counts} finished batches in {self.workdir}: all of them must "
                "see the same folder, on a file system that they share"
            )

    def _computed(
        self, attack: AttackConfig, about: dict[str, Any], places: range
    ) -> Iterator[PerExampleResults]:
        """Yields the results of some batches.

        Without an attack the next batch is computed while one is fetched. After an attack, which
        may have taken minutes, they are fetched at once, so that an interrupt loses none.
        """
        # Copies that fill the last batch would count in its statistics.
        batches = InOrder(self.examples, self.plan.batch_size, fill=not self.plan.dependent)
        waiting: BatchResults | None = None
        for place, batch in zip(places, ahead(batches, places), strict=True):
            if waiting and attack.has_ball:
                yield waiting.fetch(about)
                waiting = None
            computed = self._batch(attack, about, batch, place)
            if waiting:
                yield waiting.fetch(about)
            waiting = computed
        if waiting:
            yield waiting.fetch(about)

    def _batch(
        self, attack: AttackConfig, about: dict[str, Any], batch: Batch, place: int
    ) -> BatchResults:
        mesh = devices.own_mesh(len(batch.targets))
        inputs, y = devices.share((batch.inputs, batch.targets), mesh)
        x = _as_inputs(inputs)
        model = dataclasses.replace(
            self.model, logits_fn=self._on(mesh), on_progress=self.watcher.within
        )
        random = jax.random.fold_in(jax.random.key(about["seed"]), _stream(attack.name))
        left = self.plan.measured(len(self.examples)) - place * self.plan.batch_size
        key = jax.random.fold_in(random, place)
        attacked = model.attack(attack, about["epsilon"], (x, y), key, left)
        count = min(int(batch.real.sum()), len(attacked.distance), left)
        return BatchResults.of(attacked, (x, y), place, count, self.task)

    def _on(self, mesh: Mesh) -> jax.tree_util.Partial:
        """Returns the model on the devices of a batch."""
        if mesh not in self._copies:
            self._copies[mesh] = devices.copy_to(self.model.logits_fn, mesh)
        return self._copies[mesh]

    @functools.cached_property
    def _copies(self) -> dict[Mesh, jax.tree_util.Partial]:
        return {}


def _of_all_processes(mine: PerExampleResults | None) -> Iterator[PerExampleResults]:
    """Yields one batch of each process, in order; the last processes may have none."""
    if jax.process_count() == 1:
        assert mine is not None
        yield mine
        return
    for content in devices.exchange(b"" if mine is None else mine.to_bytes()):
        if content:
            yield PerExampleResults.from_bytes(content)


_as_inputs = jax.jit(as_inputs)


def _stream(attack: str) -> int:
    """Returns the same stream of random numbers for an attack, whatever is measured beside it."""
    return int(hashlib.sha256(attack.encode()).hexdigest()[:7], 16)
