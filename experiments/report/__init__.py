"""Tables from rows: seeds merged, shrinkage kept apart from the source of the statistics."""

from experiments.report.checklist import check_paragraphs, check_table, failed_checks, failed_lines
from experiments.report.document import Figure, Section, latex_document, markdown
from experiments.report.entries import Entry, merge_seeds
from experiments.report.folders import Experiment, read
from experiments.report.labels import (
    REFERENCE,
    SOURCE_NAMES,
    Column,
    Source,
    strength,
)
from experiments.report.layout import columns_of, lines_of, short_columns
from experiments.report.measures import Measure, measure, of_task
from experiments.report.missing import missing_reference
from experiments.report.paired import PairedResults, difference_interval
from experiments.report.tables import (
    INTERVALS,
    Content,
    csv_table,
    difference_caption,
    latex,
    latex_table,
    markdown_table,
    pages,
    value_caption,
)
from experiments.report.terminal import (
    comparison_tables,
    measurement_table,
    terminal_table,
    verdict_table,
)

__all__ = [
    "INTERVALS",
    "REFERENCE",
    "SOURCE_NAMES",
    "Column",
    "Content",
    "Entry",
    "Experiment",
    "Figure",
    "Measure",
    "PairedResults",
    "Section",
    "Source",
    "check_paragraphs",
    "check_table",
    "columns_of",
    "comparison_tables",
    "csv_table",
    "difference_caption",
    "difference_interval",
    "failed_checks",
    "failed_lines",
    "latex",
    "latex_document",
    "latex_table",
    "lines_of",
    "markdown",
    "markdown_table",
    "measure",
    "measurement_table",
    "merge_seeds",
    "missing_reference",
    "of_task",
    "pages",
    "read",
    "short_columns",
    "strength",
    "terminal_table",
    "value_caption",
    "verdict_table",
]
