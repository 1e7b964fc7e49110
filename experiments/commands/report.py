"""Merges evaluated work folders over seeds and norms into tables, plots and pictures."""

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from experiments import report
from experiments.errors import ConfigError
from experiments.evaluation.aggregate import WORST
from experiments.report import (
    Column,
    Content,
    Experiment,
    Figure,
    Section,
    Summary,
    pictures,
    plots,
)
from steinnorm.attacks.files import write_bytes, write_json, write_text

_SHORT = 4  # columns of the table that is printed


def run(workdirs: Sequence[Path], out: Path, *, console: Console | None = None) -> None:
    """Writes ``report.md``, ``results.json``, ``checks.json``, tables, plots and pictures.

    With several experiments (configurations), names of files of one begin with its name.

    Args:
      workdirs: of ``evaluate`` or ``demo``, in any order.
      out: the report's folder; made where there is none.
      console: where to print; standard output by default.

    Raises:
      ConfigError: results that are missing or cannot be compared, or a folder that cannot be used.
    """
    # Where there is no terminal to ask, rich would break the tables at 80 columns.
    console = console or (Console() if sys.stdout.isatty() else Console(width=120))
    experiments = report.read(workdirs)
    _check_out(out)
    rows = [row for experiment in experiments for row in experiment.rows]
    checks = [check for experiment in experiments for check in experiment.checks]
    sections = []
    for experiment in experiments:
        prefix = f"{_file_name(experiment.name)}-" if len(experiments) > 1 else ""
        sections.append(_write_section(out, prefix, experiment))
    write_json(out / "results.json", [dataclasses.asdict(row) for row in rows])
    write_json(out / "checks.json", [dataclasses.asdict(check) for check in checks])
    write_text(out / "report.md", report.markdown(sections))  # last: it links to all others
    for section in sections:
        _print(console, section)
    # soft_wrap: a path that is broken over two lines cannot be copied.
    console.print(f"written: {out / 'report.md'}", soft_wrap=True, highlight=False, markup=False)


def _check_out(out: Path) -> None:
    if (out / "config.json").exists():
        raise ConfigError(f"{out} is a work folder; a report there would overwrite its results")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {out} for a report: {error.strerror}") from error


def _write_section(out: Path, prefix: str, experiment: Experiment) -> Section:
    paired = report.PairedResults(experiment.places)
    summaries = report.summarise(experiment.rows, paired.interval)
    files = [f"{prefix}table.csv", f"{prefix}table.tex"]
    write_text(out / files[0], report.csv_table(summaries))
    write_text(out / files[1], _latex(experiment, summaries))
    figures = []
    for figure, content in (
        *_plots(prefix, experiment, summaries),
        *_pictures(prefix, experiment, summaries),
    ):
        write_bytes(out / figure.path, content)
        figures.append(figure)
    return Section(experiment, summaries, files, figures)


def _latex(experiment: Experiment, summaries: Sequence[Summary]) -> str:
    """One ``tabular`` after another, captions as comments."""
    parts = ["% Needs \\usepackage{booktabs}; each tabular can be taken out alone."]
    missing = report.missing_reference(experiment.rows)
    if missing:
        parts.append(f"% {missing}")
    failed = report.failed_checks(experiment.checks)
    if failed:
        parts.append(f"% {failed}")
    for metric in experiment.metrics:
        tabled = _tabled(summaries, metric)
        for differences in (False, True):
            write = report.difference_caption if differences else report.value_caption
            caption = f"{experiment.name} ({experiment.preset}). {write(metric)}"
            for portion in report.pages(report.columns_of(tabled)):
                table = report.latex_table(Content(tabled, portion, differences))
                parts.append(f"\n% {caption}\n{table}")
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"


def _tabled(summaries: Sequence[Summary], metric: str) -> list[Summary]:
    return [s for s in summaries if s.metric == metric and s.attack != report.CONVERGENCE]


