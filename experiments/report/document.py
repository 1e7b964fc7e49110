"""Writes the report in Markdown and LaTeX: tables, checks, pictures, what is missing."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from experiments.report.checklist import check_paragraphs, failed_checks
from experiments.report.entries import Entry, tabled
from experiments.report.equal_accuracy import at_equal_accuracy
from experiments.report.folders import Experiment
from experiments.report.labels import strength
from experiments.report.layout import columns_of
from experiments.report.measures import measure
from experiments.report.missing import missing_reference
from experiments.report.tables import (
    INTERVALS,
    Content,
    difference_caption,
    latex_table,
    markdown_table,
    pages,
    value_caption,
)
from experiments.results import WORST, Check, Row

_HOW_TO_READ = (
    "Strengths stand after the attack's name, in units of the image range [0, 1]: for noise the "
    "root mean square before clipping, for attacks the radius of the ball. "
    f"`{WORST}` is the worst of all attacks of that ball, chosen for each example, or for each "
    "batch where the attacker owns it (joint). With statistics of the test batch, *joint* means "
    "that the attacker owns the whole batch, *independent* that each example is attacked while its "
    "batch stays as it is, *companion* that only the others are attacked. *shrunk* are statistics "
    "of the test batch by the norm's own rule, shrunk towards the stored ones; *calibrated* are "
    "those of the test batch, judged by what clean training images look like to each layer. "
    "`seeds × n`: seeds, and test examples per seed."
)


class Figure(NamedTuple):
    """A picture beside the report.

    Attributes:
      path: relative to the report.
      caption: in words.
    """

    path: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """What the report says of one experiment.

    Attributes:
      experiment: what was measured.
      entries: of its rows.
      files: names of its other files.
      figures: in this order.
    """

    experiment: Experiment
    entries: Sequence[Entry]
    files: Sequence[str] = ()
    figures: Sequence[Figure] = ()


def markdown(sections: Sequence[Section]) -> str:
    """Returns the whole report in Markdown.

    Args:
      sections: one for each experiment.
    """
    runs = sum(len(section.experiment.places) for section in sections)
    parts = [f"# Report of {runs} run{'s' if runs != 1 else ''}", _HOW_TO_READ]
    for section in sections:
        parts += _section(section)
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def latex_document(experiment: Experiment, entries: Sequence[Entry]) -> str:
    """Returns one ``tabular`` after another, with captions as comments."""
    parts = ["% Needs \\usepackage{booktabs}; each tabular can be taken out alone."]
    missing = missing_reference(experiment.rows)
    if missing:
        parts.append(f"% {missing}")
    failed = failed_checks(experiment.checks)
    if failed:
        parts.append(f"% {failed}")
    for metric in experiment.metrics:
        shown = tabled(entries, metric)
        for differences in (False, True):
            write = difference_caption if differences else value_caption
            caption = f"{experiment.name} ({experiment.preset}). {write(metric)}"
            for portion in pages(columns_of(shown)):
                table = latex_table(Content(shown, portion, differences))
                parts.append(f"\n% {caption}\n{table}")
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"


def _section(section: Section) -> list[str]:
    experiment = section.experiment
    missing = missing_reference(experiment.rows)
    parts = [
        f"## {experiment.name} ({experiment.preset})",
        f"{experiment.dataset[:1].upper()}{experiment.dataset[1:]}. {_seeds(experiment)}",
        f"**{missing}**" if missing else "",
        _failures(experiment.checks),
        _unlike(experiment.rows),
        *experiment.notes,
    ]
    for metric in experiment.metrics:
        parts += _tables(section.entries, metric)
    if experiment.controls:
        for metric in experiment.metrics:
            parts += _equal_score(section, metric)
    if section.files:
        links = ", ".join(f"[{name}]({name})" for name in section.files)
        parts.append(f"All metrics and numbers: {links}.")
    for figure in section.figures:
        parts.append(f"![{figure.caption}]({figure.path})\n\n{figure.caption}")
    parts += ["### Checks of the evaluation", *check_paragraphs(experiment.checks)]
    return parts


def _unlike(rows: Sequence[Row]) -> str:
    """Returns where worst cases that stand in one column are over different attacks."""
    over: dict[tuple[str, float], set[str]] = {}
    for row in rows:
        if row.attack == WORST:
            over.setdefault((row.norm_order, row.epsilon), set()).add(row.over)
    columns = [column for column, sets in over.items() if len(sets) > 1]
    if not columns:
        return ""
    where = ", ".join(f"{strength(epsilon)} ({norm_order})" for norm_order, epsilon in columns)
    sets = "; ".join(sorted({found for column in columns for found in over[column]}))
    return (
        f"**UNLIKE: the worst case at {where} is over different attacks for different rows, so "
        f"that these cannot be compared: {sets}.**"
    )


def _seeds(experiment: Experiment) -> str:
    by_norm: dict[str, list[int]] = {}
    for norm, seed in sorted(experiment.places):
        by_norm.setdefault(norm, []).append(seed)
    by_seeds: dict[str, list[str]] = {}
    for norm, seeds in by_norm.items():
        by_seeds.setdefault(", ".join(map(str, seeds)), []).append(norm)
    return (
        "; ".join(
            f"{', '.join(norms)}: seed{'s' if ',' in seeds else ''} {seeds}"
            for seeds, norms in by_seeds.items()
        )
        + "."
    )


def _tables(entries: Sequence[Entry], metric: str) -> list[str]:
    shown = tabled(entries, metric)
    portions = pages(columns_of(shown))
    return [
        f"### {measure(metric).heading}",
        f"{value_caption(metric)} {INTERVALS}",
        *(markdown_table(Content(shown, portion)) for portion in portions),
        difference_caption(metric),
        *(markdown_table(Content(shown, portion, differences=True)) for portion in portions),
    ]


def _equal_score(section: Section, metric: str) -> list[str]:
    experiment = section.experiment
    shown = [
        s
        for s in at_equal_accuracy(
            section.entries, experiment.runs, experiment.controls, experiment.test_per_training
        )
        if s.metric == metric and s.attack == WORST
    ]
    title = measure(metric).title
    points = ", in percentage points," if measure(metric).unit == "%" else ""
    parts = [
        f"### At equal clean {title}",
        f"Difference in {title}{points} to batch norm at the norm's own clean {title}: to the line "
        f"through batch norm's runs and {len(experiment.controls)} controls (batch norm, "
        f"{'; '.join(experiment.control_names)}). Mean ± standard deviation of the norm's runs, or "
        "Welch's 95 % interval where there are three or more. A norm whose clean "
        f"{title} no runs of batch norm have on both sides is left out.",
    ]
    return parts + [
        markdown_table(Content(shown, portion, differences=True))
        for portion in pages(columns_of(shown))
    ]


def _failures(checks: Sequence[Check]) -> str:
    failed = failed_checks(checks)
    return f"**{failed}{'; see below' * bool(checks)}.**" if failed else ""
