"""Measures trained networks condition after condition; chooses n of ``N/(N+n)`` on some of them."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from experiments.data import devices
from experiments.data.corruptions import corrupt_all
from experiments.data.examples import Examples
from experiments.evaluation.calibration import Calibrating
from experiments.evaluation.compiled_programs import release_where_many
from experiments.evaluation.plan import Watcher
from experiments.evaluation.shift import evidence
from experiments.evaluation.shift.plan import CLEAN, Cell, Condition, Plan
from experiments.evaluation.shift.rules import logits_fn, mixed_name
from experiments.evaluation.shift.store import Results, Store
from experiments.tasks import Task

_SAVE_EVERY = 30.0  # seconds of work that a kill loses at most, besides the cell it interrupts


@dataclasses.dataclass(frozen=True)
class Network:
    """One trained network and the examples that it is measured on.

    Attributes:
      label: what the report calls it.
      calibrating: the network, calibrated where a rule needs it.
      task: how its answers are judged.
      test: the examples, in an order without meaning.
      order: positions of the examples of sorted batches, in their order.
      sorted_sizes: sizes of sorted batches; may be empty.
      store: its results.
      precision: of float32 products on accelerators, as in its training.
    """

    label: str
    calibrating: Calibrating
    task: Task
    test: Examples
    order: np.ndarray
    sorted_sizes: Sequence[int]
    store: Store
    precision: str = "highest"

    def measure(
        self, condition: Condition, cells: Iterable[Cell], inputs: np.ndarray, watcher: Watcher
    ) -> None:
        """Measures cells of a condition and keeps the results.

        Args:
          condition: which.
          cells: those that are missing.
          inputs: the test examples under that condition.
          watcher: is told which cell begins, and when it is done.
        """
        results = self.store.load(condition)
        saved = time.monotonic()
        try:
            for cell in cells:
                watcher.begins(f"{self.label}, {_words(condition)}, {cell.rule}")
                with devices.products(self.precision):
                    results[cell] = self._cell(cell, inputs)
                if time.monotonic() - saved > _SAVE_EVERY:
                    self.store.save(condition, results)
                    saved = time.monotonic()
                watcher.advanced()
        finally:
            self.store.save(condition, results)
        release_where_many()

    def _cell(self, cell: Cell, inputs: np.ndarray) -> np.ndarray:
        targets, size = self.test.targets, cell.batch_size
        if cell.sorted:
            inputs, targets = inputs[self.order], targets[self.order]
        if not size:  # any size, since answers do not depend on it
            size = next(s for s in range(min(64, len(inputs)), 0, -1) if len(inputs) % s == 0)
        answers = logits_fn(self.calibrating, cell.rule, size)
        return evidence.measure(answers, inputs, targets, size, self.task)


def _words(condition: Condition) -> str:
    return f"{condition.corruption} {condition.severity}" if condition.severity else "clean"


def measure_all(networks: Sequence[Network], plan: Plan, watcher: Watcher) -> list[int]:
    """Measures networks that share their test examples; returns n of ``N/(N+n)`` of each.

    Examples are corrupted once for all networks.  What the stores hold already is not measured
    again.

    Args:
      networks: with the same examples.
      plan: what is measured.
      watcher: is told how far it is, cell by cell (``steps`` of them).
    """
    for condition, inputs in _corrupted(networks, plan.tuning, plan):
        wanted = plan.tuning_cells()
        for network in networks:
            missing = network.store.missing(condition, wanted)
            _skip(watcher, len(wanted) - len(missing))
            if missing:
                network.measure(condition, missing, inputs(), watcher)
    chosen = [choose(network, plan) for network in networks]
    for condition, inputs in _corrupted(networks, plan.conditions, plan):
        for network, n in zip(networks, chosen, strict=True):
            wanted = list(plan.cells(condition, n, network.sorted_sizes))
            missing = network.store.missing(condition, wanted)
            _skip(watcher, len(wanted) - len(missing))
            if missing:
                network.measure(condition, missing, inputs(), watcher)
    return chosen


def steps(networks: Sequence[Network], plan: Plan) -> int:
    """Returns how many cells ``measure_all`` goes through."""
    once = len(plan.tuning) * len(plan.tuning_cells())
    n = plan.strengths[0]
    return sum(
        once + sum(len(list(plan.cells(c, n, network.sorted_sizes))) for c in plan.conditions)
        for network in networks
    )


def choose(network: Network, plan: Plan) -> int:
    """Returns the n with the best mean score over the tuning conditions and batch sizes."""
    found = [network.store.load(condition) for condition in plan.tuning]

    def mean_score(n: int) -> float:
        cells = [Cell(mixed_name(n), size) for size in plan.batch_sizes]
        values = [_score(results, cell) for results in found for cell in cells]
        return float(np.mean(values))

    return max(plan.strengths, key=mean_score)


def _score(results: Results, cell: Cell) -> float:
    kept = results[cell]
    return float(evidence.scores(kept, np.ones((1, len(kept))))[0])


def _skip(watcher: Watcher, cells: int) -> None:
    for _ in range(cells):
        watcher.advanced()


class _Lazy:
    """The test examples under one condition, made when they are asked for and then kept."""

    def __init__(self, test: Examples, condition: Condition, seed: int):
        self._test, self._condition, self._seed = test, condition, seed
        self._made: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self._made is None:
            inputs = self._test.inputs
            if self._condition == CLEAN:
                scale = np.float32(255 if inputs.dtype == np.uint8 else 1)
                self._made = inputs.astype(np.float32) / scale
            else:
                self._made = corrupt_all(inputs, *self._condition, self._seed)
        return self._made


def _corrupted(
    networks: Sequence[Network], conditions: Iterable[Condition], plan: Plan
) -> Iterator[tuple[Condition, _Lazy]]:
    for condition in conditions:
        yield condition, _Lazy(networks[0].test, condition, plan.seed)
