"""Attacks that follow the gradient: the fast gradient method and projected gradient descent.

Differences from the papers and from the reference implementation (torchattacks 3.5):

1. Gradients of saturating losses are computed up to a positive factor, so that they do not vanish
   by rounding when the model is confident (``steinnorm.attacks.losses``). Signs and normalised
   directions are the same otherwise.
2. A Euclidean direction is normalised without a small constant in the divisor, which would shorten
   the steps when gradients are tiny.
3. The Linf projection accounts for rounding: in the inputs' dtype no value is farther from ``x``
   than the radius.
4. With restarts, each example keeps the run in which the attack succeeds on most of its labels and,
   among those, the run of the largest loss; the result is evaluated again.
5. If an example's logits depend on its companions, the batch is attacked and kept as a whole.

The loop runs in Python around one compiled step, because a ``lax`` loop around convolutions is
several times slower on a CPU (``pgd_scan`` has such a loop). Radius and step size are traced, so
that a curve over many of them is compiled once.
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
from steinnorm.attacks import _measurements as measurements
from steinnorm.attacks._arguments import (
    as_number,
    check_broadcasts,
    check_counts,
    check_key,
    check_size,
    refuse_traced,
)
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._explicit_meshes import full_like
from steinnorm.attacks._inputs import Problem, check_finite
from steinnorm.attacks._loss_and_gradient import LossAndGradient, loss_and_gradient
from steinnorm.attacks._mixtures import Mixtures
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks._survivors import keep_worse, place_like
from steinnorm.attacks.losses import check_loss, needs_reference
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat, check_threat, warn_of_short_reach

Schedule = Callable[[float], float]
"""Maps completed steps / all steps, in [0, 1), to a factor of the step size."""

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
      logits_fn: maps a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K), including all
        preprocessing such as normalisation. A ``jax.tree_util.Partial(apply, state)`` is compiled
        once for all states of a model, and an NNX model may be passed directly; a plain function is
        compiled once per function object.
      x: inputs (B, ...), floating, within ``threat.bounds``; may be divided among devices.
      y: true labels, integers in [0, K): (B,), or (B, H, W) with 255 for unlabelled pixels.
      threat: ball and box.
      key: not used; accepted because all other attacks take one.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``.
      target: labels that a targeted attack aims for, shape of ``y``; None for an untargeted one.
      batch_dependent: whether an example's logits depend on the rest of the batch; None to test it.

    Returns:
      The attacked batch and its success.

    Raises:
      ValueError: inputs, labels, logits or the loss are not as described; its subclass
        ``NotFiniteError`` if logits or gradients are NaN or infinite.

    Warns:
      BatchDependenceWarning: the logits depend on the batch, and ``batch_dependent`` is None.
      RadiusWarning: the ball contains the whole box: the radius may be in other units.
      ProbabilitiesWarning: ``logits_fn`` seems to return probabilities.
      RandomLogitsWarning: the logits of the same inputs differ between two calls.

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
    x_adv, zero_gradients = run.follow(problem.x, [threat.epsilon])
    return problem.result(x_adv, zero_gradients)


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

    With several restarts, each example keeps the run in which the attack succeeds on most of its
    labels and, among those, the run of the largest loss. If logits depend on the batch, the batch
    is kept as a whole instead: that of a run, or a mixture of several, which takes each example
    from a run that breaks it and is evaluated as a batch of its own.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: true labels; as in ``fgsm``.
      threat: ball and box.
      key: random key of the starts; None starts at ``x``.
      steps: gradient steps per run.
      step_size: absolute step size, in the units of ``x`` and the threat's norm, or one per
        channel; None means 2.5 * epsilon / steps.
      relative_step_size: step size / epsilon; excludes ``step_size``.
      schedule: ``constant``, ``linear`` or ``cosine`` (both decrease to zero), or a function from
        completed steps / all steps to a factor of the step size.
      random_start: whether to start at a uniform draw from the ball; None means yes if there is a
        key.
      restarts: number of runs; more than one needs a random start.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``.
      momentum: factor of the accumulated direction, to which each gradient is added after scaling
        to a mean absolute value of 1 (Dong et al. 2018); 0 for none.
      target: labels that a targeted attack aims for, shape of ``y``; None for an untargeted one.
      batch_dependent: whether an example's logits depend on the rest of the batch; None to test it.

    Returns:
      The attacked batch and its success.

    Raises:
      ValueError: as in ``fgsm``; or a random start has no key; or steps, step size, schedule,
        momentum or restarts are out of range.

    Warns:
      ShortReachWarning: the sum of the step sizes is smaller than epsilon, so that the edge of the
        ball is out of reach.
      BatchDependenceWarning, RadiusWarning, ProbabilitiesWarning, RandomLogitsWarning: as in
        ``fgsm``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, pgd
      >>> x, y = jnp.array([[0.75, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
      >>> result = pgd(lambda x: 4 * x, x, y, threat=Threat("linf", 0.25), key=jax.random.key(0))
      >>> result.success
      Array([ True, False], dtype=bool)
    """
    check_key(key)
    check_threat(threat)
    check_counts(restarts=restarts)
    random_start = key is not None if random_start is None else random_start
    if random_start and key is None:
        raise ValueError("a random start needs a key: pass key=jax.random.key(seed)")
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts from the same point are identical; pass a key")
    refuse_traced(threat=threat, step_size=step_size, relative_step_size=relative_step_size)
    sizes = _step_sizes(threat, steps, step_size, relative_step_size, schedule)
    check_size("momentum", as_number("momentum", momentum))
    problem = Problem.of(logits_fn, x, y, threat, target)
    check_broadcasts("step_size", sizes[0], problem.x.shape[1:], "an example")
    warn_of_short_reach(sizes, threat)
    check_loss(loss, problem.classes, problem.label_axes, targeted=target is not None)
    _check_start(loss, random_start=random_start)
    joint = resolve_batch_dependence(problem, batch_dependent)

    run, worst = _Run(problem, loss, joint=joint, momentum=momentum), None
    mixtures = Mixtures(problem) if joint and restarts > 1 else None
    for restart in range(restarts):
        start = problem.x
        if random_start and key is not None:
            start = _start(jax.random.fold_in(key, restart), problem.x, threat)
        x_adv, zero_gradients = run.follow(start, sizes)
        if restarts > 1:
            worst = run.worse(worst, x_adv)
        if mixtures is not None:
            worst = run.worse(worst, mixtures.add(x_adv)[0])
    return problem.result(x_adv if worst is None else worst[0], zero_gradients)


