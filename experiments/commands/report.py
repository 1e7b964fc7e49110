"""Merges evaluated work folders over seeds and norms into tables, plots and pictures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import report
from experiments.commands.console import make_console, make_folder
from experiments.errors import ConfigError
from experiments.report import Experiment, Section, figures
from steinnorm.attacks.files import write_bytes, write_json, write_text


def run(
    workdirs: Sequence[Path],
    out: Path,
    *,
    controls: Sequence[Path] = (),
    console: Console | None = None,
) -> None:
    """Writes ``report.md``, ``results.json``, ``checks.json``, tables, plots and pictures.

    With several experiments (configurations), names of files of one begin with its name.

    Args:
      workdirs: of ``evaluate``, ``compare`` or ``demo``, in any order.
      out: the report's folder; made where there is none.
      controls: work folders of batch norm's other runs, besides those in folders of ``compare``.
      console: where to print; standard output by default.

    Raises:
      ConfigError: results that are missing or cannot be compared, or a folder that cannot be used.
    """
    console = console or make_console()
    experiments = report.read(workdirs, controls)
    _check_out(out)
    rows = [row for experiment in experiments for row in experiment.rows]
    checks = [check for experiment in experiments for check in experiment.checks]
    sections = []
    for experiment in experiments:
        prefix = f"{figures.file_name(experiment.name)}-" if len(experiments) > 1 else ""
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
    make_folder(out)


def _write_section(out: Path, prefix: str, experiment: Experiment) -> Section:
    paired = report.PairedResults(experiment.places)
    entries = report.merge_seeds(experiment.rows, paired.interval, experiment.test_per_training)
    files = [f"{prefix}table.csv", f"{prefix}table.tex"]
    write_text(out / files[0], report.csv_table(entries))
    write_text(out / files[1], report.latex_document(experiment, entries))
    drawn = []
    for figure, content in figures.draw_all(prefix, experiment, entries):
        write_bytes(out / figure.path, content)
        drawn.append(figure)
    return Section(experiment, entries, files, drawn)


def _print(console: Console, section: Section) -> None:
    experiment = section.experiment
    console.print(f"{experiment.name} ({experiment.preset})", highlight=False)
    tables = report.comparison_tables(
        section.entries, experiment.metrics[0], experiment.shown, console.width
    )
    for part in tables:
        console.print(part, highlight=False, markup=False)
    console.print(report.check_table(experiment.checks), markup=False, highlight=False)
    for line in report.failed_lines(experiment.checks):
        console.print(line, highlight=False, markup=False)
    missing = report.missing_reference(experiment.rows)
    if missing:
        console.print(missing, style="bold", highlight=False, markup=False)
