"""Compares norms with batch norm at the same clean score.

A network that is less accurate often looks more robust.  So batch norm is trained more than once,
narrower or for fewer epochs (controls), and a norm is compared with the line through these
networks: what batch norm would keep under the attack if its clean score were that of the norm.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from experiments.report.entries import Entry, reference_of
from experiments.report.labels import REFERENCE, Column, Source
from experiments.report.splits import standard_error
from experiments.results import CLEAN, CONVERGENCE, Row

Run = Sequence[Row]
"""All rows of one network."""

LEAST_RUNS = 3
"""A line through two runs has no spread to tell anything by."""


class Line(NamedTuple):
    """Scores under an attack against clean scores, of batch norm's runs.

    Attributes:
      clean: (m,) scores of the runs on clean examples.
      attacked: (m,) under the attack.
      slope: of the least-squares line.
      variance: of the runs about it, with m - 2 degrees of freedom.
    """

    clean: np.ndarray
    attacked: np.ndarray
    slope: float
    variance: float

    def at(self, clean: np.ndarray) -> np.ndarray:
        """Returns the scores under attack at clean scores."""
        return self.attacked.mean() + self.slope * (clean - self.clean.mean())

    def variance_at(self, clean: float) -> float:
        """Returns the variance of the line itself at a clean score."""
        away = (clean - self.clean.mean()) ** 2 / np.square(self.clean - self.clean.mean()).sum()
        return float(self.variance * (1 / len(self.clean) + away))

    def reaches(self, clean: float) -> bool:
        """Returns whether runs lie on both sides of a clean score."""
        return bool(self.clean.min() <= clean <= self.clean.max())


def fit(clean: np.ndarray, attacked: np.ndarray) -> Line | None:
    """Fits the line; None for too few runs, or where all have one clean score."""
    if len(clean) < LEAST_RUNS or np.ptp(clean) == 0:
        return None
    centred = clean - clean.mean()
    slope = float(centred @ attacked / (centred @ centred))
    residuals = attacked - attacked.mean() - slope * centred
    return Line(clean, attacked, slope, float(residuals @ residuals) / (len(clean) - 2))


def at_equal_accuracy(
    entries: Sequence[Entry],
    runs: Sequence[Run],
    controls: Sequence[Run],
    test_per_training: float | None = None,
) -> list[Entry]:
    """Returns entries whose differences are to batch norm's line, at their own clean score.

    Args:
      entries: of the runs' rows, merged.
      runs: of all norms; batch norm's own belong to the line.
      controls: batch norm's other runs.
      test_per_training: test examples per training example, where each seed drew both from one
        set (``splits.standard_error``): neither the norm's runs nor those of the line are
        independent then.

    Returns:
      Entries under attack, of other norms than batch norm, where batch norm has runs on both sides
      of the norm's clean score.  Differences are in the metric's own unit, their deviation is that
      of the norm's runs about the line.  The 95 % interval is Welch's (1947), for two means of
      unequal variance: that of the norm's runs, and that of the line at their clean score; it is
      NaN for fewer than three runs.
    """
    found = []
    for entry in entries:
        if entry.norm == REFERENCE or entry.attack in (CLEAN, CONVERGENCE):
            continue
        line = line_of(entry, [*runs, *controls])
        own = scores([run for run in runs if run[0].norm == entry.norm], entry.source, entry)
        if line is None or not len(own) or not line.reaches(own[:, 0].mean()):
            continue
        gains = own[:, 1] - line.at(own[:, 0])
        low, high = _interval(gains, line, own[:, 0].mean(), test_per_training)
        found.append(
            dataclasses.replace(
                entry,
                reference=f"{REFERENCE}, at the same clean score",
                pairs=len(own),
                difference=float(gains.mean()),
                difference_std=float(gains.std(ddof=1)) if len(gains) > 1 else math.nan,
                difference_low=low,
                difference_high=high,
            )
        )
    return found


def line_of(entry: Entry, runs: Sequence[Run]) -> Line | None:
    """Returns the line that an entry is compared with; None where there are too few runs.

    Args:
      entry: of any norm.
      runs: of any norms; those of batch norm are used.
    """
    source = entry.source
    if entry.norm != REFERENCE:
        _, source = reference_of(entry.norm, source)
    found = scores([run for run in runs if run[0].norm == REFERENCE], source, entry)
    return fit(found[:, 0], found[:, 1])


def scores(runs: Sequence[Run], source: Source, entry: Entry) -> np.ndarray:
    """Returns (runs, 2) scores, clean and under the entry's attack, of runs that have both."""
    found = []
    for run in runs:
        rows = [row for row in run if row.metric == entry.metric]
        # What nobody attacks has no threat model of its own.
        clean = [
            row.value for row in rows if row.attack == CLEAN and row.statistics == source.statistics
        ]
        attacked = [
            row.value
            for row in rows
            if Column(row.attack, row.epsilon, row.norm_order) == entry.column
            and Source(row.statistics, row.threat_model) == source
        ]
        if clean and attacked:
            found.append((clean[0], attacked[0]))
    return np.array(found).reshape(-1, 2)


def _interval(
    gains: np.ndarray, line: Line, clean: float, ratio: float | None
) -> tuple[float, float]:
    """Returns Welch's interval of the mean gain over the line."""
    if len(gains) < LEAST_RUNS:
        return math.nan, math.nan
    own = standard_error(gains.std(ddof=1), len(gains), ratio) ** 2
    other = line.variance_at(clean) + line.variance * (ratio or 0.0)
    total = own + other
    if not total > 0:
        return math.nan, math.nan
    freedom = total**2 / (own**2 / (len(gains) - 1) + other**2 / (len(line.clean) - 2))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(total)
    return float(gains.mean()) - half, float(gains.mean()) + half
