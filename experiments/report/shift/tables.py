"""Markdown tables of scores on shifted test data, a row per rule and a column per batch size."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.evaluation.shift.plan import Condition
from experiments.evaluation.shift.rules import BATCH, MIXED, RUNNING
from experiments.report.shift.scores import Scores, estimate, is_clean

REFERENCES = (RUNNING, BATCH, MIXED)
_MEAN = "mean"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Returns a Markdown table whose first columns hold words and the others numbers.

    Args:
      header: of the columns.
      rows: of cells.
      words: how many columns hold words.
    """
    ruler = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *rows))


def mean_scores(scores: Scores, where: Callable[[Condition], bool] = lambda c: True) -> str:
    """Returns the table of mean scores over conditions, in percent."""
    sizes = [*scores.batch_sizes, None]
    rows = [
        [rule, *(f"{100 * scores.mean(rule, size, where)[0]:.1f}" for size in sizes)]
        for rule in scores.rules
    ]
    return markdown(_header(scores, _MEAN), rows)


def clean_scores(scores: Scores) -> str:
    """Returns the table of scores on clean examples, in percent."""
    return mean_scores(scores, is_clean)


def worst_leads(scores: Scores) -> str:
    """Returns the table of the worst condition of each rule and batch size.

    A cell is the lead over the better of running and batch, in points, where it is lowest.  The
    last column counts the conditions and batch sizes with a lead below -1 point.
    """
    rows = []
    for rule in scores.rules:
        found = [scores.leads(rule, size) for size in scores.batch_sizes]
        worst = [min(leads, key=leads.__getitem__) for leads in found]
        cells = [
            f"{_points(leads[c])} ({_short(c)})" for leads, c in zip(found, worst, strict=True)
        ]
        lowest = min(min(leads.values()) for leads in found)
        below = sum(lead < -0.01 for leads in found for lead in leads.values())
        total = len(found) * len(scores.conditions)
        rows.append([rule, *cells, _points(lowest), f"{below} of {total}"])
    return markdown([*_header(scores, "lowest"), "below -1"], rows)


def differences(scores: Scores) -> str:
    """Returns the table of paired differences of mean scores, in points, with 95 % intervals."""
    rows = []
    for rule in scores.rules:
        for reference in REFERENCES:
            if rule in REFERENCES[: REFERENCES.index(reference) + 1]:
                continue
            cells = []
            for size in [*scores.batch_sizes, None]:
                found = scores.mean(rule, size) - scores.mean(reference, size)
                cells.append(_interval(found))
            rows.append([rule, reference, *cells])
    return markdown(["rule", "less", *_header(scores, _MEAN)[1:]], rows, words=2)


def by_corruption(scores: Scores) -> str:
    """Returns the table of mean scores over severities and batch sizes, a row per corruption."""
    names = list(dict.fromkeys(c.corruption for c in scores.conditions))
    rows = []
    for name in names:
        found = [scores.mean(r, None, lambda c, n=name: c.corruption == n)[0] for r in scores.rules]  # type: ignore[misc]
        rows.append([name.replace("_", " "), *(f"{100 * value:.1f}" for value in found)])
    return markdown(["corruption", *scores.rules], rows)


def _header(scores: Scores, last: str) -> list[str]:
    return ["rule", *(f"B={size}" for size in scores.batch_sizes), last]


def _short(condition: Condition) -> str:
    name = condition.corruption.replace("_", " ")
    return f"{name} {condition.severity}" if condition.severity else name


def _interval(values: np.ndarray) -> str:
    value, low, high = estimate(values)
    return f"{_points(value)} [{_points(low)}, {_points(high)}]"


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: no minus before a zero
