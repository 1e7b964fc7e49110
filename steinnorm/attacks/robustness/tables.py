"""Tables of rows as text, CSV and Markdown."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

from steinnorm.attacks.checks import FAIL, NOT_APPLICABLE, Finding
from steinnorm.attacks.robustness.rows import NONE, Row

_HEAD = ("attack", "radius", "accuracy", "95 % interval", "n")

CHECKS_MADE = "checks_made"
"""Name of the single finding if the checks could not be made."""


def radius_text(epsilon: float, norm_order: str) -> str:
    """Returns a radius in the usual notation: ``8/255`` for linf, ``0.5`` otherwise.

    Args:
      epsilon: the radius; for noise the root mean square.
      norm_order: norm of the ball; empty if there is none.
    """
    multiple = 255 * epsilon
    small = norm_order == "linf" and 0 < multiple < 64.5
    if small and abs(multiple - round(multiple)) < 1e-6:
        return f"{round(multiple)}/255"
    return f"{epsilon:.4g}"


def terminal_table(rows: Sequence[Row]) -> str:
    """Returns a table with aligned columns."""
    lines = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(_HEAD))]
    name, *numbers = widths
    return "\n".join(
        "  ".join(
            [
                f"{line[0]:<{name}}",
                *(f"{cell:>{width}}" for cell, width in zip(line[1:], numbers, strict=True)),
            ]
        )
        for line in lines
    )


def markdown_table(
    rows: Sequence[Row], findings: Sequence[Finding], notes: Sequence[str] = ()
) -> str:
    """Returns the table and the checks in Markdown.

    Args:
      rows: rows of the evaluation.
      findings: findings of its checks; may be empty.
      notes: remarks above the table.
    """
    lines = [f"**{_cell(note)}**\n" for note in notes]
    lines += [_line(_HEAD), "|---|---:|---:|---:|---:|"]
    lines += [_line(_cells(row)) for row in rows]
    what = "known pixels" if rows and rows[0].metric == "pixel_accuracy" else "examples"
    lines += ["", f"Share of the {what} that the model gets right; n: examples."]
    if findings:
        lines += ["", "| check | verdict | |", "|---|---|---|"]
        lines += [_line((f.name, f.verdict, f.detail)) for f in findings]
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """Returns all fields of all rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(as_json(row) for row in rows)
    return text.getvalue()


def as_json(row: Row) -> dict[str, object]:
    """Returns the fields of a row; NaN becomes None, because JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in dataclasses.asdict(row).items()
    }


def checks_text(findings: Sequence[Finding]) -> str:
    """Returns the number and the names of the failed checks as text."""
    if not findings:
        return "no checks were made"
    if findings[0].name == CHECKS_MADE:
        return findings[0].detail
    failed = [finding.name for finding in findings if finding.verdict == FAIL]
    made = sum(finding.verdict != NOT_APPLICABLE for finding in findings)
    if not failed:
        return f"checks: {made} of {made} passed"
    return f"checks: {len(failed)} of {made} FAILED: {', '.join(failed)}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.attack,
        # Clean inputs have no radius; 0 is one, that of an attack which may change nothing.
        "" if row.attack == NONE else radius_text(row.epsilon, row.norm_order),
        f"{100 * row.value:.1f} %",
        f"{100 * row.ci_low:.1f} to {100 * row.ci_high:.1f}",
        str(row.n),
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
