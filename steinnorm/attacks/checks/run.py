"""All checks in order, and the accuracy against the number of steps."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from steinnorm.attacks._arguments import check_key
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks.checks.arguments import check_arguments
from steinnorm.attacks.checks.attack_strength import (
    huge_radius_reaches_chance,
    iterative_not_weaker,
    larger_radius_not_weaker,
    margin_not_stronger,
    more_restarts,
    square_not_stronger,
    transfer_not_stronger,
    twice_the_steps,
)
from steinnorm.attacks.checks.batches import independent_of_the_batch
from steinnorm.attacks.checks.findings import FAIL, NOT_APPLICABLE, PASS, Finding, not_applicable
from steinnorm.attacks.checks.gradients import gradient_matches_finite_differences, zero_gradients
from steinnorm.attacks.checks.runs import NO_TWIN, AttackRuns, Twin
from steinnorm.attacks.checks.settings import CheckSettings
from steinnorm.attacks.threat import Threat

OnProgress = Callable[[str, int, int], None]
"""Called with the name of the last check, the number of completed checks, and of all."""

_CHECKS: dict[str, Callable[[AttackRuns], Finding]] = {
    "iterative_not_weaker": iterative_not_weaker,
    "larger_radius_not_weaker": larger_radius_not_weaker,
    "huge_radius_reaches_chance": huge_radius_reaches_chance,
    "twice_the_steps": twice_the_steps,
    "more_restarts": more_restarts,
    "margin_not_stronger": margin_not_stronger,
    "square_not_stronger": square_not_stronger,
    "transfer_not_stronger": transfer_not_stronger,
    "zero_gradients": zero_gradients,
    "gradient_matches_finite_differences": gradient_matches_finite_differences,
    "batch_dependence": independent_of_the_batch,
}

_WITHOUT_GRADIENT = ("transfer_not_stronger", "batch_dependence")

NAMES = tuple(_CHECKS)
"""The names of all checks, in the order of their execution."""

CURVE = "accuracy_against_steps"
"""Name of the curve in progress reports."""


@dataclasses.dataclass(frozen=True)
class Checks:
    """The findings of all checks of one model; ``print`` shows a short list.

    Attributes:
      findings: one finding for each of ``NAMES``, in that order.
      curve: accuracy by the number of PGD's steps, in increasing order; each point is a separate
        run, with a step size of 2.5 * epsilon / steps. Empty for a model without a gradient.
      errors: with ``raise_errors=False``, the names of the checks that raised an error, each with
        its error.
    """

    findings: list[Finding]
    curve: dict[int, float]
    errors: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns a line of counts and a line per check, with the detail if it did not pass."""
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
    raise_errors: bool = True,
) -> Checks:
    """Checks an evaluation of robustness on one batch, which is never divided.

    Args:
      logits_fn: the model, exactly as it is evaluated; as in ``fgsm``.
      x: inputs (B, ...) within ``threat.bounds``, a batch like those of the evaluation. About a
        hundred examples are needed to distinguish a lead of 5 points from chance.
      y: true labels: (B,), or (B, H, W) with 255 for unlabelled pixels.
      threat: ball and box.
      key: random key of starts, Square, directions and companions; None means
        ``jax.random.key(0)``.
      settings: settings of the checks; None means ``CheckSettings()``.
      twin: the same network without the defence.
      twin_reason: the reason if there is no twin.
      batch_dependent: whether an example's logits depend on the rest of the batch; None to test it.
      on_progress: called after each check and after the curve.
      raise_errors: whether an error within a check is raised. Otherwise that check is a FAIL with
        the error, and the others are made; wrong arguments raise all the same.

    Returns:
      A finding for every check, including those that are not applicable, and the curve. Of a model
      without a gradient (``jax.pure_callback``) only the dependence on the batch and the transfer
      from a twin are checked.

    Raises:
      ValueError: an argument is of the wrong kind, or the batch is empty, does not fit the model or
        has no label; its subclass ``NotFiniteError`` if logits are NaN or infinite.
      LeftThreatError: an attack left its ball or box; as any other error within a check, unless
        ``raise_errors`` is False.

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
    runs = AttackRuns(
        logits_fn,
        x,
        y,
        threat=threat,
        settings=settings,
        key=jax.random.key(0) if key is None else key,
        twin=Twin(twin, twin_reason),
        batch_dependent=batch_dependent,
    )
    total, findings, errors = len(_CHECKS) + 1, [], []

    def attempt(name: str, make: Callable[[], Any]) -> Any:
        """Returns what is made, or the error if errors are not raised."""
        try:
            return make()
        except Exception as error:
            if raise_errors:
                raise
            errors.append(f"{name} raised {type(error).__name__}: {error}")
            return error

    for number, (name, check) in enumerate(_CHECKS.items(), start=1):
        applies = name in _WITHOUT_GRADIENT or not runs.why_no_gradient
        made = attempt(name, functools.partial(check if applies else _no_gradient(name), runs))
        if isinstance(made, Exception):
            made = Finding(name, FAIL, None, f"raised {type(made).__name__}: {made}")
        findings.append(made)
        if on_progress is not None:
            on_progress(name, number, total)
    steps = [] if runs.why_no_gradient else curve_steps(settings.steps)
    curve = attempt(CURVE, lambda: {count: runs.pgd(count).accuracy for count in steps})
    if on_progress is not None:
        on_progress(CURVE, total, total)
    return Checks(findings, {} if isinstance(curve, Exception) else curve, tuple(errors))


def _no_gradient(name: str) -> Callable[[AttackRuns], Finding]:
    """Returns the check in its place for a model without a gradient."""
    return lambda runs: not_applicable(
        name, f"the model has no gradient, which this check needs: {runs.why_no_gradient}"
    )


def curve_steps(steps: int) -> list[int]:
    """Returns 1, 2, 5, 10, 20, 50, ... below twice the steps, and the steps and twice the steps."""
    marks = {steps, 2 * steps}
    decade = 1
    while decade < 2 * steps:
        marks.update(decade * digit for digit in (1, 2, 5) if decade * digit < 2 * steps)
        decade *= 10
    return sorted(marks)
