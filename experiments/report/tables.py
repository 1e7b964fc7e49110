"""Writes tables in Markdown, LaTeX and CSV, all from the same body."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.report.entries import Entry
from experiments.report.labels import Column
from experiments.report.layout import lines_of
from experiments.report.measures import Measure, measure
from experiments.results import CONVERGENCE

WIDTH = 6
"""Columns of numbers per table in files: more do not fit on a page."""


class Content(NamedTuple):
    """What a table shows.

    Attributes:
      entries: of one experiment and metric.
      columns: in this order.
      differences: to the reference, instead of values.
    """

    entries: Sequence[Entry]
    columns: Sequence[Column]
    differences: bool = False


def value_caption(metric: str, *, short: bool = False) -> str:
    """Returns what a table of values shows; ``short`` where intervals have no room."""
    what = measure(metric)
    unit = f" in {what.unit}" if what.unit else ""
    start = f"{what.heading}{unit}: mean over the seeds ± standard deviation between them"
    if short:
        return f"{start}."
    kind = "Wilson's" if metric == "accuracy" else "bootstrap"
    return f"{start}; of one seed with its 95 % interval over the test examples ({kind})."


def difference_caption(metric: str, *, short: bool = False) -> str:
    """Returns what a table of differences shows; ``short`` where intervals have no room."""
    what = measure(metric)
    points = ", in percentage points" if what.unit == "%" else f", in {what.unit}" * bool(what.unit)
    over_examples = (
        ", of one seed with the paired 95 % interval over the test examples where these are kept"
        if metric == "accuracy"
        else ""
    )
    interval = (
        "" if short else f"; of three seeds or more with Student's 95 % interval{over_examples}"
    )
    return (
        f"Difference in {what.title}{points}, paired by seed, mean ± standard deviation{interval}. "
        "Each norm is compared with batch norm under the same statistics, group norm with batch "
        "norm under running ones. Batch norm with statistics of the test batch is compared with "
        "'batch, running': what the source of the statistics does without any shrinkage."
    )


INTERVALS = (
    "With statistics of the test batch its examples fall together, which intervals over examples "
    "do not know: there they are too narrow."
)


def value_text(entry: Entry, *, short: bool = False) -> str:
    """Returns a value with its spread: ``98.5±0.7`` or, of one seed, ``98.5 [97.0, 99.3]``."""
    what = measure(entry.metric)
    text = what.text(entry.mean)
    if not math.isnan(entry.std):
        return f"{text}±{what.text(entry.std)}"
    return text if short else text + _range(what, entry.ci_low, entry.ci_high)


def difference_text(entry: Entry, *, short: bool = False) -> str:
    """Returns a difference with its interval, else its spread; a dash for the reference itself."""
    if not entry.reference:
        return "–"
    what = measure(entry.metric)
    text = what.text(entry.difference, signed=True)
    low, high = entry.difference_low, entry.difference_high
    if not (short or math.isnan(low)):
        return text + _range(what, low, high, signed=True)
    has_spread = not math.isnan(entry.difference_std)
    return f"{text}±{what.text(entry.difference_std)}" if has_spread else text


def _range(what: Measure, low: float, high: float, *, signed: bool = False) -> str:
    if math.isnan(low) or math.isnan(high):
        return ""
    return f" [{what.text(low, signed=signed)}, {what.text(high, signed=signed)}]"


def pages(columns: Sequence[Column], width: int = WIDTH) -> list[list[Column]]:
    """Returns columns in portions that fit; those of one attack stay together if they can."""
    found: list[list[Column]] = []
    families: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        families.setdefault((column.attack, column.norm_order), []).append(column)
    for family in families.values():
        for start in range(0, len(family), width):
            part = family[start : start + width]
            if found and len(found[-1]) + len(part) <= width:
                found[-1] += part
            else:
                found.append(part)
    return found


def markdown_table(content: Content) -> str:
    """Returns a table without caption: text to the left, numbers to the right."""
    header = ["norm", "statistics", "seeds × n", *(c.name for c in content.columns)]
    ruler = ["---", "---", "---:", *("---:" for _ in content.columns)]
    lines = [header, ruler, *([*left, *texts] for left, texts in table_body(content))]
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped) + "\n"


def latex_table(content: Content) -> str:
    """Returns a ``tabular`` with booktabs' rules, a block per source of statistics."""
    header = ["norm", "statistics", "seeds × n", *(c.name for c in content.columns)]
    lines = [f"\\begin{{tabular}}{{ll{'r' * (1 + len(content.columns))}}}", "\\toprule"]
    lines.append(_latex_line(header))
    source = None
    for left, texts in table_body(content):
        if source != left[1]:
            lines.append("\\midrule")
        source = left[1]
        lines.append(_latex_line([*left, *texts]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(latex(text) for text in texts) + r" \\"


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "ε": r"$\varepsilon$",
    "–": "--",
}


def latex(text: str) -> str:
    """Returns text in which LaTeX reads no sign as a command."""
    # A line that began with a bracket would be the optional argument of the \\ before it.
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def table_body(
    content: Content, *, short: bool = False
) -> list[tuple[tuple[str, str, str], list[str]]]:
    """Returns norm, source and numbers of examples of each line, and its numbers."""
    found = {(s.norm, s.source, s.column): s for s in content.entries}
    write: Callable[..., str] = difference_text if content.differences else value_text
    body = []
    for norm, source in lines_of(content.entries):
        entries = [found.get((norm, source, column)) for column in content.columns]
        texts = ["" if entry is None else write(entry, short=short) for entry in entries]
        sizes = dict.fromkeys(_sizes(entry) for entry in entries if entry is not None)
        if any(texts):
            body.append(((norm, source.name, ", ".join(sizes)), texts))
    return body


def _sizes(entry: Entry) -> str:
    return f"{entry.seeds} × {entry.n}" + f"–{entry.most_n}" * (entry.most_n > entry.n)


def csv_table(entries: Sequence[Entry]) -> str:
    """Returns every entry, one a line; empty where a number does not exist.

    Runs that differ in their steps only, for the plot of convergence, are left to the rows.
    """
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(Entry)]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for entry in (s for s in entries if s.attack != CONVERGENCE):
        values = dataclasses.asdict(entry)
        writer.writerow(
            {
                name: "" if isinstance(value, float) and math.isnan(value) else value
                for name, value in values.items()
            }
        )
    return buffer.getvalue()
