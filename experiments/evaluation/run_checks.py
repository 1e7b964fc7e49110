"""Makes the checks of an evaluation, and keeps them beside the results that they are about."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx

from experiments.configs.schema import ChecksConfig, Statistics
from experiments.data import devices
from experiments.data.examples import Examples, as_inputs
from experiments.evaluation.attack_batch import DEPENDENT, as_logits_fn
from experiments.evaluation.compiled_programs import release_where_many
from experiments.evaluation.identity import identity_of, is_of, weights_digest
from experiments.evaluation.plan import Run, Watcher
from experiments.models.norms import in_evaluation
from experiments.results import CONVERGENCE, Check, Row
from experiments.tasks import Segmentation, Task
from steinnorm.attacks import Threat
from steinnorm.attacks.checks import NAMES, Checks, Finding, run_checks
from steinnorm.attacks.checks.run import CURVE
from steinnorm.attacks.files import write_json
from steinnorm.attacks.intervals import Tally, wilson_interval

Twin = Callable[[Statistics], jax.tree_util.Partial]
"""Gives the plain batch-norm model of the same seed, with the given statistics."""


@dataclasses.dataclass(frozen=True)
class CheckedModel:
    """What the checks of one model with one source of statistics found.

    Attributes:
      checks: all of them, in order.
      curve: rows of accuracy against steps.
      identity: what they depend on.
    """

    checks: list[Check]
    curve: list[Row]
    identity: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Checker:
    """Makes the checks of one model with one source of statistics after another.

    Attributes:
      config: the settings.
      task: of the model.
      examples: of which the first are the batch.
      batch_size_of: gives the size of the evaluation's batches with a source of statistics; a batch
        of another size would be another model where statistics are those of the batch.
      seed: of all randomness.
      losses: that the evaluation's attacks increase, as in ``CheckSettings.losses``.
      twin: for the transfer check; None where there is none.
      twin_reason: why there is no twin, where there is none.
    """

    config: ChecksConfig
    task: Task
    examples: Examples
    batch_size_of: Callable[[str], int]
    seed: int
    losses: tuple[str, ...] = ()
    twin: Twin | None = None
    twin_reason: str = "no twin was given: the same network with plain batch norm, of the same seed"

    @property
    def steps(self) -> int:
        """How many steps ``check`` tells its watcher about: the checks, and the curve."""
        return len(NAMES) + 1

    def check(
        self,
        model: nnx.Module,
        source: Statistics,
        run: Run,
        workdir: Path | None = None,
        watcher: Watcher | None = None,
    ) -> CheckedModel:
        """Returns the checks, and rows of accuracy against steps; found in the folder or made.

        Args:
          model: the trained model.
          source: of the norm's statistics.
          run: that the model comes from.
          workdir: where they are kept; None for nowhere.
          watcher: is told how far it is: ``steps`` times in all.
        """
        watcher = watcher or Watcher()
        dependent = source in DEPENDENT
        # One batch, and of a size that is compiled already if it may be.
        batch_size = self.batch_size_of(source)
        count = min(self.config.examples, len(self.examples), batch_size)
        twin = None if self.twin is None else self.twin(source)
        settings = self.config.settings.with_losses(self.losses)
        identity = {
            **identity_of(model, self.examples, batch_size, source, run.calibrated_on),
            "losses": list(settings.losses),
            "config": json.loads(json.dumps(dataclasses.asdict(self.config))),
            "twin": self.twin_reason if twin is None else weights_digest(twin),
            "count": count,
        }
        path = None
        if workdir:
            path = _path(workdir, source, self.config.norm)
            found = _load(path)
            if found is not None and found.identity == identity:
                for _ in range(self.steps):
                    watcher.advanced()
                return found

        def on_progress(name: str, done: int, total: int) -> None:
            del name
            # The checks, then the curve of accuracy against steps, which is the last step.
            watcher.advanced()
            release_where_many()
            if done < total:
                watcher.begins(f"{source}, {(*NAMES, CURVE)[done]}")

        watcher.begins(f"{source}, {NAMES[0]}")
        part = self.examples.take(np.arange(count))
        mesh = devices.own_mesh(count)
        logits_fn = as_logits_fn(in_evaluation(model, source))
        logits_fn, twin = (devices.copy_to(each, mesh) for each in (logits_fn, twin))
        inputs, targets = devices.share((part.inputs, part.targets), mesh)
        made = run_checks(
            logits_fn,
            jax.jit(as_inputs)(inputs),
            targets,
            threat=Threat(self.config.norm, self.config.epsilon),
            batch_dependent=dependent,
            settings=settings,
            key=jax.random.key(self.seed),
            twin=twin,
            twin_reason=self.twin_reason,
            on_progress=on_progress,
        )
        checks = [self._named(finding, run, source) for finding in made.findings]
        found = CheckedModel(checks, self._curve(made, run, source, count), identity)
        if path:
            write_json(path, dataclasses.asdict(found))
        return found

    def _named(self, finding: Finding, run: Run, source: Statistics) -> Check:
        """Returns a check, whose name says so where its ball is not the usual one."""
        ball = "" if self.config.norm == "linf" else f" ({self.config.norm})"
        named = finding._replace(name=finding.name + ball)
        return Check(run.config, run.norm, run.seed, source, **named._asdict())

    def _curve(self, made: Checks, run: Run, source: Statistics, count: int) -> list[Row]:
        metric = "pixel_accuracy" if isinstance(self.task, Segmentation) else "accuracy"
        epsilon = self.config.epsilon

        def interval(value: float) -> tuple[float, float]:
            # Pixels of an image fall together, so that theirs would be too narrow.
            if metric == "pixel_accuracy":
                return value, value
            return wilson_interval(Tally(round(value * count), count))

        return [
            Row(
                config=run.config,
                norm=run.norm,
                seed=run.seed,
                statistics=source,
                attack=CONVERGENCE,
                epsilon=epsilon,
                metric=metric,
                value=value,
                n=count,
                ci_low=interval(value)[0],
                ci_high=interval(value)[1],
                norm_order=self.config.norm,
                steps=steps,
                step_size=2.5 * epsilon / steps,
                threat_model="joint" if source in DEPENDENT else "",
            )
            for steps, value in made.curve.items()
        ]


def gather(workdir: Path, found: Sequence[CheckedModel]) -> None:
    """Has the first process write what the others found; all of them must call it.

    Each has written its own before.  But the first one may not see a new file yet: the folder of a
    file system that machines share is listed from memory for up to a minute.

    Args:
      workdir: of the evaluation.
      found: by this process.
    """
    content = json.dumps([dataclasses.asdict(each) for each in found]).encode()
    others = devices.exchange(content)[1:]
    if not devices.is_first():
        return
    for theirs in others:
        for each in json.loads(theirs):
            source, norm = each["checks"][0]["statistics"], each["identity"]["config"]["norm"]
            write_json(_path(workdir, source, norm), each)


def load_all(workdir: Path, identity: Callable[[str], dict[str, Any]]) -> list[CheckedModel]:
    """Returns all checks of the folder that were made of this model on these examples.

    Args:
      workdir: of the evaluation.
      identity: gives that of a source, as ``experiments.evaluation.identity.identity_of`` does.
    """
    paths = sorted((workdir / "evaluation").glob("checks-*.json"))
    found = [checked for path in paths if (checked := _load(path)) is not None]
    ours = [
        checked
        for checked in found
        if is_of(checked.identity, identity(checked.checks[0].statistics))
    ]
    order = get_args(Statistics)
    return sorted(ours, key=lambda c: (order.index(c.checks[0].statistics), c.checks[0].name))


def _path(workdir: Path, source: str, norm: str) -> Path:
    return workdir / "evaluation" / f"checks-{source}-{norm}.json"


def _load(path: Path) -> CheckedModel | None:
    """Returns the checks in a file; None where there are none, or none that can be read."""
    try:
        content = json.loads(path.read_text())
        return CheckedModel(
            checks=[Check(**check) for check in content["checks"]],
            curve=[Row(**row) for row in content["curve"]],
            identity=content["identity"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
