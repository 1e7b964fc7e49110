"""Merges seeds, and compares each norm with batch norm under the same statistics."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import numpy as np
from scipy.special import stdtrit

from experiments.report.labels import REFERENCE, Column, Source
from experiments.report.splits import standard_error
from experiments.results import CONVERGENCE, Row


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cell of a table: a norm, a source of statistics, an attack, a metric; all seeds.

    Attributes:
      config: the experiment's name.
      metric: what the numbers are.
      norm: the norm.
      statistics: the source of its statistics.
      threat_model: as in ``Row``.
      attack: ``clean`` or the attack's name.
      epsilon: the attack's strength in units of the image range.
      norm_order: of the attack's ball; empty where there is none.
      steps: the attack's gradient steps.
      step_size: their absolute size.
      seeds: how many seeds.
      n: test examples per seed; the fewest, where each drew its own parts of the data.
      most_n: the most.
      mean: over the seeds.
      std: between the seeds (n - 1 in the divisor); NaN for one seed.
      lowest: the smallest value of a seed.
      highest: the largest.
      ci_low: of one seed, lower end of the 95 % interval over its examples; NaN for several.
      ci_high: upper end.
      reference: norm and source that it is compared with; empty for batch norm with running
        statistics itself.
      pairs: seeds that the reference was measured with too, on as many examples; worst cases also
        over the same attacks.
      difference: to the reference of the same seed, mean; NaN where there is no reference.
      difference_std: between the seeds; NaN for one seed.
      difference_low: lower end of its 95 % interval: of one seed the paired one over the examples,
        where results per example are kept; of three and more Student's, over the seeds (wider where
        each drew its own parts of the data: ``splits.standard_error``); else NaN.
      difference_high: upper end.
    """

    config: str
    metric: str
    norm: str
    statistics: str
    threat_model: str
    attack: str
    epsilon: float
    norm_order: str
    steps: int
    step_size: float
    seeds: int
    n: int
    most_n: int
    mean: float
    std: float
    lowest: float
    highest: float
    ci_low: float
    ci_high: float
    reference: str
    pairs: int
    difference: float
    difference_std: float
    difference_low: float
    difference_high: float

    @property
    def column(self) -> Column:
        """The column that this belongs to."""
        return Column(self.attack, self.epsilon, self.norm_order)

    @property
    def source(self) -> Source:
        """The source of its statistics."""
        return Source(self.statistics, self.threat_model)


_NO_SPREAD = 1e-9  # differences that are equal but for rounding

Interval = tuple[float, float]
Paired = Callable[[Row, Row], Interval | None]
"""The interval of the difference of two rows, from results per example; None without these."""

_Key = tuple[str, str, str, Source, Column, int]
_Pairs = Sequence[tuple[Row, Row]]


def merge_seeds(
    rows: Iterable[Row],
    paired: Paired = lambda row, reference: None,
    test_per_training: float | None = None,
) -> list[Entry]:
    """Merges the seeds of each (metric, norm, source, attack), in order of first appearance.

    Args:
      rows: their order does not matter for the numbers.
      paired: called with a row and its reference where there is one pair only.
      test_per_training: test examples per training example, where each seed drew both from one
        data set; None where all seeds have the same parts.
    """
    groups: dict[_Key, dict[int, Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), {})[row.seed] = row
    interval = functools.partial(_interval, paired=paired, ratio=test_per_training)
    return [_entry(key, by_seed, groups, interval) for key, by_seed in groups.items()]


def _key(row: Row) -> _Key:
    source = Source(row.statistics, row.threat_model)
    column = Column(row.attack, row.epsilon, row.norm_order)
    return row.config, row.metric, row.norm, source, column, row.steps


def _entry(
    key: _Key,
    by_seed: dict[int, Row],
    groups: dict[_Key, dict[int, Row]],
    interval_of: Callable[[_Pairs, Sequence[float]], Interval | None],
) -> Entry:
    config, metric, norm, source, column, steps = key
    other_norm, other_source = reference_of(norm, source)
    other = groups.get((config, metric, other_norm, other_source, column, steps), {})
    pairs = [
        (row, other[s])
        for s, row in by_seed.items()
        # Worst cases over different attacks cannot be compared.
        if s in other and (other[s].n, other[s].over) == (row.n, row.over)
    ]
    is_itself = (norm, source) == (other_norm, other_source)
    differences = [row.value - reference.value for row, reference in pairs]
    values = [row.value for row in by_seed.values()]
    first = next(iter(by_seed.values()))
    low, high = (first.ci_low, first.ci_high) if len(values) == 1 else (math.nan, math.nan)
    interval = None if is_itself else interval_of(pairs, differences)
    return Entry(
        config=config,
        metric=metric,
        norm=norm,
        **source._asdict(),
        **column._asdict(),
        steps=steps,
        step_size=first.step_size,
        seeds=len(values),
        n=min(row.n for row in by_seed.values()),
        most_n=max(row.n for row in by_seed.values()),
        mean=fmean(values),
        std=_std(values),
        lowest=min(values),
        highest=max(values),
        ci_low=low,
        ci_high=high,
        reference="" if is_itself else f"{other_norm}, {other_source.name}",
        pairs=0 if is_itself else len(pairs),
        difference=fmean(differences) if differences else math.nan,
        difference_std=_std(differences),
        difference_low=interval[0] if interval else math.nan,
        difference_high=interval[1] if interval else math.nan,
    )


def reference_of(norm: str, source: Source) -> tuple[str, Source]:
    """Returns what a norm is compared with: batch norm under the same statistics.

    Batch norm itself, and a norm without batch statistics, with batch norm under running ones.
    """
    if norm == REFERENCE or source.statistics == "none":
        return REFERENCE, Source("running")
    return REFERENCE, source


def _interval(
    pairs: _Pairs, differences: Sequence[float], *, paired: Paired, ratio: float | None
) -> Interval | None:
    """Returns the 95 % interval of a mean difference, where there is one worth the name.

    Two seeds have none: Student's would be nine times their standard deviation.  Nor have seeds
    that all differ by the same number of examples.
    """
    if len(pairs) == 1:
        return paired(*pairs[0])
    spread = _std(differences)
    if len(pairs) < 3 or not spread > _NO_SPREAD:
        return None
    error = standard_error(spread, len(pairs), ratio)
    half = float(stdtrit(len(pairs) - 1, 0.975)) * error
    return fmean(differences) - half, fmean(differences) + half


def _std(values: Sequence[float]) -> float:
    # A NaN makes statistics.stdev fail in another way in each version of Python.
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def tabled(entries: Iterable[Entry], metric: str) -> list[Entry]:
    """Returns those of one metric that stand in tables: all but the curve against steps."""
    return [s for s in entries if s.metric == metric and s.attack != CONVERGENCE]
