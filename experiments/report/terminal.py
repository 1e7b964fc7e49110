"""Tables for a terminal, no wider than it is."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from experiments.report.entries import Entry, tabled
from experiments.report.labels import REFERENCE, Column, Source
from experiments.report.layout import short_columns
from experiments.report.measures import measure
from experiments.report.tables import (
    Content,
    difference_caption,
    pages,
    table_body,
    value_caption,
)
from experiments.results import CONVERGENCE, Check, Row


def comparison_tables(
    entries: Sequence[Entry], metric: str, wanted: Sequence[Column], width: int
) -> Iterator[str | Table]:
    """Yields captions and tables: values, then differences to batch norm, of a few columns.

    Args:
      entries: of one experiment.
      metric: which of its scores.
      wanted: columns that the configuration shows.
      width: of the terminal, in characters.
    """
    shown = tabled(entries, metric)
    portions = pages(short_columns(shown, wanted), columns_that_fit(width))
    for differences, caption in ((False, value_caption), (True, difference_caption)):
        yield caption(metric, short=True)
        for portion in portions:
            yield terminal_table(Content(shown, portion, differences))


def columns_that_fit(width: int) -> int:
    """Returns how many columns of numbers fit beside the names of norms and statistics."""
    return max(1, (width - 31) // 11)


def terminal_table(content: Content) -> Table:
    """Returns a table of values or differences.

    Args:
      content: of no more columns than fit (``columns_that_fit``).
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        # One space less between many columns, so that the widest differences fit.
        padding=(0, int(len(content.columns) <= 6), 0, 0),
    )
    table.add_column("norm", no_wrap=True)
    table.add_column("statistics", no_wrap=True)
    for column in content.columns:
        # One word a line: a header must not be wider than the numbers below it.
        words = column.name.replace("-", " ").split()
        table.add_column("\n".join(words), justify="right", vertical="bottom")
    threats = {s.threat_model for s in content.entries} - {""}
    source = None
    for left, texts in table_body(content, short=True):
        if source not in (None, left[1]):
            table.add_section()
        source = left[1]
        # The only one there is need not be named at the cost of width.
        name = source.removesuffix(" (joint)") if threats <= {"joint"} else source
        table.add_row(left[0], name, *texts, style="bold" if left[0] == REFERENCE else "")
    return table


def measurement_table(rows: Sequence[Row], metric: str) -> Table:
    """Returns the scores of one run: a line per attack, a column per source of statistics.

    Args:
      rows: of one run.
      metric: which of their scores.
    """
    what = measure(metric)
    shown = [row for row in rows if row.metric == metric and row.attack != CONVERGENCE]
    sources = sorted({_source(row) for row in shown}, key=lambda source: source.place)
    lines = dict.fromkeys(Column(row.attack, row.epsilon, row.norm_order) for row in shown)
    texts = {(Column(row.attack, row.epsilon, row.norm_order), _source(row)): row for row in shown}
    title = f"{what.label[:1].upper()}{what.label[1:]} [95 % interval]"
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    table.add_column("attack", no_wrap=True)
    for source in sources:
        name = source.name if source.statistics != "none" else "no statistics"
        table.add_column(name.replace(" (", "\n("), justify="right", vertical="bottom")
    for line in lines:
        cells = []
        for source in sources:
            row = texts.get((line, source))
            ends = f"[{what.text(row.ci_low)}, {what.text(row.ci_high)}]" if row else ""
            cells.append(f"{what.text(row.value)} {ends}" if row else "")
        table.add_row(line.name, *cells)
    return table


def verdict_table(checks: Sequence[Check]) -> Table:
    """Returns the checks of one run: a line per check, a column per source of statistics.

    Args:
      checks: of one run, at least one.
    """
    found = {(check.name, check.statistics): check.verdict for check in checks}
    sources = dict.fromkeys(check.statistics for check in checks)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("check of the evaluation", no_wrap=True)
    for source in sources:
        table.add_column(Source(source).name)
    for name in dict.fromkeys(check.name for check in checks):
        table.add_row(name, *(found.get((name, source), "") for source in sources))
    return table


def _source(row: Row) -> Source:
    return Source(row.statistics, row.threat_model)