def _plots(
    prefix: str, experiment: Experiment, summaries: Sequence[Summary]
) -> Iterator[tuple[Figure, bytes]]:
    for metric in experiment.metrics:
        title = report.measure(metric).heading
        tabled = _tabled(summaries, metric)
        for order in sorted({s.norm_order for s in tabled} - {""}, reverse=True):
            attack = plots.strongest(tabled, order)
            which = "the worst of all attacks" if attack == WORST else attack
            caption = (
                f"{title} against the radius of the {order} ball, under {which}. Bars: lowest to "
                "highest seed; of one seed, the 95 % interval."
            )
            name = f"{prefix}{metric}-{order}.png"
            yield Figure(name, caption), plots.accuracy(tabled, metric, order)
    curves = [s for s in summaries if s.attack == report.CONVERGENCE]
    for metric in dict.fromkeys(s.metric for s in curves):
        caption = (
            f"{report.measure(metric).heading} against the number of PGD's steps, on the "
            "examples of the checks. A curve that still falls has not converged."
        )
        name = f"{prefix}{metric}-steps.png"
        yield Figure(name, caption), plots.convergence(curves, metric)


def _pictures(
    prefix: str, experiment: Experiment, summaries: Sequence[Summary]
) -> Iterator[tuple[Figure, bytes]]:
    """The first examples of each norm's first seed, under the same attack for all."""
    chosen = _pictured(_tabled(summaries, experiment.metrics[0]))
    first_seed: dict[str, int] = {}
    for norm, seed in sorted(experiment.places):
        first_seed.setdefault(norm, seed)
    for row in experiment.rows:
        column = Column(row.attack, row.epsilon, row.norm_order)
        if (
            column not in chosen
            or row.metric != experiment.metrics[0]
            or row.seed != first_seed[row.norm]
            or row.threat_model not in ("", "joint")
        ):
            continue
        place = experiment.places[row.norm, row.seed]
        attacked = report.cell_of(row, place)
        if attacked is None or not len(attacked.shown.get("y", ())):
            continue
        clean_row = dataclasses.replace(row, attack=report.CLEAN, epsilon=0.0)
        clean = report.cell_of(clean_row, place)
        name = f"{prefix}pictures/{row.norm}-{row.statistics}-{_file_name(column.name)}"
        of = f"norm {row.norm}, {report.SOURCE_NAMES[row.statistics]} statistics, {column.name}"
        caption = f"First test examples, {of}, seed {row.seed}."
        yield Figure(f"{name}.png", caption), pictures.grid(attacked, clean)
        if pictures.is_segmentation(attacked):
            caption = f"Classes of the first test images, {of}, seed {row.seed}."
            yield Figure(f"{name}-classes.png", caption), pictures.segmentation(attacked, clean)


def _pictured(summaries: Sequence[Summary]) -> list[Column]:
    """Of each kind of ball, the strongest single attack at the middle one of its radii."""
    alone = [s for s in summaries if s.attack != WORST]
    found = []
    for order in sorted({s.norm_order for s in alone} - {""}):
        attack = plots.strongest(alone, order)
        radii = sorted({s.epsilon for s in alone if (s.attack, s.norm_order) == (attack, order)})
        if attack is not None:
            found.append(Column(attack, radii[(len(radii) - 1) // 2], order))
    return found


def _print(console: Console, section: Section) -> None:
    experiment = section.experiment
    metric = experiment.metrics[0]
    tabled = _tabled(section.summaries, metric)
    columns = report.columns_of(tabled)
    worst = [column for column in columns if column.attack == WORST]
    short = [column for column in columns if column.attack == report.CLEAN]
    short += worst or [column for column in columns if column.norm_order]
    caption = report.value_caption(metric, short=True)
    console.print(f"{experiment.name} ({experiment.preset}). {caption}", highlight=False)
    console.print(report.terminal_table(Content(tabled, short[:_SHORT])))
    failed = [check for check in experiment.checks if check.verdict == "FAIL"]
    for check in failed:
        console.print(
            f"check FAILED: {check.norm}, {check.statistics} statistics, seed {check.seed}: "
            f"{check.name}: {check.detail}",
            highlight=False,
            markup=False,
        )
    if not experiment.checks:
        console.print("No checks of the evaluation were made.", highlight=False)
    missing = report.missing_reference(experiment.rows)
    if missing:
        console.print(missing, style="bold", highlight=False, markup=False)


def _file_name(text: str) -> str:
    """Without what has a meaning in paths: ``pgd 8/255`` becomes ``pgd-8-255``."""
    return re.sub(r"[^\w.]+", "-", text)
