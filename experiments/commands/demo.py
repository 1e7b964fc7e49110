"""The main job: train every norm on the digits, attack it, print and write what came out."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx
from rich.console import Console

from experiments import data, report
from experiments.commands.console import Reporter
from experiments.commands.demo_folder import Run, WorkFolder
from experiments.commands.twins import Twins
from experiments.configs import presets
from experiments.configs.schema import ExperimentConfig, Statistics
from experiments.data.examples import Dataset
from experiments.errors import ConfigError
from experiments.evaluation.measure import Labels, Plan, as_logits_fn, evaluate
from experiments.evaluation.run_checks import Checker
from experiments.models.build import build
from experiments.models.norms import NORMS, in_evaluation, sources
from experiments.report import plots
from experiments.results import Check, LoggedStep, Row
from experiments.tasks import Task, by_name
from experiments.training.loop import Loop, Observer
from steinnorm.attacks.files import write_bytes, write_json, write_text


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
    config = presets.load("digits", smoke=smoke)
    folder = WorkFolder.open(workdir, config)
    dataset = data.load(config.data)
    norms = list(dict.fromkeys(norms))
    runs: list[Run] = []
    twins = _twins(config, dataset, folder)
    with Reporter(console, len(norms) * seeds) as reporter:
        for norm in norms:
            for seed in range(seeds):
                finished = folder.load(norm, seed)
                if finished:
                    reporter.finish(f"{norm}, seed {seed}: found finished in the work folder")
                else:
                    finished = _run_one(config, dataset, (norm, seed), reporter, twins)
                    folder.save(finished)
                runs.append(finished)
    return _write(workdir, config, runs, console)


def _twins(config: ExperimentConfig, dataset: Dataset, folder: WorkFolder) -> Twins:
    """The plain batch-norm models; those of earlier commands only where their run is finished."""
    task = by_name(config.task, dataset.classes, config.train.label_smoothing)

    def untrained(seed: int) -> nnx.Module:
        return build(
            config.model,
            report.REFERENCE,
            config.train,
            examples=dataset.train,
            outputs=task.outputs,
            seed=seed,
        )

    return Twins(
        folder.root / "runs",
        report.REFERENCE,
        untrained,
        is_ours=lambda seed: folder.load(report.REFERENCE, seed) is not None,
    )


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
        self.history: list[LoggedStep] = []

    def stepped(self, step: int, total: int, loss: float) -> None:
        """Moves the bar."""
        self._reporter.advance(f"{self._title}: training, loss {loss:.3f}")

    def logged(self, row: LoggedStep) -> None:
        """Keeps the row."""
        self.history.append(row)


def _run_one(
    config: ExperimentConfig,
    dataset: Dataset,
    what: tuple[str, int],
    reporter: Reporter,
    twins: Twins,
) -> Run:
    """Trains, attacks and checks one norm with one seed; keeps the batch-norm models as twins."""
    (norm, seed), began = what, time.perf_counter()
    title = f"{norm}, seed {seed}"
    plans = [
        Plan(source, config.evaluation.batch_size, config.evaluation.attacks, metrics=("accuracy",))
        for source in sources(norm, config.evaluation.statistics)
    ]
    steps = len(dataset.train) // config.train.batch_size * config.train.epochs
    batches = sum(plan.batches(len(dataset.test)) for plan in plans)
    reporter.start(f"{title}: compiling", steps + batches)
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
    labels = Labels(config.name, norm, seed, dataset.class_names)
    checker = _checker(config, dataset, task, twins, labels)
    rows: list[Row] = []
    checks: list[Check] = []
    for plan in plans:
        rows += evaluate(
            trained.model,
            task,
            dataset.test,
            plan,
            labels=labels,
            on_batch=lambda what: reporter.advance(f"{title}: {what}"),
        )
        checked = checker.run(trained.model, plan.statistics, labels)
        checks += checked.checks
        rows += checked.curve
    if norm == report.REFERENCE:
        twins.keep(seed, trained.model)  # before the run counts as finished
    seconds = time.perf_counter() - began
    clean = ", ".join(
        f"{100 * row.value:.1f} % ({row.statistics})" for row in rows if row.attack == "clean"
    )
    reporter.finish(f"{title}: clean {clean}, {seconds:.0f} s")
    return Run(norm, seed, seconds, rows, seen.history, checks)


def _checker(
    config: ExperimentConfig,
    dataset: Dataset,
    task: Task,
    twins: Twins,
    labels: Labels,
) -> Checker:
    """With the plain batch-norm model of the same seed as the twin, if it has been trained."""
    checker = Checker(
        config.evaluation.checks, task, dataset.test, config.evaluation.batch_size, labels.seed
    )
    if labels.norm == report.REFERENCE:
        reason = "the model is the plain batch-norm model itself"
        return dataclasses.replace(checker, twin_reason=reason)
    twin = twins.find(labels.seed)
    if twin is None:
        reason = (
            f"the work folder holds no weights of {report.REFERENCE}, seed {labels.seed}, under "
            "this configuration: it is the twin if it is trained first"
        )
        return dataclasses.replace(checker, twin_reason=reason)

    def twin_with(source: Statistics) -> jax.tree_util.Partial:
        return as_logits_fn(in_evaluation(twin, "running" if source == "none" else source))

    return dataclasses.replace(checker, twin=twin_with)


def _write(
    workdir: Path, config: ExperimentConfig, runs: Sequence[Run], console: Console
) -> list[Row]:
    rows = [row for run in runs for row in run.rows]
    summaries = report.summarise(rows)
    columns = report.columns(config.evaluation)
    checks = [check for run in runs for check in run.checks]
    write_json(workdir / "results.json", [dataclasses.asdict(row) for row in rows])
    write_json(workdir / "checks.json", [dataclasses.asdict(check) for check in checks])
    write_text(workdir / "table.csv", report.csv_table(summaries))
    write_text(workdir / "table.md", _markdown(config, runs, summaries, columns, checks))
    write_bytes(workdir / "accuracy.png", plots.accuracy(summaries))
    write_bytes(
        workdir / "shrinkage.png", plots.shrinkage([(run.norm, run.history) for run in runs])
    )

    console.print()
    values = report.Content(summaries, columns)
    differences = report.Content(summaries, columns, differences=True)
    console.print(report.terminal_table(values, report.value_caption("accuracy", short=True)))
    caption = report.difference_caption("accuracy", short=True)
    console.print(report.terminal_table(differences, caption))
    for line in report.check_table(checks).splitlines():
        console.print(line, markup=False, highlight=False)
    console.print(
        "Strengths (after the attack's name) are in units of the image range [0, 1]; "
        "worst: for each image the worst of all attacks of that radius, with statistics of the "
        "test batch for each batch, which the attacker owns. "
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
    columns: Sequence[report.Column],
    checks: Sequence[Check],
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
        "setting released with the paper, whose steps cannot cross its ball. worst is, "
        "for each image, the worst of all attacks of that radius; with statistics of the test "
        "batch, for each batch, which the attacker owns.",
        report.value_caption("accuracy"),
        report.markdown_table(report.Content(summaries, columns)),
        report.difference_caption("accuracy"),
        report.markdown_table(report.Content(summaries, columns, differences=True)),
    ]
    parts += ["## Checks of the evaluation", *report.check_paragraphs(checks)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"
