"""Measures a trained network on the test part of its data set."""

import dataclasses
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import data
from experiments.commands.console import is_quiet
from experiments.commands.watch import Reading
from experiments.configs import attacks as catalogue
from experiments.configs.schema import AttackConfig, EvaluationConfig, Statistics
from experiments.data.examples import Dataset
from experiments.errors import ConfigError
from experiments.evaluation import aggregate as scores
from experiments.evaluation import per_example as cells
from experiments.evaluation import run_checks as checking
from experiments.evaluation.attack_batch import DEPENDENT, ThreatModel, check_fits
from experiments.evaluation.measure import Labels, Plan, as_logits_fn, evaluate, identity_of
from experiments.evaluation.run_checks import Checker
from experiments.models.norms import in_evaluation, sources
from experiments.results import Row
from experiments.tasks import Task, by_name
from experiments.training.folder import RunSettings, data_dir_of, read_settings
from experiments.training.weights import load_weights
from steinnorm.attacks.files import write_json

_PAUSE = 30.0  # seconds between two lines of progress where there is no bar


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for; lists are separated by commas.

    Attributes:
      statistics: sources of statistics; empty for the configuration's.
      attacks: the configuration's or the catalogue's (``experiments.configs.attacks``), ``all``
        for all of the configuration's; empty for none.
      epsilons: strengths, as ``2/255,8/255``; empty for the attack's own.
      threat_models: for statistics of the test batch, names of ``ThreatModel``.
      victims: examples for the threat models that attack one at a time.
      test_examples: the first of the test part only; None is all.
      batch_size: None is the configuration's.
      steps: of all attacks that take steps; None is each one's own.
      queries: of those that count queries; None is each one's own.
      weights: ``best`` (by validation) or ``last``.
      twin: work folder of the same training with plain batch norm, for the transfer check.
      check_examples: examples that the checks run on; None is the configuration's, 0 for no
        checks.
    """

    statistics: str = ""
    attacks: str = ""
    epsilons: str = ""
    threat_models: str = "joint"
    victims: int = 32
    test_examples: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    queries: int | None = None
    weights: str = "best"
    twin: Path | None = None
    check_examples: int | None = None


def run(
    workdir: Path,
    request: Request = Request(),
    *,
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Measures, prints and writes ``results.json`` and ``checks.json`` into the work folder.

    Per-example results are kept in ``evaluation/`` after every batch; a command that was stopped,
    or that asks for more, takes from there what is measured already.  ``results.json`` has all
    that is in there for these weights, test examples and this batch size, whichever command
    measured it.

    Args:
      workdir: of a training.
      request: what is measured.
      data_dir: the data set; the folder that the training read by default.
      cache_dir: decoded data.
      console: where to print; standard output by default.

    Raises:
      ConfigError: a name that is not known, a folder without a training, data that cannot be used.
      CheckpointError: the weights cannot be read.
      LeftThreatError: an attack left its ball or box.
    """
    console = console or Console(soft_wrap=True)
    settings = read_settings(workdir)
    config = settings.config
    evaluation = _evaluation(config.evaluation, request)
    with Reading(console) as reading:
        dataset = data.load(
            config.data, data_dir or data_dir_of(workdir), cache_dir, reading.progress
        )
    dataset = _first(dataset, request.test_examples)
    task = by_name(config.task, dataset.classes)
    for attack in evaluation.attacks:
        check_fits(attack, task)
    model, progress = load_weights(workdir, settings, dataset, task, request.weights)
    console.print(
        f"{config.name} ({config.preset}), norm {settings.norm}, seed {settings.seed}: "
        f"{request.weights} weights, of step {progress.step}; {len(dataset.test)} test examples in "
        f"batches of {evaluation.batch_size}",
        highlight=False,
    )
    plans = _plans(evaluation, settings.norm, request)
    labels = Labels(config.name, settings.norm, settings.seed, dataset.class_names)
    checkers = _checkers(request, evaluation, settings, dataset, task)
    with _Bar(console, sum(plan.batches(len(dataset.test)) for plan in plans)) as bar:
        for plan in plans:
            evaluate(
                model,
                task,
                dataset.test,
                plan,
                labels=labels,
                workdir=workdir,
                on_batch=bar.advance,
                on_progress=bar.note,
                on_row=lambda row: bar.say(_line(row)),
            )
        for source in dict.fromkeys(plan.statistics for plan in plans):
            for checker in checkers:
                checker.run(model, source, labels, workdir, bar.note)
    identity = identity_of(model, dataset.test, evaluation.batch_size)
    checked = checking.load_all(workdir, identity)
    checks = [check for found in checked for check in found.checks]
    for check in checks:
        console.print(
            f"check: {check.verdict:14} {check.statistics:8} {check.name}: {check.detail}",
            highlight=False,
            markup=False,
        )
    if not checks and evaluation.attacks:
        reason = (
            "--check-examples 0 asks for none"
            if request.check_examples == 0
            else "they test attacks of a radius above 0, and none was asked for"
        )
        console.print(f"check: none was made: {reason}", highlight=False)
    rows = _all_rows(workdir, task, identity) + [row for found in checked for row in found.curve]
    write_json(workdir / "results.json", [dataclasses.asdict(row) for row in rows])
    write_json(workdir / "checks.json", [dataclasses.asdict(check) for check in checks])
    console.print(f"written: {workdir / 'results.json'}", highlight=False)
    return rows


