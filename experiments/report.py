"""Tables from rows: seeds merged, shrinkage kept apart from the source of the statistics."""

import csv
import dataclasses
import io
import math
import statistics as stats
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from experiments.config import EvaluationConfig
from experiments.models.norms import NORMS
from experiments.record import Row

REFERENCE = "batch"
"""The norm that all others are compared with."""

STRONGEST = "strongest"
"""Name of the attack that ``with_strongest`` adds."""

SOURCE_NAMES = {"running": "running", "batch": "test batch", "none": "none"}

TABLE_CAPTION = "Accuracy in %, mean over the seeds ± standard deviation between them."
DIFFERENCE_CAPTION = (
    "Difference in accuracy, in percentage points, paired by seed, mean ± standard deviation. "
    "Each norm is compared with batch norm under the same statistics, group norm with batch norm "
    "under running ones. Row 'batch, test batch' is compared with 'batch, running': what the "
    "source of the statistics does without any shrinkage."
)

Cell = tuple[str, float]
"""An attack's name and strength: a column."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """One cell of the table: a norm, a source of statistics, an attack; all seeds.

    Attributes:
      norm: the norm.
      statistics: the source of its statistics.
      attack: ``clean`` or the attack's name.
      epsilon: the attack's strength in units of the image range.
      norm_order: of the attack's ball; empty where there is none.
      steps: the attack's gradient steps.
      step_size: their absolute size.
      seeds: how many seeds.
      n: test images per seed.
      mean: accuracy, mean over the seeds, in [0, 1].
      std: between the seeds (n - 1 in the divisor); NaN for one seed.
      lowest: the smallest accuracy of a seed.
      highest: the largest.
      difference: to the reference of the same seed, mean; NaN where there is no reference.
      difference_std: between the seeds; NaN for one seed.
    """

    norm: str
    statistics: str
    attack: str
    epsilon: float
    norm_order: str
    steps: int
    step_size: float
    seeds: int
    n: int
    mean: float
    std: float
    lowest: float
    highest: float
    difference: float
    difference_std: float

    @property
    def cell(self) -> Cell:
        """The column that this belongs to."""
        return self.attack, self.epsilon


def with_strongest(rows: Sequence[Row]) -> list[Row]:
    """Adds, at each radius, the lowest accuracy that any gradient attack reached there.

    An attack that fails proves nothing, so this is the number that speaks of robustness.  It is
    the lowest of whole attacks, not of single images: with batch statistics the images of a batch
    fall together.
    """
    lowest: dict[tuple[str, str, int, str, float], Row] = {}
    for row in rows:
        key = (row.norm, row.statistics, row.seed, row.norm_order, row.epsilon)
        if row.norm_order and (key not in lowest or row.value < lowest[key].value):
            lowest[key] = row
    return [*rows, *(dataclasses.replace(row, attack=STRONGEST) for row in lowest.values())]


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Merges the seeds of each (norm, statistics, attack, epsilon), in order of first appearance.

    Args:
      rows: accuracies; their order does not matter for the numbers.
    """
    groups: dict[tuple[str, str, str, float], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row.norm, row.statistics, row.attack, row.epsilon), {})[row.seed] = row
    summaries = []
    for (norm, source, attack, epsilon), by_seed in groups.items():
        reference = groups.get((*_reference(norm, source), attack, epsilon), {})
        pairs = [
            by_seed[seed].value - reference[seed].value for seed in by_seed if seed in reference
        ]
        values = [row.value for row in by_seed.values()]
        first = next(iter(by_seed.values()))
        summaries.append(
            Summary(
                norm=norm,
                statistics=source,
                attack=attack,
                epsilon=epsilon,
                norm_order=first.norm_order,
                steps=first.steps,
                step_size=first.step_size,
                seeds=len(values),
                n=first.n,
                mean=stats.fmean(values),
                std=_std(values),
                lowest=min(values),
                highest=max(values),
                difference=stats.fmean(pairs) if pairs else math.nan,
                difference_std=_std(pairs),
            )
        )
    return summaries


