"""Tables from rows: seeds merged, shrinkage kept apart from the source of the statistics."""

from experiments.report.checklist import check_paragraphs, check_table, failed_checks
from experiments.report.document import Figure, Section, markdown
from experiments.report.folders import Experiment, read
from experiments.report.labels import (
    CLEAN,
    CONVERGENCE,
    REFERENCE,
    SOURCE_NAMES,
    Column,
    Source,
    strength,
)
from experiments.report.layout import columns, columns_of, lines_of
from experiments.report.measures import Measure, measure, of_task
from experiments.report.missing import missing_reference
from experiments.report.paired import PairedResults, cell_of, difference_interval
from experiments.report.summaries import Summary, summarise
from experiments.report.tables import (
    INTERVALS,
    Content,
    csv_table,
    difference_caption,
    latex,
    latex_table,
    markdown_table,
    pages,
    terminal_table,
    value_caption,
)

__all__ = [
    "CLEAN",
    "CONVERGENCE",
    "INTERVALS",
    "REFERENCE",
    "SOURCE_NAMES",
    "Column",
    "Content",
    "Experiment",
    "Figure",
    "Measure",
    "PairedResults",
    "Section",
    "Source",
    "Summary",
    "cell_of",
    "check_paragraphs",
    "check_table",
    "columns",
    "columns_of",
    "csv_table",
    "difference_caption",
    "difference_interval",
    "failed_checks",
    "latex",
    "latex_table",
    "lines_of",
    "markdown",
    "markdown_table",
    "measure",
    "missing_reference",
    "of_task",
    "pages",
    "read",
    "strength",
    "summarise",
    "terminal_table",
    "value_caption",
]
