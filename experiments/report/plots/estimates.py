"""What a point of a plot is: a value, its bar, and what the bar means."""

import dataclasses
import math
from collections.abc import Sequence

from experiments.report.entries import Entry, reference_of
from experiments.report.labels import REFERENCE, Source
from experiments.report.measures import measure


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number as it is drawn, in the unit of the axis.

    Attributes:
      value: NaN where there is none.
      low: lower end of the bar; NaN where there is no bar.
      high: upper end.
      is_interval: whether the bar is a 95 % interval, not a standard deviation.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    is_interval: bool = False

    @property
    def excludes_zero(self) -> bool:
        """Whether the bar is an interval and zero lies outside."""
        return self.is_interval and not self.low <= 0.0 <= self.high

    @property
    def bar(self) -> tuple[list[float], list[float]] | None:
        """The lengths of the bar below and above, as ``Axes.errorbar`` takes them; None without."""
        if math.isnan(self.low) or math.isnan(self.high):
            return None
        # An interval over whole examples may miss the mean; negative lengths are refused.
        return [max(0.0, self.value - self.low)], [max(0.0, self.high - self.value)]


def absolute(s: Entry) -> Estimate:
    """Returns a score: of several seeds ± their standard deviation, of one its interval."""
    scale = measure(s.metric).scale
    low, high = (s.mean - s.std, s.mean + s.std) if s.seeds > 1 else (s.ci_low, s.ci_high)
    return Estimate(scale * s.mean, scale * low, scale * high, s.seeds == 1)


def difference(s: Entry) -> Estimate:
    """Returns the paired difference to batch norm under the same statistics.

    One pair of seeds has the interval over its examples, where results per example are kept.  Two
    have ± their standard deviation: their t-interval would be nine times as long, and of no length
    where both happen to differ by the same number of examples.  Three and more have the t-interval.
    """
    scale = measure(s.metric).scale
    if s.pairs == 0:
        return Estimate(math.nan)
    if s.pairs == 1 or not math.isnan(s.difference_low):
        low, high = scale * s.difference_low, scale * s.difference_high
        return Estimate(scale * s.difference, low, high, not math.isnan(low))
    low, high = s.difference - s.difference_std, s.difference + s.difference_std
    return Estimate(scale * s.difference, scale * low, scale * high, False)


def is_share(metric: str) -> bool:
    """Tells whether a score lies between 0 and 1, and more is better."""
    what = measure(metric)
    return what.unit == "%" or what.title == "AUC"


def is_loss(metric: str) -> bool:
    """Tells whether less of a score is better."""
    return measure(metric).title == "loss"


def is_compared(s: Entry) -> bool:
    """Tells whether the entry has a difference to batch norm under the same statistics."""
    # Batch norm's own difference compares two sources of statistics, not two norms.
    return s.norm != REFERENCE and s.pairs > 0


def compared_under(s: Entry) -> Source:
    """Returns the source whose batch norm the entry is compared with."""
    return reference_of(s.norm, s.source)[1]


def explain_absolute(points: Sequence[Entry]) -> str:
    """Says what the bars of ``absolute`` are."""
    several = {s.seeds for s in points if s.seeds > 1}
    said = [f"± standard deviation over {_span(several)} seeds"] if several else []
    if single := {s.n for s in points if s.seeds == 1}:
        said.append(f"95 % interval over {_span(single)} test examples, one seed")
    return "; ".join(said)


def explain_difference(points: Sequence[Entry]) -> str:
    """Says what the bars of ``difference`` are."""
    said = []
    if many := {s.pairs for s in points if s.pairs > 2}:
        said.append(f"95 % t-interval over {_span(many)} seeds")
    if any(s.pairs == 2 for s in points):
        said.append("± standard deviation over 2 seeds (too few for an interval)")
    ones = [s for s in points if s.pairs == 1]
    kept = [s for s in ones if not math.isnan(s.difference_low)]
    if kept:
        # Examples that share statistics fall together, which the interval does not know.
        shared = any(s.source.is_shared for s in kept)
        more = " (too narrow with test-batch statistics)" if shared else ""
        said.append(
            f"95 % interval over {_span({s.n for s in kept})} test examples, one seed{more}"
        )
    if not said:
        return "none (one seed, without results per example)"
    return "; ".join(said)


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
