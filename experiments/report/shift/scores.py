"""Scores of shifted test data with their bootstrap, so that all differences are paired.

Row 0 of every array is the score itself; the others are scores of resamples of the test examples.
All cells of one data set see the same resamples, so any difference or mean of cells is one of
these arrays, row by row.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.evaluation.shift import evidence
from experiments.evaluation.shift.network import Network
from experiments.evaluation.shift.plan import TUNE, Cell, Condition, Plan
from experiments.evaluation.shift.rules import BATCH, FIXED, MIXED, RUNNING, mixed_name
from experiments.evaluation.shift.store import Results

RESAMPLES = 1000

Key = tuple[Condition, str, int]
"""Condition, rule, batch size."""


class Estimate(NamedTuple):
    """A score or a difference of scores with its 95 % interval over test examples."""

    value: float
    low: float
    high: float


def estimate(values: np.ndarray) -> Estimate:
    """Returns what an array of a score and its resamples says."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of one network, or the mean of several, in mixed or in sorted batches.

    Attributes:
      rules: in the order of tables.
      batch_sizes: ascending.
      conditions: clean first.
      values: (1 + resamples,) for every condition, rule and batch size.
      examples: how many test examples are behind each.
    """

    rules: Sequence[str]
    batch_sizes: Sequence[int]
    conditions: Sequence[Condition]
    values: Mapping[Key, np.ndarray]
    examples: int

    def mean(
        self,
        rule: str,
        batch_size: int | None = None,
        where: Callable[[Condition], bool] = lambda condition: True,
    ) -> np.ndarray:
        """Returns the mean over conditions, and over batch sizes where none is given.

        Args:
          rule: its name.
          batch_size: one of them, or None.
          where: which conditions.
        """
        sizes = self.batch_sizes if batch_size is None else [batch_size]
        chosen = [c for c in self.conditions if where(c)]
        return np.mean([self.values[c, rule, size] for c in chosen for size in sizes], axis=0)

    def leads(self, rule: str, batch_size: int) -> dict[Condition, float]:
        """Returns how far a rule is above the better of running and batch, by condition."""
        return {
            c: float(
                self.values[c, rule, batch_size][0]
                - max(self.values[c, name, batch_size][0] for name in (RUNNING, BATCH))
            )
            for c in self.conditions
        }


def is_clean(condition: Condition) -> bool:
    """Returns whether nothing was done to the examples."""
    return condition.severity == 0


def is_tuned(condition: Condition) -> bool:
    """Returns whether settings were chosen on this kind of corruption."""
    return condition.corruption in TUNE


def is_held_out(condition: Condition) -> bool:
    """Returns whether it is a corruption that no setting was chosen on."""
    return not is_clean(condition) and not is_tuned(condition)


def scores_of(network: Network, plan: Plan, n: int) -> tuple[Scores, Scores | None]:
    """Returns the scores in mixed batches and in sorted ones; None where there are none of those.

    Args:
      network: measured.
      plan: of the measurement.
      n: of ``N/(N+n)``.
    """
    found = {condition: network.store.load(condition) for condition in plan.conditions}
    mixed = _scores(found, plan, n, plan.batch_sizes, None)
    if not network.sorted_sizes:
        return mixed, None
    chosen = {c: results for c, results in found.items() if plan.has_sorted(c)}
    return mixed, _scores(chosen, plan, n, network.sorted_sizes, network.order)


def _scores(
    found: Mapping[Condition, Results],
    plan: Plan,
    n: int,
    batch_sizes: Sequence[int],
    order: np.ndarray | None,
) -> Scores:
    count = plan.test_examples if order is None else len(order)
    generator = np.random.default_rng((plan.seed, count))
    drawn = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count)), drawn])
    rules = [*FIXED, *plan.rules]
    values = {}
    for condition, results in found.items():
        fixed = {}
        for rule in FIXED:
            kept = results[Cell(rule, 0)]
            fixed[rule] = evidence.scores(kept if order is None else kept[order], weights)
        for rule in rules:
            name = mixed_name(n) if rule == MIXED else rule
            for size in batch_sizes:
                cell = Cell(name, size, order is not None)
                values[condition, rule, size] = (
                    fixed[rule] if rule in fixed else evidence.scores(results[cell], weights)
                )
    return Scores(rules, list(batch_sizes), list(found), values, count)


def average(parts: Iterable[Scores]) -> Scores:
    """Returns the mean over networks that were measured on the same test examples."""
    parts = list(parts)
    first = parts[0]
    values = {key: np.mean([p.values[key] for p in parts], axis=0) for key in first.values}
    return dataclasses.replace(first, values=values)
