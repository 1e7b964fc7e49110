"""The main job: train every norm on the digits, attack it, print and write what came out."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments import configs, data, plots, report, sanity
from experiments.config import ConfigError, ExperimentConfig
from experiments.data.examples import Dataset
from experiments.evaluate import Labels, evaluate, rows_in
from experiments.files import write_bytes, write_json, write_text
from experiments.models.build import build
from experiments.models.norms import NORMS, sources
from experiments.progress import Reporter
from experiments.record import Row, Run, WorkFolder
from experiments.tasks import by_name
from experiments.train import LogRow, Loop, Observer


def run(
    workdir: Path,
    *,
    norms: Sequence[str] = NORMS,
    seeds: int = 2,
    smoke: bool = False,
    console: Console | None = None,
) -> list[Row]:
    """Trains, attacks, prints a table and writes results, tables and plots to ``workdir``.

    A norm and seed that are finished in the folder, under the same configuration, are reused: an
    interrupted demo goes on where it stopped.

    Args:
      workdir: the work folder; made where there is none.
      norms: names from ``experiments.models.norms.NORMS``.
      seeds: number of seeds, from 0 up.
      smoke: a tiny network and a handful of images, to see that all parts run.
      console: where to print; standard output by default.

    Returns:
      The rows of ``results.json``.

    Raises:
      ConfigError: an unknown norm, no seed, or a folder that cannot be used.
    """
    _check(norms, seeds)
    console = console or _console()
    config = configs.by_name("digits", smoke=smoke)
    folder = WorkFolder.open(workdir, config)
    dataset = data.load(config.data)
    norms = list(dict.fromkeys(norms))
    runs = []
    with Reporter(console, len(norms) * seeds) as reporter:
        for norm in norms:
            for seed in range(seeds):
                finished = folder.load(norm, seed)
                if finished:
                    reporter.finish(f"{norm}, seed {seed}: found finished in the work folder")
                else:
                    finished = _run_one(config, dataset, norm, seed, reporter)
                    folder.save(finished)
                runs.append(finished)
    return _write(workdir, config, runs, console)


def _console() -> Console:
    # Where there is no terminal to ask, rich would break the tables at 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=120)


def _check(norms: Sequence[str], seeds: int) -> None:
    unknown = [norm for norm in norms if norm not in NORMS]
    if unknown or not norms:
        got = ", ".join(unknown) or "none"
        raise ConfigError(f"norms must be some of {', '.join(NORMS)}; got {got}")
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1; got {seeds}")


class _Seen(Observer):
    """Moves the bar and keeps the rows."""

    def __init__(self, reporter: Reporter, title: str):
        self._reporter, self._title = reporter, title
        self.history: list[LogRow] = []

    def stepped(self, step: int, total: int, loss: float) -> None:
        """Moves the bar."""
        self._reporter.advance(f"{self._title}: training, loss {loss:.3f}")

    def logged(self, row: LogRow) -> None:
        """Keeps the row."""
        self.history.append(row)


def _run_one(
    config: ExperimentConfig, dataset: Dataset, norm: str, seed: int, reporter: Reporter
) -> Run:
    began = time.perf_counter()
    title = f"{norm}, seed {seed}"
    used = sources(norm, config.evaluation.statistics)
    steps = len(dataset.train) // config.train.batch_size * config.train.epochs
    attacks = config.evaluation.attacks
    reporter.start(f"{title}: compiling", steps + len(used) * rows_in(attacks))
    task = by_name(config.task, dataset.classes, config.train.label_smoothing)
    model = build(
        config.model, norm, config.train, examples=dataset.train, outputs=task.outputs, seed=seed
    )
    seen = _Seen(reporter, title)
    loop = Loop(
        task=task,
        config=config.train,
        seed=seed,
        validation_statistics=sources(norm, ("running",))[0],
        observer=seen,
    )
    trained = loop.run(model, dataset)
    rows: list[Row] = []
    for source in used:
        rows += evaluate(
            trained.model,
            task,
            dataset.test,
            statistics=source,
            batch_size=config.evaluation.batch_size,
            labels=Labels(config.name, norm, seed),
            attack_configs=attacks,
            metrics=("accuracy",),
            on_row=lambda row: reporter.advance(f"{title}: {row.statistics}, {row.attack}"),
        )
    seconds = time.perf_counter() - began
    clean = ", ".join(
        f"{100 * row.value:.1f} % ({row.statistics})" for row in rows if row.attack == "clean"
    )
    reporter.finish(f"{title}: clean {clean}, {seconds:.0f} s")
    return Run(norm, seed, seconds, rows, seen.history)


def _write(
    workdir: Path, config: ExperimentConfig, runs: Sequence[Run], console: Console
) -> list[Row]:
    rows = [row for run in runs for row in run.rows]
    summaries = report.summarise(report.with_strongest(rows))
    cells = report.columns(config.evaluation)
    doubts = sanity.warnings_for(rows)
    write_json(workdir / "results.json", [dataclasses.asdict(row) for row in rows])
    write_text(workdir / "table.csv", report.csv_table(summaries))
    write_text(workdir / "table.md", _markdown(config, runs, summaries, cells, doubts))
    write_bytes(workdir / "accuracy.png", plots.accuracy(summaries))
    write_bytes(workdir / "shrinkage.png", plots.shrinkage(runs))

    console.print()
    console.print(report.terminal_table(summaries, cells))
    console.print(report.terminal_table(summaries, cells, differences=True))
    for doubt in doubts:
        console.print(f"check: {doubt}", markup=False, highlight=False)
    console.print(
        "Strengths (after the attack's name) are in units of the image range [0, 1]; "
        "strongest: the lowest of all gradient attacks of that radius. "
        f"Test batches hold {config.evaluation.batch_size} images; statistics of the test batch "
        "depend on that."
    )
    # soft_wrap: a path that is broken over two lines cannot be copied.
    console.print(f"Results, tables and plots: {workdir}", soft_wrap=True, highlight=False)
    return rows


def _markdown(
    config: ExperimentConfig,
    runs: Sequence[Run],
    summaries: Sequence[report.Summary],
    cells: Sequence[report.Cell],
    doubts: Sequence[str],
) -> str:
    seeds = len({run.seed for run in runs})
    images = summaries[0].n
    batch = config.evaluation.batch_size
    seconds = sum(run.seconds for run in runs)
    parts = [
        f"# {config.name}: {config.dataset}",
        f"{seeds} seeds, {images} test images in batches of {batch}, {seconds:.0f} s for all runs. "
        "Strengths are in units of the image range [0, 1]; for gaussian it is the root mean "
        "square before clipping, for the others the radius of the ball. pgd-released is the "
        "setting released with the paper, whose steps cannot cross its ball. strongest is, for "
        "each seed, the lowest accuracy of all gradient attacks of that radius.",
        report.TABLE_CAPTION,
        report.markdown_table(summaries, cells),
        report.DIFFERENCE_CAPTION,
        report.markdown_table(summaries, cells, differences=True),
    ]
    if doubts:
        parts.append("Checks that fired:\n\n" + "\n".join(f"- {doubt}" for doubt in doubts))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"
