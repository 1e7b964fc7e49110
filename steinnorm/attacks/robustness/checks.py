"""The checks of an evaluation, made once, on its first batch with a known label."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._model import LogitsFn, as_argument
from steinnorm.attacks.checks import FAIL, NOT_APPLICABLE, CheckSettings, Finding, run_checks
from steinnorm.attacks.files import write_json
from steinnorm.attacks.robustness.arguments import Wanted
from steinnorm.attacks.robustness.data import Batch
from steinnorm.attacks.robustness.described import arrays_digest
from steinnorm.attacks.robustness.measure import Measure
from steinnorm.attacks.robustness.tables import CHECKS_MADE
from steinnorm.attacks.threat import Threat


class Checked(NamedTuple):
    """What the checks of one ball found.

    Attributes:
      epsilon: radius of the ball.
      examples: on how many.
      findings: one for each check, in the order in which they are made.
      curve: steps of PGD -> share of the labels that are left.
      error: why they could not be made; empty where they were.
    """

    epsilon: float
    examples: int
    findings: tuple[Finding, ...]
    curve: dict[int, float]
    error: str = ""


def checked(
    measure: Measure,
    batch: Batch | None,
    epsilon: float,
    wanted: Wanted,
    *,
    identity: dict[str, Any],
    path: Path | None,
) -> Checked:
    """Makes the checks, or takes them from a file where they were made of just this.

    Where they cannot be made, a single finding says so, and why.

    Args:
      measure: the model and its ball.
      batch: the first batch with a known label, whose first examples they are made on; None where
        there is none.
      epsilon: radius of the ball.
      wanted: how they are made.
      identity: what all results of the evaluation depend on.
      path: of the file; None for none.
    """
    if batch is None:
        detail = "checks could not be made: no label is known"
        return Checked(epsilon, 0, (Finding(CHECKS_MADE, NOT_APPLICABLE, None, detail),), {})
    identity = {**identity, "first": batch.digest()}
    if not measure.batch_dependent:  # else a part of it would be another model
        index = batch.with_label()[: wanted.examples]
        batch = Batch(batch.place, batch.x[index], batch.y[index])
    try:
        return _found(measure, batch, epsilon, wanted, identity, path)
    except Exception as error:  # whatever it is, hours of measurements must not be lost by it
        detail = f"checks could not be made: {type(error).__name__}: {error}"
        failed = Checked(
            epsilon, len(batch.x), (Finding(CHECKS_MADE, FAIL, None, detail),), {}, detail
        )
        if path is not None:
            _write(path, failed, identity)
        return failed


def _found(  # noqa: PLR0917
    measure: Measure,
    batch: Batch,
    epsilon: float,
    wanted: Wanted,
    identity: dict[str, Any],
    path: Path | None,
) -> Checked:
    settings, twin = wanted.settings, wanted.twin
    assert settings is not None
    theirs = None if twin is None else arrays_digest(as_argument(twin))
    depends_on = {
        **identity,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "epsilon": epsilon,
        "examples": len(batch.x),
        "twin": theirs,
    }
    # A twin that is a plain function has nothing to be told by.
    found = _read(path, depends_on) if path is not None and theirs != "" else None
    if found is None:
        found = _made(measure, batch, epsilon, settings, twin)
        if path is not None:
            _write(path, found, depends_on)
    return found


def _made(
    measure: Measure,
    batch: Batch,
    epsilon: float,
    settings: CheckSettings,
    twin: LogitsFn | None,
) -> Checked:
    """Makes the checks; the only place that calls ``run_checks``."""

    def tell(name: str, done: int, total: int) -> None:
        measure.on_progress(f"check {done} of {total}, {name}")

    threat = Threat(measure.norm, epsilon, measure.bounds)
    made = run_checks(
        measure.model,
        jnp.asarray(batch.x),
        jnp.asarray(batch.y),
        threat=threat,
        key=jax.random.key(measure.seed),
        settings=settings,
        twin=twin,
        batch_dependent=measure.batch_dependent,
        on_progress=tell,
    )
    return Checked(epsilon, len(batch.x), tuple(made.findings), dict(made.curve))


def _write(path: Path, found: Checked, identity: dict[str, Any]) -> None:
    content = {
        "identity": identity,
        "epsilon": found.epsilon,
        "examples": found.examples,
        "findings": [finding._asdict() for finding in found.findings],
        "curve": {str(steps): share for steps, share in found.curve.items()},
    }
    write_json(path, content | ({"error": found.error} if found.error else {}))


def _read(path: Path, identity: dict[str, Any]) -> Checked | None:
    try:
        content = json.loads(path.read_text())
        if content["identity"] != identity or "error" in content:
            return None
        return Checked(
            content["epsilon"],
            content["examples"],
            tuple(Finding(**finding) for finding in content["findings"]),
            {int(steps): share for steps, share in content["curve"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
