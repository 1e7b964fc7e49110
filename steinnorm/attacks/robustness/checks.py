"""The checks of an evaluation, made once on its first batch."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._files import write_json
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks.checks import Finding, Target, run_checks
from steinnorm.attacks.checks.settings import ChecksConfig
from steinnorm.attacks.robustness.data import Batch
from steinnorm.attacks.robustness.identity import arrays_digest
from steinnorm.attacks.robustness.measure import Measure


class Checked(NamedTuple):
    """What the checks of one ball found.

    Attributes:
      epsilon: radius of the ball.
      examples: on how many.
      findings: one for each check, in the order in which they are made.
      curve: steps of PGD -> share of the labels that are left.
    """

    epsilon: float
    examples: int
    findings: tuple[Finding, ...]
    curve: dict[int, float]


def checked(
    measure: Measure,
    first: Batch,
    epsilon: float,
    settings: ChecksConfig,
    *,
    twin: LogitsFn | None,
    identity: dict[str, Any],
    path: Path | None,
) -> Checked:
    """Makes the checks, or takes them from a file where they were made of just this.

    Args:
      measure: the model and its ball.
      first: the first batch, whose first examples they are made on.
      epsilon: radius of the ball.
      settings: of the checks; norm and radius are the evaluation's.
      twin: the same model without its defence, for the check of transfer.
      identity: what all results of the evaluation depend on.
      path: of the file; None for none.
    """
    settings = dataclasses.replace(settings, norm=measure.norm, epsilon=epsilon)  # type: ignore[arg-type]
    count = min(settings.examples, len(first.x))
    theirs = None if twin is None else arrays_digest(twin)
    depends_on = {
        **identity,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "first": first.digest(),
        "twin": theirs,
    }
    # A twin that is a plain function has nothing to be told by.
    found = _read(path, depends_on) if path is not None and theirs != "" else None
    if found is None:
        found = _made(measure, first, count, settings, twin)
        if path is not None:
            content = {
                "identity": depends_on,
                "epsilon": epsilon,
                "examples": count,
                "findings": [finding._asdict() for finding in found.findings],
                "curve": {str(steps): share for steps, share in found.curve.items()},
            }
            write_json(path, content)
    return found


def _made(
    measure: Measure, first: Batch, count: int, settings: ChecksConfig, twin: LogitsFn | None
) -> Checked:
    """The only place that calls ``run_checks``."""
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: measure.on_progress(  # noqa: E731
        f"check {done} of {total}, {name}"
    )
    made = run_checks(
        Target(measure.model, measure.batch_dependent, measure.bounds),
        jnp.asarray(first.x[:count]),
        jnp.asarray(first.y[:count]),
        config=settings,
        key=jax.random.key(measure.seed),
        twin=twin,
        on_progress=on_progress,
    )
    return Checked(settings.epsilon, count, tuple(made.findings), dict(made.curve))


def _read(path: Path, identity: dict[str, Any]) -> Checked | None:
    try:
        content = json.loads(path.read_text())
        if content["identity"] != identity:
            return None
        return Checked(
            content["epsilon"],
            content["examples"],
            tuple(Finding(**finding) for finding in content["findings"]),
            {int(steps): share for steps, share in content["curve"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
