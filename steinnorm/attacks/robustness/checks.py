"""The checks of an evaluation, made once, on its first batch with a label."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from steinnorm.attacks._model import LogitsFn, as_partial
from steinnorm.attacks.checks import FAIL, NOT_APPLICABLE, CheckSettings, Finding, run_checks
from steinnorm.attacks.files import write_json
from steinnorm.attacks.robustness.arguments import CheckRequest
from steinnorm.attacks.robustness.data import Batch
from steinnorm.attacks.robustness.evaluator import BatchEvaluator
from steinnorm.attacks.robustness.program import model_digest
from steinnorm.attacks.robustness.tables import CHECKS_MADE
from steinnorm.attacks.robustness.warn_once import warn_once
from steinnorm.attacks.threat import Threat


class CheckResults(NamedTuple):
    """The results of all checks at one radius.

    Attributes:
      epsilon: radius of the ball.
      examples: number of examples.
      findings: one finding per check, in the order of execution.
      curve: accuracy by the number of PGD's steps.
      error: why checks could not be made; empty if all were.
    """

    epsilon: float
    examples: int
    findings: tuple[Finding, ...]
    curve: dict[int, float]
    error: str = ""


def make_checks(
    evaluator: BatchEvaluator,
    batch: Batch | None,
    epsilon: float,
    check_request: CheckRequest,
    *,
    identity: dict[str, Any],
    path: Path | None,
) -> CheckResults:
    """Makes the checks, or reads them from a file if they were made with the same inputs.

    If none can be made, the result is a single finding with the reason; a single one that raises
    an error is a FAIL with it.

    Args:
      evaluator: the model and its threat.
      batch: first batch with a label, whose first examples are used; None if there is none.
      epsilon: radius of the ball.
      check_request: settings, number of examples and twin.
      identity: everything that all results of the evaluation depend on.
      path: file of the results; None for none.
    """
    if batch is None:
        detail = "checks could not be made: no label is known"
        return CheckResults(epsilon, 0, (Finding(CHECKS_MADE, NOT_APPLICABLE, None, detail),), {})
    identity = {**identity, "first": batch.digest()}
    if not evaluator.batch_dependent:  # a part of it would be another model
        index = batch.with_label()[: check_request.examples]
        batch = Batch(batch.number, batch.x[index], batch.y[index])
    try:
        return _load_or_run(evaluator, batch, epsilon, check_request, identity, path)
    except Exception as error:  # no failure of a check may lose hours of measurements
        detail = f"checks could not be made: {type(error).__name__}: {error}"
        failed = CheckResults(
            epsilon, len(batch.x), (Finding(CHECKS_MADE, FAIL, None, detail),), {}, detail
        )
        if path is not None:
            _write(path, failed, identity)
        return failed


def _load_or_run(  # noqa: PLR0917
    evaluator: BatchEvaluator,
    batch: Batch,
    epsilon: float,
    check_request: CheckRequest,
    identity: dict[str, Any],
    path: Path | None,
) -> CheckResults:
    settings, twin = check_request.settings, check_request.twin
    assert settings is not None
    twin_digest = None if twin is None or path is None else _digest_of(twin, batch)
    depends_on = {
        **identity,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "epsilon": epsilon,
        "examples": len(batch.x),
        "twin": twin_digest,
    }
    # A twin whose code cannot be described may be another one.
    results = _read(path, depends_on) if path is not None and twin_digest != "" else None
    if results is None:
        results = _run(evaluator, batch, epsilon, settings, twin)
        if path is not None:
            _write(path, results, depends_on)
    return results


def _digest_of(twin: LogitsFn, batch: Batch) -> str:
    """Returns what identifies a twin; empty if nothing does."""
    try:
        return model_digest(as_partial(twin), jnp.asarray(batch.x)) or ""
    except Exception:  # the check of transfer will say what is wrong with it
        return ""


def _run(
    evaluator: BatchEvaluator,
    batch: Batch,
    epsilon: float,
    settings: CheckSettings,
    twin: LogitsFn | None,
) -> CheckResults:
    """Makes the checks."""

    def report(name: str, done: int, total: int) -> None:
        evaluator.on_progress(f"check {done} of {total}, {name}")

    threat = Threat(evaluator.norm, epsilon, evaluator.bounds)
    with warn_once(evaluator.given_warnings):
        checks = run_checks(
            evaluator.model,
            jnp.asarray(batch.x),
            jnp.asarray(batch.y),
            threat=threat,
            key=evaluator.key,
            settings=settings,
            twin=twin,
            batch_dependent=evaluator.batch_dependent,
            on_progress=report,
            raise_errors=False,
        )
    error = "; ".join(f"check {error}" for error in checks.errors)
    return CheckResults(epsilon, len(batch.x), tuple(checks.findings), dict(checks.curve), error)


def _write(path: Path, results: CheckResults, identity: dict[str, Any]) -> None:
    content = {
        "identity": identity,
        "epsilon": results.epsilon,
        "examples": results.examples,
        "findings": [finding._asdict() for finding in results.findings],
        "curve": {str(steps): share for steps, share in results.curve.items()},
    }
    write_json(path, content | ({"error": results.error} if results.error else {}))


def _read(path: Path, identity: dict[str, Any]) -> CheckResults | None:
    try:
        content = json.loads(path.read_text())
        if content["identity"] != identity or "error" in content:
            return None
        return CheckResults(
            content["epsilon"],
            content["examples"],
            tuple(Finding(**finding) for finding in content["findings"]),
            {int(steps): share for steps, share in content["curve"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
