"""The lead of one attack over another on the same examples, with a one-sided interval.

The interval is Student's (1908), over examples. If an example has many labels, the lead is a ratio
of two sums over examples, with the linearised standard error of Cochran (1977, Sampling Techniques,
section 6.4), because the pixels of an image are not independent. If one attack includes the other,
as restarts include the first run, and examples have one label, the lead is a share of the examples,
with the exact interval of Clopper & Pearson (1934).

For one label per example, Student's interval differs by at most one example from the exact
unconditional test for paired shares that orders by the score of Tango (1998, Statistics in Medicine
17:891). With a tolerance of one point and no true lead, 0.1 to 3.3 % of batches fail (100 examples;
1 to 10 % broken by each attack alone), or 0.3 to 2.9 % (128 examples). True leads of 2, 5 and 10
points, without losses, are detected in 5, 56 and 98 % of batches (100), or 11, 77 and 100 % (128);
with the exact interval in 14, 74 and 99 %, or 25, 89 and 100 %.

The intervals account for the choice of examples. If examples depend on their batch, there is only
one batch, and the intervals do not account for the choice of it.
"""

import math
from typing import NamedTuple

import numpy as np

from steinnorm.attacks.checks.findings import at_most, points

CONFIDENCE = 0.95
"""Coverage of the one-sided intervals."""


class BrokenLabels(NamedTuple):
    """Numbers of labels that an attack broke.

    Attributes:
      broken: number of each example's labels that are predicted wrong, (B,).
      known: number of each example's labels, without void pixels, (B,).
    """

    broken: np.ndarray
    known: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the labels that are still predicted right."""
        return 1 - float(self.broken.sum()) / float(self.known.sum())


class Lead(NamedTuple):
    """The lead of a first attack over a second one.

    Attributes:
      value: share of the labels broken by the first attack, minus that of the second.
      low: lower end of its one-sided interval.
      more: number of examples of which the first attack breaks more labels.
      fewer: number of examples of which it breaks fewer.
      enough: smallest lead whose interval would lie above the limit.
      confidence: coverage of the interval.
    """

    value: float
    low: float
    more: int
    fewer: int
    enough: float
    confidence: float

    def words(self, limit: float) -> str:
        """Returns the lead, its interval and limit, and the smallest detectable lead, as text."""
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
      gained: number of each example's labels that the first attack broke, minus that of the second,
        (B,).
      known: number of each example's labels, without void pixels, (B,).
      limit: allowed lead, used for ``Lead.enough``.
      confidence: coverage of the one-sided interval, in (0.5, 1).
      nested: whether the first attack includes the second, so that it cannot break less.

    Raises:
      ValueError: fewer than two examples have a label.
    """
    gained, known = (np.asarray(v, np.float64)[known > 0] for v in (gained, known))
    examples = len(known)
    if examples < 2:
        raise ValueError(f"an interval over examples needs two with a label; got {examples}")
    value, error = ratio(gained, known)
    more, fewer = int(np.sum(gained > 0)), int(np.sum(gained < 0))
    one_label = known.max() == 1

    def lower_end(counted: int) -> float:  # lower end if ``counted`` labels were gained
        if nested and not fewer:
            return _exact_low(counted, examples, confidence)
        mean = (counted - fewer) / examples
        spread = ((counted + fewer) / examples - mean**2) / (examples - 1)
        return mean - student_quantile(confidence, examples - 1) * math.sqrt(max(spread, 0.0))

    if one_label:
        low = lower_end(more)
        failing = (n for n in range(fewer, examples) if not at_most(lower_end(n), limit))
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

    SciPy has no such estimator.

    Args:
      hits: numerator of each example, (n,), n >= 2.
      known: denominator of each example, above 0, (n,).
    """
    share = float(hits.sum()) / float(known.sum())
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
