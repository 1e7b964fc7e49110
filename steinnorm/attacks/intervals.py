"""Exact counts, and confidence intervals of shares and of other statistics."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Tally(NamedTuple):
    """Counts of successes and trials, so that batches of unequal sizes are averaged exactly.

    Attributes:
      hits: number of successes.
      trials: number of trials.
    """

    hits: int = 0
    trials: int = 0

    @classmethod
    def of(cls, hit: np.ndarray) -> "Tally":
        """Counts the true values of a boolean array of any shape.

        Raises:
          TypeError: the array is not boolean.
        """
        hit = np.asarray(hit)
        if hit.dtype != np.bool_:
            raise TypeError(f"hit must be a boolean array; got dtype {hit.dtype}")
        return cls(int(hit.sum()), hit.size)

    def merge(self, other: "Tally") -> "Tally":
        """Returns the tally of both together."""
        return Tally(self.hits + other.hits, self.trials + other.trials)

    @property
    def share(self) -> float:
        """Hits / trials; NaN if nothing was counted."""
        return self.hits / self.trials if self.trials else math.nan


def wilson_interval(tally: Tally, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the confidence interval of a binomial share (Wilson 1927), computed by SciPy.

    Unlike share +- z * standard error it stays in [0, 1], and it is wider than a point at shares
    of 0 and 1.

    Args:
      tally: successes and trials.
      confidence: coverage, in (0, 1).

    Returns:
      Lower and upper end; (0, 1) if nothing was counted.

    Raises:
      ValueError: the confidence does not lie in (0, 1).

    Example:
      >>> low, high = wilson_interval(Tally(hits=45, trials=100))
      >>> f"{low:.3f} to {high:.3f}"
      '0.356 to 0.548'
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1); got {confidence}")
    if tally.trials == 0:
        return 0.0, 1.0
    # Imported here because scipy.stats takes about a second, which attacks alone need not wait for.
    from scipy.stats import binomtest  # noqa: PLC0415

    interval = binomtest(tally.hits, tally.trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_intervals(
    statistics: Callable[[np.ndarray], Mapping[str, float]],
    examples: int,
    *,
    seed: int = 0,
    resamples: int = 500,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Returns bootstrap percentile intervals (Efron 1979) of statistics over whole examples.

    ``scipy.stats.bootstrap`` does not do the same: it takes one statistic per call, so that the
    costly resamples would be evaluated once for each, and its interval is NaN as soon as the
    statistic is undefined in a single resample.

    Args:
      statistics: maps positions of examples, (n,) integers, to named values of these examples. A
        value that is not finite is left out.
      examples: number of examples.
      seed: seed of the resampling; all statistics share the resamples.
      resamples: number of resamples.
      confidence: coverage, in (0, 1).

    Returns:
      Lower and upper end for each name; NaN if its value was never finite. Empty if there are no
      examples.
    """
    generator = np.random.default_rng(seed)
    values_of: dict[str, list[float]] = {}
    for _ in range(resamples if examples else 0):
        for name, value in statistics(generator.integers(0, examples, examples)).items():
            values_of.setdefault(name, []).append(value)
    tail = 100 * (1 - confidence) / 2
    intervals = {}
    for name, values in values_of.items():
        finite = [value for value in values if math.isfinite(value)]
        low, high = np.percentile(finite, [tail, 100 - tail]) if finite else (math.nan, math.nan)
        intervals[name] = (float(low), float(high))
    return intervals