def _reference(norm: str, source: str) -> tuple[str, str]:
    if norm == REFERENCE or source == "none":
        return REFERENCE, "running"
    return REFERENCE, source


def _std(values: Sequence[float]) -> float:
    return stats.stdev(values) if len(values) > 1 else math.nan


def columns(config: EvaluationConfig) -> list[Cell]:
    """The columns of the short table, clean first."""
    shown = [
        (attack.name, epsilon)
        for attack in config.attacks
        for epsilon in attack.shown
        if epsilon in attack.epsilons
    ]
    strongest = [(STRONGEST, epsilon) for epsilon in config.shown_strongest]
    return [("clean", 0.0), *shown, *strongest]


def _header(cell: Cell) -> str:
    attack, epsilon = cell
    return "clean" if attack == "clean" else f"{attack} {epsilon:.3g}"


def _lines(summaries: Sequence[Summary]) -> list[tuple[str, str]]:
    """The rows of a table: one block per source of statistics, norms in their usual order."""
    present = {(s.norm, s.statistics) for s in summaries}
    order = [(norm, source) for source in SOURCE_NAMES for norm in NORMS]
    return [line for line in order if line in present]


def _accuracy(summary: Summary) -> str:
    spread = "" if math.isnan(summary.std) else f"±{100 * summary.std:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _difference(summary: Summary) -> str:
    if math.isnan(summary.difference):
        return ""
    is_itself = (summary.norm, summary.statistics) == _reference(summary.norm, summary.statistics)
    if is_itself:
        return "–"
    std = summary.difference_std
    spread = "" if math.isnan(std) else f"±{100 * std:.1f}"
    points = round(100 * summary.difference, 1) + 0.0  # adding zero turns -0.0 into 0.0
    return f"{points:+.1f}{spread}"


def _body(
    summaries: Sequence[Summary], cells: Sequence[Cell], differences: bool
) -> list[tuple[str, ...]]:
    found = {(s.norm, s.statistics, s.cell): s for s in summaries}
    write = _difference if differences else _accuracy
    body = []
    for norm, source in _lines(summaries):
        entries = [found.get((norm, source, cell)) for cell in cells]
        texts = ["" if entry is None else write(entry) for entry in entries]
        body.append((norm, SOURCE_NAMES[source], *texts))
    return body


def terminal_table(
    summaries: Sequence[Summary], cells: Sequence[Cell], *, differences: bool = False
) -> Table:
    """A table for a terminal of 120 columns."""
    table = Table(
        title=DIFFERENCE_CAPTION if differences else TABLE_CAPTION,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("norm", no_wrap=True)
    table.add_column("statistics", no_wrap=True)
    for cell in cells:
        # One word a line: a header must not be wider than the numbers below it.
        words = _header(cell).replace("-", " ").split()
        table.add_column("\n".join(words), justify="right", vertical="bottom")
    source = None
    for line in _body(summaries, cells, differences):
        if source not in (None, line[1]):
            table.add_section()
        source = line[1]
        table.add_row(*line, style="bold" if line[0] == REFERENCE else "")
    return table


def markdown_table(
    summaries: Sequence[Summary], cells: Sequence[Cell], *, differences: bool = False
) -> str:
    """The same table in Markdown, without caption."""
    header = ["norm", "statistics", *(_header(cell) for cell in cells)]
    ruler = ["---", "---", *("---:" for _ in cells)]
    lines = [header, ruler, *_body(summaries, cells, differences)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def csv_table(summaries: Sequence[Summary]) -> str:
    """Every summary, one a line; empty where a number does not exist."""
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(Summary)]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for summary in summaries:
        values = dataclasses.asdict(summary)
        writer.writerow(
            {
                name: "" if isinstance(value, float) and math.isnan(value) else value
                for name, value in values.items()
            }
        )
    return buffer.getvalue()
