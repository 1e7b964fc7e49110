"""Compares two networks on the same examples: intervals of paired differences."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np

from experiments.evaluation import per_example
from experiments.evaluation.per_example import PerExampleResults
from experiments.results import WORST, Row

Places = Mapping[tuple[str, int], Path]
"""(Norm, seed) -> work folder of its evaluation."""


def difference_interval(
    right: np.ndarray, reference: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the interval of a difference of two shares on the same examples (Agresti & Min 2005).

    As in McNemar's test only the examples count on which the two disagree.  Half an example is
    added to each cell of the 2x2 table, so that the interval has a width where there is none.

    Args:
      right: (N,) bool.
      reference: (N,) bool, of the same examples in the same order.
      confidence: coverage, in (0, 1).

    Returns:
      Lower and upper end of share(right) - share(reference), within [-1, 1].
    """
    if right.shape != reference.shape:
        raise ValueError(f"{right.shape} examples against {reference.shape}")
    gained = float(np.sum(right & ~reference)) + 0.5
    lost = float(np.sum(~right & reference)) + 0.5
    n = len(right) + 2.0
    centre = (gained - lost) / n
    spread = math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return max(-1.0, centre - half), min(1.0, centre + half)


class PairedResults:
    """Results per example of many runs, read when they are asked for.

    Args:
      places: where the runs of one experiment lie.
    """

    def __init__(self, places: Places):
        self._places = places
        self._right = functools.lru_cache(maxsize=None)(self._read)

    def interval(self, row: Row, reference: Row) -> tuple[float, float] | None:
        """Returns that of the difference in accuracy; None without both results per example."""
        if row.metric != "accuracy":
            return None
        right, other = self._right(row), self._right(reference)
        if right is None or other is None or len(right) != len(other):
            return None
        return difference_interval(right, other)

    def _read(self, row: Row) -> np.ndarray | None:
        place = self._places.get((row.norm, row.seed))
        if place is None:
            return None
        if row.attack == WORST:
            found = [r for r in per_example.load_all(place) if _is_behind(row, r)]
        else:
            results = per_example.load(place, row.key)
            found = [results] if results else []
        parts = [results.summary["right"] for results in found if "right" in results.summary]
        if not parts or len({len(part) for part in parts}) > 1:
            return None
        right = np.all(parts, axis=0)
        # Results of an earlier evaluation are not what the row was made of; nor is the worst of
        # each example, where the attacker had to take the worst of each batch.
        same = len(right) == row.n and math.isclose(float(np.mean(right)), row.value, abs_tol=1e-9)
        return right if same else None


def _is_behind(row: Row, results: PerExampleResults) -> bool:
    """Returns whether results are of an attack that the worst of all was chosen from."""
    return bool(row.norm_order) and dataclasses.replace(results.key, attack=WORST) == row.key
