"""Counts that are merged and divided once, and intervals of shares and of other scores."""

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Tally(NamedTuple):
    """How many of how many; adding tallies of batches of any sizes stays exact.

    Attributes:
      hits: number of successes.
      trials: number of trials.
    """

    hits: int = 0
    trials: int = 0

    @classmethod
    def of(cls, hit: np.ndarray) -> "Tally":
        """Counts a boolean array of any shape."""
        hit = np.asarray(hit)
        if hit.dtype != np.bool_:
            raise TypeError(f"expected booleans; got dtype {hit.dtype}")
        return cls(int(hit.sum()), hit.size)

    def merge(self, other: "Tally") -> "Tally":
        """The tally of both together."""
        return Tally(self.hits + other.hits, self.trials + other.trials)

    @property
    def share(self) -> float:
        """Hits / trials; NaN where nothing was counted."""
        return self.hits / self.trials if self.trials else math.nan


def wilson_interval(tally: Tally, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a binomial share (Wilson 1927).

    Unlike share +- z * standard error it stays in [0, 1] and has a width at shares of 0 and 1.

    Args:
      tally: successes and trials.
      confidence: coverage, in (0, 1).

    Returns:
      Lower and upper end; (0, 1) where nothing was counted.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1); got {confidence}")
    if tally.trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    n, share = tally.trials, tally.share
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_intervals(
    statistics: Callable[[np.ndarray], Mapping[str, float]],
    examples: int,
    *,
    seed: int = 0,
    resamples: int = 500,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Returns percentile intervals (Efron 1979) of numbers that are computed from whole examples.

    Args:
      statistics: names and numbers, of the examples at the given positions, (n,) integers; a
        number that is not finite is left out.
      examples: how many there are.
      seed: of the resampling, which is the same for all numbers.
      resamples: how many.
      confidence: coverage, in (0, 1).

    Returns:
      Lower and upper end for each name; NaN where the number never exists.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples if examples else 0):
        for name, value in statistics(generator.integers(0, examples, examples)).items():
            found.setdefault(name, []).append(value)
    tail = 100 * (1 - confidence) / 2
    intervals = {}
    for name, values in found.items():
        finite = [value for value in values if math.isfinite(value)]
        low, high = np.percentile(finite, [tail, 100 - tail]) if finite else (math.nan, math.nan)
        intervals[name] = (float(low), float(high))
    return intervals
