"""Measures a trained network on the test part of its data set."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import RenderableType

from experiments import data, report, tasks
from experiments.commands.console import Bar, Display, make_console
from experiments.commands.evaluation_request import AS_CONFIGURED, Request, plans_for, settings_for
from experiments.commands.training_display import shown_reading
from experiments.configs.schema import EvaluationConfig, Statistics
from experiments.data import devices
from experiments.data.examples import Dataset, Examples
from experiments.errors import ConfigError
from experiments.evaluation import aggregate, per_example, run_checks
from experiments.evaluation.attack_batch import as_logits_fn, check_fits
from experiments.evaluation.calibration import Calibrating
from experiments.evaluation.fitted_checks import with_losses, with_room
from experiments.evaluation.identity import identity_of, is_of
from experiments.evaluation.measure import measure
from experiments.evaluation.per_example import PerExampleResults
from experiments.evaluation.plan import Run, Watcher, batch_size_of
from experiments.evaluation.run_checks import CheckedModel, Checker
from experiments.models.norms import in_evaluation
from experiments.results import Check, Row
from experiments.tasks import Task
from experiments.training.folder import RunSettings, data_dir_of, read_settings
from experiments.training.weights import load_weights
from steinnorm.attacks.files import write_json
from steinnorm.functional import CALIBRATED


def run(
    workdir: Path,
    request: Request = AS_CONFIGURED,
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    display: Display | None = None,
) -> list[Row]:
    """Measures, prints and writes ``results.json`` and ``checks.json`` into the work folder.

    Per-example results are kept in ``evaluation/`` as batches are done; a command that was stopped,
    or that asks for more, takes from there what is measured already.  ``results.json`` has all
    that is in there for these weights, test examples and this batch size, whichever command
    measured it.

    Args:
      workdir: of a training.
      request: what is measured.
      data_dir: the data set; the folder that the training read by default.
      cache_dir: decoded data.
      display: where to print and to show bars; standard output by default.

    Raises:
      ConfigError: a name that is not known, a folder without a training, data that cannot be used.
      CheckpointError: the weights cannot be read.
      LeftThreatError: an attack left its ball or box.
    """
    settings = read_settings(workdir)
    config = settings.config
    evaluation = settings_for(config.evaluation, request)
    display = display or Display(make_console(quiet=not devices.is_first()))
    with display, devices.products(config.train.matmul_precision):
        with shown_reading(display) as on_progress:
            place = data_dir or data_dir_of(workdir)
            dataset = data.load(config.data, place, cache_dir, on_progress)
        dataset = _first(dataset, request.test_examples, display)
        task = tasks.create(config.task, dataset.classes)
        for attack in evaluation.attacks:
            check_fits(attack, task)
        model, progress = load_weights(workdir, settings, dataset, task, request.weights)
        plans = plans_for(evaluation, settings.norm, request)
        sizes = " and ".join(map(str, sorted({plan.batch_size for plan in plans})))
        display.say(
            f"{config.name} ({config.preset}), norm {settings.norm}, seed {settings.seed}: "
            f"{request.weights} weights, of step {progress.step}; {len(dataset.test)} test "
            f"examples in batches of {sizes}"
        )
        calibrating = Calibrating(model, dataset.train, evaluation, shared=True)
        run = Run(config.name, settings.norm, settings.seed, dataset.class_names)
        if any(plan.statistics in CALIBRATED for plan in plans):
            display.say(str(calibrating))
            run = run._replace(calibrated_on=calibrating.inputs_digest)
        checkers = _checkers(request, evaluation, settings, dataset, task)
        checked_sources = dict.fromkeys(plan.statistics for plan in plans) if checkers else {}
        steps = sum(plan.batches(len(dataset.test)) for plan in plans)
        steps += sum(checker.steps for checker in checkers) * len(checked_sources)
        with display.bar("compiling", steps) as bar:
            watcher = _Shown(bar)
            where: dict[str, Any] = {"run": run, "workdir": workdir, "watcher": watcher}
            measured = [
                results
                for plan in plans
                for results in measure(
                    calibrating.model(plan.statistics), task, dataset.test, plan, **where
                )
            ]
            identity = _identities(model, dataset.test, evaluation, calibrating)
            in_table = [*measured, *_measured_by_anyone(workdir, identity)]
            pairs = [
                (source, with_losses(with_room(checker, source, measured), source, in_table))
                for source, checker in itertools.product(checked_sources, checkers)
            ]
            run_checks.gather(workdir, _check(calibrating, pairs, run, workdir, watcher))

        rows, checks = _collected(workdir, task, identity)
        if devices.is_first():
            write_json(workdir / "results.json", [dataclasses.asdict(row) for row in rows])
            write_json(workdir / "checks.json", [dataclasses.asdict(check) for check in checks])
        for part in _shown(config.task, rows, checks, request, evaluation):
            display.say(part)
        display.say(f"written: {workdir / 'results.json'}")
    return rows


class _Shown(Watcher):
    """Moves the bar, which says what is being measured and how far that is."""

    def __init__(self, bar: Bar):
        self._bar, self._what = bar, ""

    def begins(self, what: str) -> None:
        """The attack, or the check, that is called so begins."""
        self._what = what
        self._bar.note(what)

    def within(self, how_far: str) -> None:
        """A long attack is so far, in words."""
        self._bar.note(f"{self._what}: {how_far}")

    def advanced(self) -> None:
        """A batch, or a check, is done."""
        self._bar.advance()


def _check(
    calibrating: Calibrating,
    pairs: Iterable[tuple[Statistics, Checker]],
    run: Run,
    workdir: Path,
    watcher: Watcher,
) -> list[CheckedModel]:
    """Makes the checks; several processes share them, and each writes and returns its own."""
    mine, processes = devices.process()
    found = []
    for number, (source, checker) in enumerate(pairs):
        if number % processes == mine:
            model = calibrating.model(source)
            found.append(checker.check(model, source, run, workdir, watcher))
        else:
            for _ in range(checker.steps):
                watcher.advanced()
    return found


def _identities(
    model: nnx.Module, test: Examples, evaluation: EvaluationConfig, calibrating: Calibrating
) -> Callable[[str], dict[str, Any]]:
    """Returns what gives, for a source of statistics, all that its results depend on."""

    @functools.cache
    def identity(source: str) -> dict[str, Any]:
        # Other calibrations of these weights are not this one.
        on = calibrating.inputs_digest if source in CALIBRATED else ""
        return identity_of(model, test, batch_size_of(evaluation, source), source, on)

    return identity


def _measured_by_anyone(
    workdir: Path, identity: Callable[[str], dict[str, Any]]
) -> list[PerExampleResults]:
    """Returns the results in the folder that have a source's identity, whoever measured them."""
    return [
        results
        for results in per_example.load_all(workdir)
        if results.is_complete and is_of(results.identity, identity(results.key.statistics))
    ]


