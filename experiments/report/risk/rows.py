"""Selecting rows of a measurement, and writing numbers and tables of them."""

from collections.abc import Iterable, Sequence
from typing import Any

from experiments.evaluation.risk.monte_carlo import Row

Rows = dict[str, list[Row]]
"""Part -> its rows."""


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Returns the rows whose columns have the wanted values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def values(rows: Iterable[Row], column: str) -> list[Any]:
    """Returns the different values of a column, in the order of their first rows."""
    return list(dict.fromkeys(row[column] for row in rows if column in row))


def number(value: float) -> str:
    """Returns a ratio in as many digits as a reader needs."""
    if value < 0.1:
        return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def finer(value: float) -> str:
    """Returns a ratio near 1 with three decimals."""
    return f"{value:.3f}" if 0.0095 <= value < 10 else number(value)


def interval(row: Row) -> str:
    """Returns a ratio with its 95 % interval."""
    write = finer if 0.1 <= row["ratio"] < 10 else number
    return f"{write(row['ratio'])} [{write(row['ci_low'])}, {write(row['ci_high'])}]"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown; columns after the first are set to the right.

    Args:
      header: the names of the columns.
      lines: the cells of each line.
    """
    ruler = ("---", *("---:" for _ in header[1:]))
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *lines))
