"""Whether one attack is ahead of another on the same examples, by a one-sided interval.

The interval is Student's (1908), over examples.  Where an example has many labels, the lead is a
ratio of two sums over examples and its error the linearised one (Cochran 1977, Sampling Techniques,
section 6.4): the pixels of an image fall together, so that they are no draws of their own.  Where
the one attack holds the other, as restarts hold the first of them, and examples have one label, the
lead is a share of the examples, and its interval that of Clopper & Pearson (1934), which is exact.

For one label per example Student's interval comes within one example of the exact unconditional
test for paired shares that orders by the score of Tango (1998, Statistics in Medicine 17:891).
With a tolerance of one point it fails, of batches in which neither attack is truly ahead, 0.1 to
3.3 % (100 examples; 1 to 10 % broken by each alone) or 0.3 to 2.9 % (128).  A true lead of 2, 5
and 10 points with nothing lost is found in 5, 56 and 98 % (100) or 11, 77 and 100 % (128); by the
exact interval in 14, 74 and 99 % or 25, 89 and 100 %.

The intervals are about other examples.  Where examples depend on their batch there is one batch,
and how much another one would differ is not in them.
"""

import math
from typing import NamedTuple

import numpy as np

from steinnorm.attacks.checks.findings import at_most, points

CONFIDENCE = 0.95
"""Coverage of the one-sided intervals."""


class Broken(NamedTuple):
    """What an attack broke of each example.

    Attributes:
      broken: (B,) how many of the known labels are wrong now.
      known: (B,) how many there are.
    """

    broken: np.ndarray
    known: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the known labels that are still right."""
        return 1 - float(self.broken.sum() / self.known.sum())


class Lead(NamedTuple):
    """By how much one attack is ahead of another.

    Attributes:
      value: share of the known labels that the first breaks beyond the second.
      low: lower end of its one-sided interval.
      more: examples of which the first breaks more.
      fewer: examples of which it breaks fewer.
      enough: the smallest lead that would have been above the limit.
      confidence: coverage of the interval.
    """

    value: float
    low: float
    more: int
    fewer: int
    enough: float
    confidence: float

    def words(self, limit: float) -> str:
        """Returns the number, its interval, its limit, and what could have been found."""
        return (
            f"ahead by {points(self.value)} ({self.more} examples for it, {self.fewer} against), "
            f"lower end of the one-sided {100 * self.confidence:g} % interval {points(self.low)}, "
            f"at most {points(limit)} allowed; a lead of "
            f"{points(self.enough)} would have been enough to fail"
        )


def lead(
    gained: np.ndarray,
    known: np.ndarray,
    *,
    limit: float,
    confidence: float = CONFIDENCE,
    nested: bool = False,
) -> Lead:
    """Returns the lead of one attack over another with its interval.

    Args:
      gained: (B,) how many labels of each example the first broke, less those of the second.
      known: (B,) how many known labels each example has.
      limit: the lead that is allowed, for ``Lead.enough``.
      confidence: coverage of the one-sided interval, in (0.5, 1).
      nested: whether the first attack holds the second, so that it cannot break less.

    Raises:
      ValueError: fewer than two examples have a known label.
    """
    gained, known = (np.asarray(v, np.float64)[known > 0] for v in (gained, known))
    examples = len(known)
    if examples < 2:
        raise ValueError(f"an interval over examples needs two; got {examples}")
    value, error = ratio(gained, known)
    more, fewer = int(np.sum(gained > 0)), int(np.sum(gained < 0))
    single = known.max() == 1

    def low_of(counted: int) -> float:  # with one label each, were so many gained
        if nested and not fewer:
            return _exact_low(counted, examples, confidence)
        mean = (counted - fewer) / examples
        spread = ((counted + fewer) / examples - mean**2) / (examples - 1)
        return mean - student_quantile(confidence, examples - 1) * math.sqrt(max(spread, 0.0))

    if single:
        low = low_of(more)
        failing = (n for n in range(fewer, examples) if not at_most(low_of(n), limit))
        enough = (next(failing, examples) - fewer) / examples
    else:
        half = student_quantile(confidence, examples - 1) * error
        low, enough = value - half, limit + half
    return Lead(value, low, more, fewer, enough, confidence)


def _exact_low(hits: int, trials: int, confidence: float) -> float:
    """Returns the lower end of a share's one-sided interval (Clopper & Pearson 1934)."""
    if not hits:
        return 0.0
    from scipy.special import betaincinv  # noqa: PLC0415 - takes 0.3 s, which only checks need

    return float(betaincinv(hits, trials - hits + 1, 1 - confidence))


def ratio(hits: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Returns a ratio of two sums over examples, and its standard error (Cochran 1977).

    Args:
      hits: (n,) the numerator of each example, n >= 2.
      known: (n,) the denominator of each, above 0.
    """
    share = float(hits.sum() / known.sum())
    residual = hits - share * known
    variance = float(np.sum(residual**2)) / (len(hits) - 1) / len(hits)
    return share, math.sqrt(variance) / float(known.mean())


def student_quantile(confidence: float, freedom: int) -> float:
    """Returns the quantile of Student's t distribution (Student 1908).

    Args:
      confidence: probability of a value below the quantile, in (0, 1).
      freedom: degrees of freedom, at least 1.
    """
    from scipy.special import stdtrit  # noqa: PLC0415 - takes 0.3 s, which only checks need

    return float(stdtrit(freedom, confidence))
