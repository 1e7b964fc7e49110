"""Says where batch norm with test-batch statistics was not measured.

Plain batch norm gains by statistics of the test batch alone; without that number a gain cannot be
put down to shrinkage.
"""

from collections.abc import Sequence

from experiments.report.labels import REFERENCE, Column
from experiments.results import CONVERGENCE, Row

_START = "MISSING: batch norm with test-batch statistics was not measured"
_END = "; without it no gain of shrinkage can be told from what test-batch statistics do alone."
_ALONE = ("independent", "companion")


def missing_reference(rows: Sequence[Row]) -> str:
    """Returns what is missing, in words.

    Args:
      rows: of one experiment.

    Returns:
      Empty where nothing is missing, or no norm shrinks anything.
    """
    measured = {
        (row.seed, _column(row), _threat(row))
        for row in rows
        if row.norm == REFERENCE and row.statistics == "batch"
    }
    absent = {
        (row.seed, _column(row))
        for row in rows
        if row.norm not in (REFERENCE, "group")
        and row.attack != CONVERGENCE
        and (row.seed, _column(row), _threat(row)) not in measured
    }
    if not absent:
        return ""
    if not measured:
        return _START + _END
    by_column: dict[str, set[int]] = {}
    for seed, column in sorted(absent):
        by_column.setdefault(column.name, set()).add(seed)
    what = ", ".join(
        f"{name} (seed {', '.join(map(str, sorted(seeds)))})" for name, seeds in by_column.items()
    )
    return f"{_START} for {what}{_END}"


def _column(row: Row) -> Column:
    return Column(row.attack, row.epsilon, row.norm_order)


def _threat(row: Row) -> str:
    """Returns who attacks whom; with running statistics it is an attack on all examples."""
    return row.threat_model if row.threat_model in _ALONE else "joint"