def _all_rows(workdir: Path, task: Task, identity: dict[str, Any]) -> list[Row]:
    """Rows of everything that was measured in the folder of this model on these examples."""
    found = []
    for cell in cells.load_all(workdir):
        theirs = cell.about["identity"]
        if cell.is_complete and {name: theirs.get(name) for name in identity} == identity:
            found.append(cell)
    found = scores.in_order(found)
    rows = [row for cell in found for row in scores.rows(task, cell)]
    return rows + scores.worst_rows(task, found)


def _checkers(
    request: Request,
    evaluation: EvaluationConfig,
    settings: RunSettings,
    dataset: Dataset,
    task: Task,
) -> list[Checker]:
    """What makes the checks, for each kind of ball; none where no checks are wanted."""
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
            batch_size=evaluation.batch_size,
            seed=settings.seed,
        ),
        request,
        settings,
        dataset,
    )
    found = []
    for norm, evaluated in radii.items():
        if not evaluated:
            continue
        # At the configuration's radius where that is measured, else at the largest that is.
        usual = checker.config.norm == norm and checker.config.epsilon in evaluated
        epsilon = checker.config.epsilon if usual else max(evaluated)
        config = dataclasses.replace(checker.config, norm=norm, epsilon=epsilon)  # type: ignore[arg-type]
        found.append(dataclasses.replace(checker, config=config))
    return found


def _with_twin(
    checker: Checker, request: Request, settings: RunSettings, dataset: Dataset
) -> Checker:
    """With the plain batch-norm model for the transfer check, or the reason why there is none."""
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

    def twin_with(source: Statistics) -> jax.tree_util.Partial:
        return as_logits_fn(in_evaluation(twin, "running" if source == "none" else source))

    return dataclasses.replace(checker, twin=twin_with)


def _first(dataset: Dataset, count: int | None) -> Dataset:
    if count is None:
        return dataset
    if count < 1:
        raise ConfigError(f"--test-examples must be at least 1; got {count}")
    return dataclasses.replace(
        dataset, test=dataset.test.take(np.arange(len(dataset.test))[:count])
    )


def _evaluation(known: EvaluationConfig, request: Request) -> EvaluationConfig:
    """The configuration with what the command line changes in it."""
    size = known.batch_size if request.batch_size is None else request.batch_size
    if size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {size}")
    if request.victims < 1:
        raise ConfigError(f"--victims must be at least 1; got {request.victims}")
    return dataclasses.replace(
        known,
        batch_size=size,
        attacks=tuple(_attacks(known.attacks, request)),
        statistics=_statistics(request.statistics) or known.statistics,
    )


