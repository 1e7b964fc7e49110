"""Attacks that follow the gradient: the fast gradient method and projected gradient descent.

Where they depart from the papers and from the reference implementation (torchattacks 3.5):

1. Saturating losses are followed along their derivative but for a positive factor, which is not
   lost to rounding where the model is sure (``steinnorm.attacks.losses``); signs and normalised
   directions are the same otherwise.
2. A Euclidean direction is normalised without a small constant in the divisor, which would shorten
   the steps where gradients are tiny.
3. The projection leaves no rounding: no value is farther from ``x`` (Linf) than the radius, as a
   number of the inputs' dtype.
4. With restarts each example keeps the run in which the attack has most of what it wants and, among
   those, the largest loss; what is kept is judged again.
5. Where an example's logits depend on its companions the batch is attacked, and kept, as a whole.

The loop runs on the host around one compiled look at the model, because a ``lax`` loop around
convolutions is several times slower on a CPU (``pgd_scan`` is the other form). Radius and step size
are traced, so a curve over many of them compiles once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._criterion import share_reached
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem, check_finite, check_key
from steinnorm.attacks._loss_and_gradient import LossAndGradient, loss_and_gradient
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks._survivors import keep_worse
from steinnorm.attacks.losses import check_loss, needs_reference, per_example
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat, check_threat, warn_of_short_reach

Schedule = Callable[[float], float]
"""Maps the share of the steps that are done, in [0, 1), to a factor of the step size."""

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def fgsm(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    loss: str = "cross_entropy",
    target: ArrayLike | None = None,
    batch_dependent: bool | None = None,
) -> AttackResult:
    """Takes one step of the whole radius along the gradient (Goodfellow, Shlens & Szegedy 2015).

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K); whatever the
        model does to its inputs first, such as normalisation, belongs into it. A
        ``jax.tree_util.Partial(apply, state)`` compiles once for all states of a model, and an NNX
        model may be passed as it is; a plain function compiles once for each function object.
      x: inputs (B, ...), floating, within ``threat.bounds``; may be split over devices.
      y: the right labels, integers in [0, K): (B,), or (B, H, W) with 255 where there is none.
      threat: the ball and the box.
      key: not used; every attack takes one.
      loss: a name of ``steinnorm.attacks.losses.LOSSES``.
      target: wanted labels, of the shape of ``y``; None for any wrong ones.
      batch_dependent: whether an example's logits change with its companions; None to find out.

    Raises:
      ValueError: inputs, labels, logits or the loss's name are not as described, or the logits of
        clean inputs are not finite; ``NotFiniteError`` for gradients and attacked inputs.

    Warns:
      BatchDependenceWarning: the model's logits change with the batch, and nobody said so.
      RadiusWarning: the ball holds the whole box: the radius may be in other units.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, fgsm
      >>> weights = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> x, y = jnp.array([[0.75, 0.5]]), jnp.array([0])
      >>> fgsm(lambda x: x @ weights, x, y, threat=Threat("linf", 0.25)).x_adv
      Array([[0.5 , 0.75]], dtype=float32)
    """
    check_key(key)
    problem = Problem.of(logits_fn, x, y, threat, target)
    check_loss(loss, problem.classes, problem.label_axes, targeted=target is not None)
    _check_start(loss, random_start=False)
    joint = resolve_batch_dependence(problem, batch_dependent)
    run = _Run(problem, loss, joint=joint, momentum=0.0)
    x_adv, vanished = run.follow(problem.x, [threat.epsilon])
    return problem.result(x_adv, vanished)


def pgd(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 20,
    step_size: float | np.ndarray | None = None,
    relative_step_size: float | np.ndarray | None = None,
    schedule: str | Schedule = "constant",
    random_start: bool | None = None,
    restarts: int = 1,
    loss: str = "cross_entropy",
    momentum: float = 0.0,
    target: ArrayLike | None = None,
    batch_dependent: bool | None = None,
) -> AttackResult:
    """Takes repeated steps, each projected into ball and box (Madry et al. 2018).

    With several restarts each example keeps the run in which the attack has most of what it wants,
    and among those the one of the largest loss.  Where logits depend on the batch, it is kept as a
    whole instead: a batch put together from several runs is one that no run ever saw.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels; as in ``fgsm``.
      threat: the ball and the box.
      key: randomness of the starts.
      steps: gradient steps per run.
      step_size: absolute size of a step, in the units of ``x`` and the threat's norm, also one for
        each channel; None means 2.5 * epsilon / steps.
      relative_step_size: the same as a share of epsilon; at most one of the two is given.
      schedule: ``constant``, ``linear`` or ``cosine`` (both fall to zero), or a function from the
        share of the steps that are done to a factor of the step size.
      random_start: start at a uniform draw from the ball; None means yes if there is a key.
      restarts: number of runs; more than one needs a random start.
      loss: a name of ``steinnorm.attacks.losses.LOSSES``.
      momentum: share of the last direction that is kept, of gradients scaled to a mean absolute
        value of 1 (Dong et al. 2018); 0 for none.
      target: wanted labels, of the shape of ``y``; None for any wrong ones.
      batch_dependent: whether an example's logits change with its companions; None to find out.

    Raises:
      ValueError: as in ``fgsm``, or a random start without a key, or steps, step size, schedule,
        momentum or restarts out of range.

    Warns:
      ShortReachWarning: the steps, laid end to end, are shorter than epsilon, so that the ball's
        edge is out of reach.
      BatchDependenceWarning, RadiusWarning: as in ``fgsm``.
    """
    check_key(key)
    check_threat(threat)
    random_start = key is not None if random_start is None else random_start
    if random_start and key is None:
        raise ValueError("a random start needs a key: pass key=jax.random.key(seed)")
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts from the same point are one; pass a key")
    sizes = _step_sizes(threat, steps, step_size, relative_step_size, schedule)
    _check_schedule(threat, sizes, restarts, momentum)
    problem = Problem.of(logits_fn, x, y, threat, target)
    check_loss(loss, problem.classes, problem.label_axes, targeted=target is not None)
    _check_start(loss, random_start=random_start)
    joint = resolve_batch_dependence(problem, batch_dependent)

    run, kept = _Run(problem, loss, joint=joint, momentum=momentum), None
    for restart in range(restarts):
        start = problem.x
        if random_start and key is not None:
            start = _start(jax.random.fold_in(key, restart), problem.x, threat)
        x_adv, vanished = run.follow(start, sizes)
        if restarts > 1:
            found = (x_adv, *run.judged(x_adv))
            kept = found if kept is None else keep_worse(kept, found, joint=joint)
    return problem.result(x_adv if kept is None else kept[0], vanished)


class _At(NamedTuple):
    """Of each example: where it is, its velocity, and whether a gradient was not finite yet.

    There is no velocity without momentum.
    """

    x: jax.Array
    velocity: jax.Array | None
    broken: jax.Array


class _Run:
    """Runs from several starts."""

    def __init__(self, problem: Problem, loss: str, *, joint: bool, momentum: float):
        self._problem, self._loss, self._joint = problem, loss, joint
        self._momentum = float(momentum)
        self._criterion = problem.criterion_for(loss, joint=joint)

    def follow(self, start: jax.Array, sizes: list[Any]) -> tuple[jax.Array, int]:
        """Returns the last point of a run, and how many gradients were all zero there."""
        velocity = jnp.zeros_like(start) if self._momentum else None
        broken = jnp.zeros_like(self._problem.x, shape=start.shape[:1], dtype=bool)
        at, vanished, first = _At(start, velocity, broken), broken, None
        for number, size in enumerate(sizes):
            aim = self._criterion._replace(progress=number / len(sizes))
            seen, logits = loss_and_gradient(
                self._problem.model,
                at.x,
                self._problem.criterion,
                aim,
                loss=self._loss,
                joint=self._joint,
            )
            first = logits if number == 0 else first
            at, vanished = _move(
                at, seen, self._problem.x, self._problem.threat, (size, self._momentum)
            )
        # Looked at behind the last step: before it, the host would wait for the device.
        assert first is not None  # there is at least one step
        which = "clean examples" if start is self._problem.x else "starts"
        self._problem.check_logits(first, which)
        check_finite(at.broken, "gradients")
        return at.x, int(jnp.sum(vanished))

    def judged(self, x_adv: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the share of the labels reached and the loss, (B,) both."""
        logits = predict(self._problem.model, x_adv)
        share = share_reached(logits, self._criterion)
        return share, per_example(self._loss, logits, self._criterion, joint=self._joint)