def _collected(
    workdir: Path, task: Task, identity: Callable[[str], dict[str, Any]]
) -> tuple[list[Row], list[Check]]:
    """Returns rows and checks of all that was measured in the folder with a source's identity."""
    checked = run_checks.load_all(workdir, identity)
    rows = aggregate.rows_of_all(task, aggregate.in_order(_measured_by_anyone(workdir, identity)))
    rows += [row for model in checked for row in model.curve]
    return rows, [check for model in checked for check in model.checks]


def _shown(
    task: str,
    rows: Sequence[Row],
    checks: Sequence[Check],
    request: Request,
    evaluation: EvaluationConfig,
) -> Iterator[RenderableType]:
    """Yields what is printed in the end; details of all checks are in the files."""
    for metric in report.of_task(task):
        yield report.measurement_table(rows, metric)
    if checks:
        yield report.verdict_table(checks)
        yield from report.failed_lines(checks)
        yield "what each check found: checks.json"
    elif evaluation.attacks:
        reason = (
            "--check-examples 0 asks for none"
            if request.check_examples == 0
            else "they test attacks of a radius above 0, and none was asked for"
        )
        yield f"check: none was made: {reason}"


def _checkers(
    request: Request,
    evaluation: EvaluationConfig,
    settings: RunSettings,
    dataset: Dataset,
    task: Task,
) -> list[Checker]:
    """Returns what makes the checks, for each kind of ball; none where none are wanted."""
    count = request.check_examples
    count = evaluation.checks.examples if count is None else count
    if count < 0:
        raise ConfigError(f"--check-examples must not be negative; got {count}")
    if not count:
        return []
    radii: dict[str, list[float]] = {}
    for attack in evaluation.attacks:
        if attack.has_ball:
            radii.setdefault(attack.norm, []).extend(e for e in attack.epsilons if e > 0)
    checker = _with_twin(
        Checker(
            config=dataclasses.replace(evaluation.checks, examples=count),
            task=task,
            examples=dataset.test,
            batch_size_of=functools.partial(batch_size_of, evaluation),
            seed=settings.seed,
        ),
        request,
        settings,
        dataset,
        evaluation,
    )
    found = []
    for norm, evaluated in radii.items():
        if not evaluated:
            continue
        # At the configuration's radius where that is measured, else at the largest that is; or
        # where the attacks leave something, which is known later (``with_room``).
        usual = checker.config.norm == norm and checker.config.epsilon in evaluated
        epsilon = checker.config.epsilon if usual else max(evaluated)
        config = dataclasses.replace(checker.config, norm=norm, epsilon=epsilon)  # type: ignore[arg-type]
        found.append(dataclasses.replace(checker, config=config))
    return found


def _with_twin(
    checker: Checker,
    request: Request,
    settings: RunSettings,
    dataset: Dataset,
    evaluation: EvaluationConfig,
) -> Checker:
    """Adds the plain batch-norm model for the transfer check, or the reason why there is none."""
    if settings.norm == "batch":
        reason = "the model is the plain batch-norm model itself"
        return dataclasses.replace(checker, twin_reason=reason)
    if request.twin is None:
        reason = "no twin: name the work folder of the same training with --norm batch as --twin"
        return dataclasses.replace(checker, twin_reason=reason)
    other = read_settings(request.twin)
    if other.norm != "batch" or other.config != settings.config:
        raise ConfigError(
            f"{request.twin} is no twin: it must be a training of the same configuration with "
            f"--norm batch; it has norm {other.norm}"
        )
    twin, _ = load_weights(request.twin, other, dataset, checker.task, request.weights)

    calibrating = Calibrating(twin, dataset.train, evaluation)

    def twin_with(source: Statistics) -> jax.tree_util.Partial:
        source = "running" if source == "none" else source
        return as_logits_fn(in_evaluation(calibrating.model(source), source))

    return dataclasses.replace(checker, twin=twin_with)


def _first(dataset: Dataset, count: int | None, display: Display) -> Dataset:
    """Returns the data set with the first of its test examples only."""
    if count is None:
        return dataset
    if count < 1:
        raise ConfigError(f"--test-examples must be at least 1; got {count}")
    if count > len(dataset.test):
        # A smoke configuration, for one, has few.
        display.say(
            f"--test-examples {count}: there are {len(dataset.test)}, all of which are measured"
        )
    return dataclasses.replace(
        dataset, test=dataset.test.take(np.arange(len(dataset.test))[:count])
    )