def _plans(evaluation: EvaluationConfig, norm: str, request: Request) -> list[Plan]:
    """One for each source of statistics and, where it matters, threat model."""
    known = get_args(ThreatModel)
    wanted = [name.strip() for name in request.threat_models.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"unknown threat model {name!r}; expected some of {', '.join(known)}")
    models: list[ThreatModel] = [name for name in known if name in wanted]
    plans = []
    for source in sources(norm, evaluation.statistics):
        single: list[ThreatModel] = ["joint"]
        chosen = models if source in DEPENDENT and evaluation.attacks else single
        refused = [attack.name for attack in evaluation.attacks if attack.kind == "fab"]
        if source in DEPENDENT and refused:
            raise ConfigError(
                f"{', '.join(refused)} keeps a smallest distance per example, which says nothing "
                f"with {source} statistics: name --statistics running, or other attacks"
            )
        for threat_model in chosen:
            # Noise has no attacker: once is enough.
            attacks = [a for a in evaluation.attacks if threat_model == "joint" or a.has_ball]
            plans.append(
                Plan(
                    statistics=source,
                    batch_size=evaluation.batch_size,
                    attacks=attacks,
                    threat_model=threat_model,
                    victims=request.victims,
                )
            )
    return plans


def _attacks(known: Sequence[AttackConfig], request: Request) -> list[AttackConfig]:
    by_attack = {attack.name: attack for attack in known}
    names: list[str] = []
    for name in filter(None, map(str.strip, request.attacks.split(","))):
        names += by_attack if name == "all" else [name]
    radii = tuple(_epsilon(text) for text in request.epsilons.split(",") if text)
    changes: dict[str, int] = {}
    for field in ("steps", "queries"):
        value = getattr(request, field)
        if value is not None and value < 1:
            raise ConfigError(f"--{field} must be at least 1; got {value}")
        if value is not None:
            changes[field] = value
    found = []
    for name in dict.fromkeys(names):
        attack = by_attack.get(name) or catalogue.by_name(name)
        if attack.kind == "fgsm":
            changed = {k: v for k, v in changes.items() if k != "steps"}
        else:
            changed = changes
        found.append(
            dataclasses.replace(attack, epsilons=radii or attack.epsilons, **changed)  # type: ignore[arg-type]
        )
    return found


def _epsilon(text: str) -> float:
    try:
        value = float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"a strength is a number such as 0.03 or 8/255; got {text!r}") from error
    if value < 0:
        raise ConfigError(f"a strength must not be negative; got {text!r}")
    return value


def _statistics(text: str) -> tuple[Statistics, ...]:
    known = [name for name in get_args(Statistics) if name != "none"]
    wanted = [name.strip() for name in text.split(",") if name]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"unknown statistics {name!r}; expected some of {', '.join(known)}")
    return tuple(wanted)  # type: ignore[arg-type]


def _line(row: Row) -> str:
    attack = row.attack if row.attack == "clean" else f"{row.attack} {row.epsilon:.4g}"
    source = row.statistics + (f" ({row.threat_model})" if row.threat_model else "")
    return (
        f"{source:19} {attack:22} {row.metric:15} {row.value:.4f} "
        f"[{row.ci_low:.4f}, {row.ci_high:.4f}]"
    )


class _Bar:
    """How far the evaluation is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, batches: int):
        self._console, self._total, self._done = console, batches, 0
        self._quiet = is_quiet(console)
        self._progress = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=self._quiet,
            transient=True,
        )
        self._task = self._progress.add_task("compiling", total=batches)
        self._last = time.monotonic()

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, what: str) -> None:
        """A batch is done."""
        self._done += 1
        self._progress.update(self._task, advance=1, description=what)
        self._now_and_then(f"batch {self._done} of {self._total}: {what}")

    def note(self, what: str) -> None:
        """Something is done that is no batch."""
        self._progress.update(self._task, description=what)
        self._now_and_then(what)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._progress.console.print(line, highlight=False, markup=False)
        self._last = time.monotonic()

    def _now_and_then(self, line: str) -> None:
        if self._quiet and time.monotonic() - self._last > _PAUSE:
            self.say(line)