@jax.jit
def _move(
    at: _At, seen: LossAndGradient, x: jax.Array, threat: Threat, pace: tuple[Any, float]
) -> tuple[_At, jax.Array]:
    """Takes one step around ``x``; and which examples' gradients are all zero, (B,) bool."""
    size, momentum = pace
    direction, velocity = seen.gradient, at.velocity
    broken = at.broken | ~geometry.all_in_example(jnp.isfinite(direction))
    if velocity is not None:
        direction = velocity = momentum * velocity + geometry.with_mean_size_one(direction)
    moved = threat.step(at.x, x, direction, geometry.as_number(size, x))
    return _At(moved, velocity, broken), seen.vanished()


@jax.jit
def _start(key: jax.Array, x: jax.Array, threat: Threat) -> jax.Array:
    return threat.random_start(key, x)


def _step_sizes(
    threat: Threat,
    steps: int,
    absolute: Any,
    relative: Any,
    schedule: str | Schedule,
) -> list[Any]:
    """Returns the size of every step, in the threat's norm."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    if absolute is not None and relative is not None:
        raise ValueError(
            f"a step is absolute or relative, not both; got {absolute} and {relative} * epsilon"
        )
    if absolute is None:
        absolute = threat.epsilon * (2.5 / steps if relative is None else relative)
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            names = ", ".join(SCHEDULES)
            raise ValueError(f"schedule must be a function or one of {names}; got {schedule!r}")
        schedule = SCHEDULES[schedule]
    if np.ndim(absolute) == 0:
        absolute = float(absolute)
    return [absolute * schedule(number / steps) for number in range(steps)]


def _check_schedule(threat: Threat, sizes: list[Any], restarts: int, momentum: float) -> None:
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; got {restarts}")
    if not all(np.all(np.isfinite(size)) and np.all(np.asarray(size) >= 0) for size in sizes):
        raise ValueError(f"step_size must be finite and not negative; got {sizes[0]} at first")
    if not 0 <= momentum < math.inf:
        raise ValueError(f"momentum must be finite and not negative; got {momentum}")
    warn_of_short_reach(sizes, threat)


def _check_start(loss: str, *, random_start: bool) -> None:
    if needs_reference(loss) and not random_start:
        raise ValueError(f"{loss} is flat at the clean input: use pgd with a random start")
