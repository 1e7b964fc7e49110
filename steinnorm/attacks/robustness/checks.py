"""The checks of an evaluation, made once on its first batch."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._files import write_json
from steinnorm.attacks._model import LogitsFn, as_argument
from steinnorm.attacks.checks import CheckSettings, Finding, run_checks
from steinnorm.attacks.robustness.data import Batch
from steinnorm.attacks.robustness.identity import arrays_digest
from steinnorm.attacks.robustness.measure import Measure
from steinnorm.attacks.threat import Threat


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
    settings: CheckSettings,
    *,
    examples: int,
    twin: LogitsFn | None,
    identity: dict[str, Any],
    path: Path | None,
) -> Checked:
    """Makes the checks, or takes them from a file where they were made of just this.

    Args:
      measure: the model and its ball.
      first: the first batch, whose first examples they are made on.
      epsilon: radius of the ball.
      settings: of the checks.
      examples: on how many they are made, at most those of the batch.
      twin: the same model without its defence, for the check of transfer.
      identity: what all results of the evaluation depend on.
      path: of the file; None for none.
    """
    threat = Threat(measure.norm, epsilon, measure.bounds)
    # Where logits depend on the batch, a part of it would be another model.
    count = len(first.x) if measure.batch_dependent else min(examples, len(first.x))
    theirs = None if twin is None else arrays_digest(as_argument(twin))
    depends_on = {
        **identity,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
        "first": first.digest(),
        "epsilon": epsilon,
        "examples": count,
        "twin": theirs,
    }
    # A twin that is a plain function has nothing to be told by.
    found = _read(path, depends_on) if path is not None and theirs != "" else None
    if found is None:
        found = _made(measure, first, count, threat, settings, twin)
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


def _made(  # noqa: PLR0917
    measure: Measure,
    first: Batch,
    count: int,
    threat: Threat,
    settings: CheckSettings,
    twin: LogitsFn | None,
) -> Checked:
    """Makes the checks; the only place that calls ``run_checks``."""

    def tell(name: str, done: int, total: int) -> None:
        measure.on_progress(f"check {done} of {total}, {name}")

    made = run_checks(
        measure.model,
        jnp.asarray(first.x[:count]),
        jnp.asarray(first.y[:count]),
        threat=threat,
        key=jax.random.key(measure.seed),
        settings=settings,
        twin=twin,
        batch_dependent=measure.batch_dependent,
        on_progress=tell,
    )
    return Checked(float(np.max(threat.epsilon)), count, tuple(made.findings), dict(made.curve))


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
