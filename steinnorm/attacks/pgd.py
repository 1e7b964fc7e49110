"""Attacks that follow the gradient: the fast gradient method and projected gradient descent.

One compiled look at the model and one jitted move serve them all.  The loop around them runs on the
host, because a ``lax`` loop around convolutions is several times slower on a CPU
(``steinnorm.attacks.pgd_scan`` has the other form).
Radius and step size are traced, so a curve over many of them compiles once.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._ball import Ball
from steinnorm.attacks._criterion import share_reached
from steinnorm.attacks._inputs import Problem, check_finite, keep_worse, resolve_batch_dependence
from steinnorm.attacks._loss_and_gradient import Look, look
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks.losses import check_loss, needs_reference, per_example
from steinnorm.attacks.threat import AttackResult, Threat, warn_of_short_reach

Schedule = Callable[[float], float]
"""Maps the share of the steps that are done, in [0, 1), to a factor of the step size."""

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def fgsm(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    loss: str = "cross_entropy",
    target: jax.Array | None = None,
) -> AttackResult:
    """One step of the whole radius along the gradient (Goodfellow, Shlens & Szegedy 2015).

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K); whatever the
        model does to its inputs first, such as normalisation, belongs into it.  A
        ``jax.tree_util.Partial(apply, state)`` compiles once for all states of a model; see
        ``steinnorm.attacks._model``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels, integers in [0, K): (B,), or (B, H, W) with 255 where there is none.
      threat: the ball and the box.
      key: not used; every attack takes one.
      loss: a name of ``steinnorm.attacks.losses.LOSSES``.
      target: wanted labels, of the shape of ``y``; None for any wrong ones.

    Raises:
      ValueError: inputs, labels, logits or the loss's name are not as described, or the logits of
        clean inputs are not finite; ``NotFiniteError`` for gradients and attacked inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, fgsm
      >>> weights = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> x, y = jnp.array([[0.75, 0.5]]), jnp.array([0])
      >>> fgsm(lambda x: x @ weights, x, y, threat=Threat("linf", 0.25)).x_adv
      Array([[0.5 , 0.75]], dtype=float32)
    """
    del key
    problem = Problem.of(logits_fn, x, y, threat, target)
    check_loss(loss, problem.classes, problem.label_axes, targeted=target is not None)
    _check_start(loss, random_start=False)
    x_adv, vanished = _run(problem, problem.x, [float(threat.epsilon)], loss, momentum=0.0)
    return problem.result(x_adv, int(jnp.sum(vanished)))


def pgd(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 20,
    step_size: float | None = None,
    relative_step_size: float | None = None,
    schedule: str | Schedule = "constant",
    random_start: bool | None = None,
    restarts: int = 1,
    loss: str = "cross_entropy",
    momentum: float = 0.0,
    target: jax.Array | None = None,
    batch_dependent: bool | None = None,
) -> AttackResult:
    """Repeated steps, each projected into ball and box (Madry et al. 2018).

    With several restarts each example keeps the run in which the attack has most of what it wants,
    and among those the one of the largest loss.  Where logits hang on the batch, it is kept as a
    whole instead: a batch put together from several runs is one that no run ever saw.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels; as in ``fgsm``.
      threat: the ball and the box.
      key: randomness of the starts.
      steps: gradient steps per run.
      step_size: absolute size of a step, in the units of ``x`` and the threat's norm; None means
        2.5 * epsilon / steps.
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
    """
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
    joint = restarts > 1 and resolve_batch_dependence(problem, batch_dependent)

    kept = None
    for restart in range(restarts):
        start = problem.x
        if random_start and key is not None:
            start = _start(jax.random.fold_in(key, restart), problem.x, threat)
        x_adv, vanished = _run(problem, start, sizes, loss, momentum)
        if restarts > 1:
            found = (x_adv, *_judged(problem, x_adv, loss))
            kept = found if kept is None else keep_worse(kept, found, joint=joint)
    return problem.result(x_adv if kept is None else kept[0], int(jnp.sum(vanished)))


def _run(
    problem: Problem, start: jax.Array, sizes: list[float], loss: str, momentum: float
) -> tuple[jax.Array, jax.Array]:
    """One run from its start; the last point, and which gradients vanished there."""
    criterion, ball = problem.criterion_for(loss), Ball.of(problem.threat, momentum)
    at = _At(start, jnp.zeros_like(start) if momentum else None, jnp.zeros(len(start), bool))
    for number, size in enumerate(sizes):
        seen = look(
            problem.model, at.x, criterion._replace(progress=number / len(sizes)), loss=loss
        )
        at, vanished = _move(at, seen, problem.x, ball, size, norm=problem.threat.norm)
    check_finite(at.broken, "gradients")
    return at.x, vanished


class _At(NamedTuple):
    """Of each example: where it is, its velocity, and whether a gradient was not finite yet.

    There is no velocity without momentum.
    """

    x: jax.Array
    velocity: jax.Array | None
    broken: jax.Array


@functools.partial(jax.jit, static_argnames="norm")
def _move(
    at: _At, seen: Look, x: jax.Array, ball: Ball, size: float, *, norm: str
) -> tuple[_At, jax.Array]:
    """One step, projected around ``x``; and which examples' gradients are all zero, (B,) bool."""
    direction, velocity = seen.gradient, at.velocity
    flat = direction.reshape(direction.shape[0], -1)
    broken = at.broken | ~jnp.all(jnp.isfinite(flat), axis=1)
    if velocity is not None:
        direction = velocity = ball.momentum * velocity + geometry.with_mean_size_one(direction)
    moved = at.x + size * geometry.ascent(direction, norm)
    moved = geometry.project(moved, x, norm, ball.epsilon, ball.bounds)
    return _At(moved, velocity, broken), seen.vanished()


def _start(key: jax.Array, x: jax.Array, threat: Threat) -> jax.Array:
    noise = geometry.random_in_ball(key, x, threat.norm, threat.epsilon)
    return geometry.project(x + noise, x, threat.norm, threat.epsilon, threat.bounds)


def _judged(problem: Problem, x_adv: jax.Array, loss: str) -> tuple[jax.Array, jax.Array]:
    """Share of the labels reached and loss, (B,) both."""
    criterion, logits = problem.criterion_for(loss), predict(problem.model, x_adv)
    return share_reached(logits, criterion), per_example(loss, logits, criterion)


def _step_sizes(
    threat: Threat,
    steps: int,
    absolute: float | None,
    relative: float | None,
    schedule: str | Schedule,
) -> list[float]:
    """The size of every step, in the threat's norm."""
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
    return [float(absolute * schedule(number / steps)) for number in range(steps)]


def _check_schedule(threat: Threat, sizes: list[float], restarts: int, momentum: float) -> None:
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; got {restarts}")
    if not all(math.isfinite(size) and size >= 0 for size in sizes):
        raise ValueError(f"step_size must be finite and not negative; got {sizes[0]} at first")
    if not 0 <= momentum < math.inf:
        raise ValueError(f"momentum must be finite and not negative; got {momentum}")
    warn_of_short_reach(sizes, threat)


def _check_start(loss: str, *, random_start: bool) -> None:
    if needs_reference(loss) and not random_start:
        raise ValueError(f"{loss} is flat at the clean input: use pgd with a random start")