_Found = tuple[jax.Array, jax.Array, jax.Array]
"""Points (B, ...), the share of labels on which the attack succeeds there, and the loss; (B,)."""


class _State(NamedTuple):
    """State of a run: points, velocity, and whether any gradient so far was not finite, (B,).

    The velocity is None without momentum.
    """

    x: jax.Array
    velocity: jax.Array | None
    not_finite: jax.Array


class _Run:
    """Runs of PGD from several starts."""

    def __init__(self, problem: Problem, loss: str, *, joint: bool, momentum: float):
        self._problem, self._loss, self._joint = problem, loss, joint
        self._momentum = float(momentum)
        self._criterion = problem.criterion_for(loss, joint=joint)

    def follow(self, start: jax.Array, sizes: list[Any]) -> tuple[jax.Array, int]:
        """Returns the last points, and the number of all-zero gradients in the last step."""
        velocity = full_like(start, 0) if self._momentum else None
        not_finite = place_like(np.zeros(len(start), bool), self._problem.x)
        state, zero_gradients, first_logits = _State(start, velocity, not_finite), not_finite, None
        for number, size in enumerate(sizes):
            loss_criterion = self._criterion._replace(step_fraction=number / len(sizes))
            evaluation, logits = loss_and_gradient(
                self._problem.model,
                state.x,
                self._problem.criterion,
                loss_criterion,
                loss=self._loss,
                joint=self._joint,
            )
            first_logits = logits if number == 0 else first_logits
            state, zero_gradients = _move(
                state, evaluation, self._problem.x, self._problem.threat, (size, self._momentum)
            )
        # Checked after the last step, so that the host does not wait for the device before it.
        assert first_logits is not None  # there is at least one step
        which = "clean examples" if start is self._problem.x else "starts"
        self._problem.check_logits(first_logits, which)
        check_finite(state.not_finite, "gradients")
        return state.x, int(np.asarray(zero_gradients).sum())

    def worse(self, worst: _Found | None, x_adv: jax.Array) -> _Found:
        """Returns the worse for the model of what was found before, if anything was, and points."""
        logits = predict(self._problem.model, x_adv)
        criterion = self._criterion
        share_and_loss = measurements.share_and_loss(
            logits, criterion, criterion, loss=self._loss, joint=self._joint
        )
        found = (x_adv, *share_and_loss)
        return found if worst is None else keep_worse(worst, found, joint=self._joint)


@jax.jit
def _move(
    state: _State,
    evaluation: LossAndGradient,
    x: jax.Array,
    threat: Threat,
    pace: tuple[Any, float],
) -> tuple[_State, jax.Array]:
    """Takes one step; also returns which examples have an all-zero gradient, (B,) bool."""
    size, momentum = pace
    direction, velocity = evaluation.gradient, state.velocity
    not_finite = state.not_finite | ~geometry.all_in_example(jnp.isfinite(direction))
    if velocity is not None:
        direction = velocity = momentum * velocity + geometry.scaled_to_mean_size_one(direction)
    next_point = threat.step(state.x, x, direction, geometry.as_broadcastable(size, x))
    return _State(next_point, velocity, not_finite), evaluation.zero_gradients()


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
    """Returns the size of every step, in the threat's norm and units."""
    check_counts(steps=steps)
    if absolute is not None and relative is not None:
        raise ValueError(
            f"give step_size or relative_step_size, not both; got {absolute} and {relative}"
        )
    if absolute is None:
        relative = 2.5 / steps if relative is None else as_number("relative_step_size", relative)
        absolute = threat.epsilon * relative
    absolute = as_number("step_size", absolute)
    function = SCHEDULES.get(schedule) if isinstance(schedule, str) else schedule
    if not callable(function):
        names = ", ".join(SCHEDULES)
        raise ValueError(f"schedule must be a function or one of {names}; got {schedule!r}")
    sizes = [absolute * function(number / steps) for number in range(steps)]
    for number, size in enumerate(sizes):
        check_size(f"step_size (here that of step {number + 1})", size)
    return sizes


def _check_start(loss: str, *, random_start: bool) -> None:
    if needs_reference(loss) and not random_start:
        raise ValueError(f"{loss} has no gradient at the clean input: use pgd with a random start")
