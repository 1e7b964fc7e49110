"""All checks, in order, and accuracy against the number of steps."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import jax

from steinnorm.attacks._inputs import check_key
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks.checks.arguments import check_arguments
from steinnorm.attacks.checks.attack_strength import (
    huge_radius_reaches_chance,
    iterative_not_weaker,
    larger_radius_not_weaker,
    more_restarts,
    square_not_stronger,
    transfer_not_stronger,
    twice_the_steps,
)
from steinnorm.attacks.checks.batches import independent_of_the_batch
from steinnorm.attacks.checks.findings import FAIL, NOT_APPLICABLE, PASS, Finding
from steinnorm.attacks.checks.gradients import gradient_matches_finite_differences, zero_gradients
from steinnorm.attacks.checks.runs import NO_TWIN, Runs, Twin
from steinnorm.attacks.checks.settings import CheckSettings
from steinnorm.attacks.threat import Threat

OnProgress = Callable[[str, int, int], None]
"""Called with the name of what is done, how much is done, and of how much."""

_CHECKS: dict[str, Callable[[Runs], Finding]] = {
    "iterative_not_weaker": iterative_not_weaker,
    "larger_radius_not_weaker": larger_radius_not_weaker,
    "huge_radius_reaches_chance": huge_radius_reaches_chance,
    "twice_the_steps": twice_the_steps,
    "more_restarts": more_restarts,
    "square_not_stronger": square_not_stronger,
    "transfer_not_stronger": transfer_not_stronger,
    "zero_gradients": zero_gradients,
    "gradient_matches_finite_differences": gradient_matches_finite_differences,
    "batch_dependence": independent_of_the_batch,
}

NAMES = tuple(_CHECKS)
"""The names of all checks, in the order in which they are made and reported."""

CURVE = "accuracy_against_steps"
"""What progress calls the curve."""


@dataclasses.dataclass(frozen=True)
class Checks:
    """What the checks of one model found; ``print`` gives a short list.

    Attributes:
      findings: one for each of ``NAMES``, in that order.
      curve: PGD's steps -> share of the known labels that it leaves right, by rising steps; each
        point is a run of its own, with steps of 2.5 * epsilon / steps.
    """

    findings: list[Finding]
    curve: dict[int, float]

    def __str__(self) -> str:
        """Returns a line of counts, and one for each check; why, where it did not pass."""
        counts = Counter(finding.verdict for finding in self.findings)
        lines = [", ".join(f"{counts[v]} {v}" for v in (PASS, FAIL, NOT_APPLICABLE) if counts[v])]
        for finding in self.findings:
            line = str(finding)
            lines.append(line.split(":", 1)[0] if finding.verdict == PASS else line)
        return "\n".join(lines)


def run_checks(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    settings: CheckSettings | None = None,
    twin: LogitsFn | None = None,
    twin_reason: str = NO_TWIN,
    batch_dependent: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Checks:
    """Makes all checks on one batch, which is never divided.

    Args:
      logits_fn: the model, exactly as it is evaluated; as in ``fgsm``.
      x: inputs (B, ...) within ``threat.bounds``, one batch as the evaluation has them.  About a
        hundred examples are needed to tell a lead of 5 points from chance.
      y: the right labels: (B,), or (B, H, W) with 255 where there is none.
      threat: the ball and the box.
      key: randomness of starts, of Square, of directions and of companions; None is a fixed one.
      settings: None is ``CheckSettings()``.
      twin: the same network without the defence.
      twin_reason: why there is no twin, where there is none.
      batch_dependent: whether an example's logits change with its companions; None to find out.
      on_progress: called after each check and after the curve.

    Returns:
      A finding for every check, also for those that cannot be made; and the curve.

    Raises:
      ValueError: an argument is of the wrong kind, or the batch is empty, does not fit the model
        or has no known label; ``NotFiniteError`` where logits are NaN or infinite.
      LeftThreatError: an attack left its ball or box.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat
      >>> from steinnorm.attacks.checks import CheckSettings, run_checks
      >>> weights = jnp.array([[3.0, 0.0], [0.0, 3.0]])
      >>> x, y = jnp.array([[0.9, 0.1], [0.1, 0.9]]), jnp.array([0, 1])
      >>> small = CheckSettings(steps=2, restarts=2, square_queries=10)
      >>> checks = run_checks(
      ...     lambda x: x @ weights, x, y, threat=Threat("linf", 0.1), settings=small
      ... )
      >>> checks.findings[0].verdict
      'PASS'
    """
    settings = CheckSettings() if settings is None else settings
    check_key(key)
    check_arguments(logits_fn, x, y, threat=threat, settings=settings, twin=twin)
    runs = Runs(
        logits_fn,
        x,
        y,
        threat=threat,
        settings=settings,
        key=jax.random.key(0) if key is None else key,
        twin=Twin(twin, twin_reason),
        batch_dependent=batch_dependent,
    )
    total, findings = len(_CHECKS) + 1, []
    for number, (name, check) in enumerate(_CHECKS.items(), start=1):
        findings.append(check(runs))
        if on_progress is not None:
            on_progress(name, number, total)
    curve = {steps: runs.pgd(steps).accuracy for steps in curve_steps(settings.steps)}
    if on_progress is not None:
        on_progress(CURVE, total, total)
    return Checks(findings, curve)


def curve_steps(steps: int) -> list[int]:
    """Returns 1, 2, 5, 10, 20, 50, ... below twice the steps; the steps, and twice the steps."""
    marks = {steps, 2 * steps}
    decade = 1
    while decade < 2 * steps:
        marks.update(decade * digit for digit in (1, 2, 5) if decade * digit < 2 * steps)
        decade *= 10
    return sorted(marks)
