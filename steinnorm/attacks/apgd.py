"""Auto-PGD (Croce & Hein 2020b): projected gradient descent with adaptive step sizes.

Differences from algorithm 1 there and from the authors' code:

1. Each example keeps the point in which the attack succeeds on most of its labels and, among those,
   the point of the largest loss; the authors keep the first misclassified point.
2. Broken examples leave the batch between checkpoints, which changes no other example's result.
3. For label maps the share of wrong pixels decides which point is kept, while the steps follow the
   loss.
4. If an example's logits depend on its companions, the batch is treated as a single example, with
   one loss, one step size and one result per run; mixtures of runs are tried too.
5. Targeted losses are run towards the likeliest wrong classes one after the other, and any wrong
   class counts as success; with ``target`` only the target does.
6. Starts lie on the ball's surface (Linf: scaled so that the largest change is the radius).
7. Rounding neither hides gradients of saturating losses nor moves points out of the ball (``pgd``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._arguments import check_counts, check_key
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._explicit_meshes import full_like
from steinnorm.attacks._inputs import Problem, check_finite
from steinnorm.attacks._loss_and_gradient import LossAndGradient, loss_and_gradient
from steinnorm.attacks._mixtures import Mixtures
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._progress import OnProgress, RunProgress
from steinnorm.attacks._survivors import (
    WorstInputs,
    is_worse,
    pad_indices,
    padded_size,
    place_like,
    shard_count,
    take_rows,
    where,
)
from steinnorm.attacks.losses import TOWARDS_CLASSES, check_loss, needs_reference
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

_RHO = 0.75  # the step size is halved if fewer than this share of the steps increase the loss
_INERTIA = 0.75  # weight of the new step; the last movement has the rest


def apgd(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross_entropy",
    target_classes: int = 9,
    target: ArrayLike | None = None,
    start: ArrayLike | None = None,
    batch_dependent: bool | None = None,
    on_progress: OnProgress | None = None,
) -> AttackResult:
    """Ascends the loss with momentum and adaptive step sizes (Croce & Hein 2020b).

    This is algorithm 1 there, with its constants. Each example keeps the point in which the attack
    succeeds on most of its labels and, among those, the point of the largest loss. If no example's
    logits depend on the others, broken examples leave the batch.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: true labels; as in ``fgsm``.
      threat: ball and box.
      key: random key of the starts, which lie on the ball's surface; None starts at ``x``.
      steps: gradient steps per run.
      restarts: number of runs; more than one needs a key.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``; or ``targeted_dlr`` or
        ``targeted_margin``, which make one run towards each of the likeliest wrong classes, where
        any wrong class counts as success (one label per example only).
      target_classes: number of these classes; at most all K - 1.
      target: labels that a targeted attack aims for, shape of ``y``; None for an untargeted one.
      start: points (B, ...) to start at instead of random ones; they are projected.
      batch_dependent: whether an example's logits depend on the rest of the batch; None to test it.
        If they do, the batch is kept as a whole, that of a run or a mixture.
      on_progress: called from time to time with the completed steps and all steps.

    Returns:
      The attacked batch and its success.

    Raises:
      ValueError: as in ``fgsm``; or steps or restarts are out of range, or restarts have no key.

    Warns:
      BatchDependenceWarning, RadiusWarning, ProbabilitiesWarning, RandomLogitsWarning: as in
        ``fgsm``.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, apgd
      >>> x, y = jnp.array([[0.75, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
      >>> result = apgd(lambda x: 4 * x, x, y, threat=Threat("linf", 0.25), steps=10)
      >>> result.success
      Array([ True, False], dtype=bool)
    """
    check_key(key)
    check_counts(steps=steps, restarts=restarts, target_classes=target_classes)
    if restarts > 1 and (key is None or start is not None):
        raise ValueError(
            f"{restarts} restarts from the same point are identical; pass a key and no start"
        )
    if needs_reference(loss) and key is None and start is None:
        raise ValueError(
            f"{loss} has no gradient at the clean input: pass a key for a random start"
        )
    problem = Problem.of(logits_fn, x, y, threat, target)
    _check_loss(problem, loss)
    x_adv, zero_gradients = run_apgd(
        problem,
        key,
        joint=resolve_batch_dependence(problem, batch_dependent),
        steps=steps,
        restarts=restarts,
        loss=loss,
        target_classes=target_classes,
        start=start,
        on_progress=on_progress,
    )
    return problem.result(x_adv, zero_gradients)


def run_apgd(
    problem: Problem,
    key: jax.Array | None,
    *,
    joint: bool,
    steps: int,
    restarts: int = 1,
    loss: str = "cross_entropy",
    target_classes: int = 9,
    start: Any = None,
    on_progress: OnProgress | None = None,
) -> tuple[jax.Array, int]:
    """Runs the attack on a checked problem; the other arguments are those of ``apgd``.

    Returns:
      The attacked inputs, and the number of all-zero gradients at the end of the last run.
    """
    loss_criteria = _loss_criteria(problem, loss, target_classes, joint)
    worst = WorstInputs(problem.x, problem.success_share(joint=joint))
    zero_gradients, done, total = 0, 0, restarts * len(loss_criteria) * steps
    mixtures = Mixtures(problem) if joint and total > steps else None
    for restart in range(restarts):
        for number, loss_criterion in enumerate(loss_criteria):
            point = _start(key, (restart, number), problem, start)
            run = _Run(problem, loss_criterion, loss, steps, joint)
            zero_gradients = run.follow(point, worst, RunProgress(on_progress, done, total))
            if mixtures is not None:
                worst.update(np.arange(len(problem.x)), *mixtures.add(run.result))
            done += steps
    return place_like(worst.x, problem.x), zero_gradients


class _State(NamedTuple):
    """State of a run, with one entry per example.

    Attributes:
      point: current points, (B, ...).
      previous_point: points before the last step.
      evaluation: loss, success and gradient at ``point``.
      best_point: point of the largest loss, to which halving the step size returns.
      best_evaluation: loss, success and gradient at ``best_point``.
      result_point: worst point for the model, which the attack returns.
      result_share: share of the labels on which the attack succeeds there.
      result_loss: loss there.
      step_size: in multiples of the radius.
      increases: number of steps since the last checkpoint that increased the loss.
      not_finite: whether any loss or gradient was NaN or infinite.
      best_loss_at_checkpoint: largest loss at the last checkpoint.
      halved: whether the step size was halved there.
    """

    point: jax.Array
    previous_point: jax.Array
    evaluation: LossAndGradient
    best_point: jax.Array
    best_evaluation: LossAndGradient
    result_point: jax.Array
    result_share: jax.Array
    result_loss: jax.Array
    step_size: jax.Array
    increases: jax.Array
    not_finite: jax.Array
    best_loss_at_checkpoint: jax.Array
    halved: jax.Array


class _Run:
    """One run on the unbroken examples; if the batch stays whole, ``result`` is then its own."""

    result: jax.Array

    def __init__(
        self, problem: Problem, loss_criterion: Criterion, loss: str, steps: int, joint: bool
    ):
        self._problem, self._steps, self._joint = problem, steps, joint
        self._loss, self._loss_criterion = loss, loss_criterion
        self._multiple = shard_count(problem.x)

    def follow(self, start: jax.Array, worst: WorstInputs, progress: RunProgress) -> int:
        """Updates ``worst``; returns the number of all-zero gradients at the end."""
        problem, threat = self._problem, self._problem.threat
        positions = np.arange(len(problem.x)) if self._joint else worst.unbroken
        if not len(positions):
            return 0
        largest = len(problem.x)
        indices = pad_indices(positions, padded_size(len(positions), largest, self._multiple))
        x, criterion, loss_criterion, point = take_rows(
            (problem.x, problem.criterion, self._loss_criterion, start), indices
        )
        state = _initial_state(point, self._evaluate(point, criterion, loss_criterion))
        checkpoints = set(_checkpoints(self._steps))
        for number in range(self._steps):
            next_point = _move(state, x, threat, 1.0 if number == 0 else _INERTIA)
            loss_criterion = loss_criterion._replace(step_fraction=(number + 1) / self._steps)
            state = _update(
                state, next_point, self._evaluate(next_point, criterion, loss_criterion)
            )
            if number + 1 not in checkpoints:
                continue
            width = number + 1 - max((c for c in checkpoints if c < number + 1), default=0)
            state = _update_step_sizes(state, _RHO * width)
            progress(number + 1)
            if self._joint:
                continue
            check_finite(np.asarray(state.not_finite)[: len(positions)], "losses or gradients")
            unbroken = np.flatnonzero(np.asarray(state.result_share)[: len(positions)] < 1)
            size = padded_size(max(len(unbroken), 1), largest, self._multiple)
            if not len(unbroken) or size < len(indices):
                worst.update(positions, state.result_point, state.result_share, state.result_loss)
                if not len(unbroken):
                    return 0
                positions = positions[unbroken]
                indices = pad_indices(unbroken, size)
                state, x, criterion, loss_criterion = take_rows(
                    (state, x, criterion, loss_criterion), indices
                )
        check_finite(np.asarray(state.not_finite)[: len(positions)], "losses or gradients")
        worst.update(positions, state.result_point, state.result_share, state.result_loss)
        self.result = state.result_point
        return int(np.asarray(_zero_gradients(state.evaluation))[: len(positions)].sum())

    def _evaluate(
        self, point: jax.Array, criterion: Criterion, loss_criterion: Criterion
    ) -> LossAndGradient:
        model = self._problem.model
        return loss_and_gradient(
            model, point, criterion, loss_criterion, loss=self._loss, joint=self._joint
        )[0]


@jax.jit
def _initial_state(point: jax.Array, evaluation: LossAndGradient) -> _State:
    zero = full_like(evaluation.loss, 0)
    return _State(
        point=point,
        previous_point=point,
        evaluation=evaluation,
        best_point=point,
        best_evaluation=evaluation,
        result_point=point,
        result_share=evaluation.share,
        result_loss=evaluation.loss,
        step_size=full_like(evaluation.loss, 2),
        increases=zero,
        not_finite=evaluation.not_finite(),
        best_loss_at_checkpoint=evaluation.loss,
        halved=full_like(evaluation.loss, True, bool),
    )


@jax.jit
def _move(state: _State, x: jax.Array, threat: Threat, inertia: float) -> jax.Array:
    """Returns the next points (Croce & Hein 2020b, equation 3)."""
    size = geometry.per_example(state.step_size.astype(x.dtype), x)
    size = size * geometry.as_broadcastable(threat.epsilon, x)
    stepped = threat.step(state.point, x, state.evaluation.gradient, size)
    next_point = (
        state.point
        + inertia * (stepped - state.point)
        + (1 - inertia) * (state.point - state.previous_point)
    )
    return threat.project(next_point, x)


@jax.jit
def _update(state: _State, point: jax.Array, evaluation: LossAndGradient) -> _State:
    better = evaluation.loss > state.best_evaluation.loss
    worse = is_worse(evaluation.share, evaluation.loss, state.result_share, state.result_loss)
    return state._replace(
        point=point,
        previous_point=state.point,
        evaluation=evaluation,
        best_point=where(better, point, state.best_point),
        best_evaluation=jax.tree.map(
            lambda a, b: where(better, a, b), evaluation, state.best_evaluation
        ),
        result_point=where(worse, point, state.result_point),
        result_share=jnp.where(worse, evaluation.share, state.result_share),
        result_loss=jnp.where(worse, evaluation.loss, state.result_loss),
        not_finite=state.not_finite | evaluation.not_finite(),
        increases=state.increases
        + (evaluation.loss > state.evaluation.loss).astype(evaluation.loss.dtype),
    )


@jax.jit
def _update_step_sizes(state: _State, enough: float) -> _State:
    """Halves the step size of examples without progress and returns these to their best point."""
    best_point = state.best_evaluation.loss
    stuck = ~state.halved & (state.best_loss_at_checkpoint >= best_point)
    halve = (state.increases <= enough) | stuck
    return state._replace(
        point=where(halve, state.best_point, state.point),
        evaluation=jax.tree.map(
            lambda a, b: where(halve, a, b), state.best_evaluation, state.evaluation
        ),
        step_size=jnp.where(halve, 0.5 * state.step_size, state.step_size),
        increases=full_like(state.increases, 0),
        best_loss_at_checkpoint=best_point,
        halved=halve,
    )


def _checkpoints(steps: int) -> Iterator[int]:
    """Yields the checkpoints, after windows of 22 %, 19 %, ..., 6 % of the steps."""
    width, narrowest = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    done = 0
    while done + width <= steps:
        done += width
        yield done
        width = max(width - max(int(0.03 * steps), 1), narrowest)


def _check_loss(problem: Problem, loss: str) -> None:
    """Refuses a loss that is not defined for the problem.

    Raises:
      ValueError: the message says what to use instead.
    """
    towards, targeted = loss in TOWARDS_CLASSES, problem.criterion.target is not None
    name = loss.removeprefix("targeted_")
    check_loss(name, problem.classes, problem.label_axes, targeted=towards or targeted)
    if towards and problem.label_axes:
        raise ValueError(f"{loss} is for one label per example; got a label per pixel")
    if towards and targeted:
        raise ValueError(f"{loss} goes through several targets itself; with target use {name}")


def _loss_criteria(
    problem: Problem, loss: str, target_classes: int, joint: bool
) -> list[Criterion]:
    """Returns the criterion of the loss for each run."""
    criterion = problem.criterion_for(loss, joint=joint)
    if loss not in TOWARDS_CLASSES:
        return [criterion]
    targets = problem.likeliest_wrong_classes(target_classes)
    columns = [place_like(column, problem.x) for column in targets.T]
    return [criterion._replace(target=column) for column in columns]


def _start(key: jax.Array | None, run: tuple[int, int], problem: Problem, start: Any) -> jax.Array:
    """Returns the first points of a run: ``start``, random points, or the inputs."""
    x, threat = problem.x, problem.threat
    if start is not None:
        if jnp.shape(start) != x.shape:
            raise ValueError(f"start must have the shape {x.shape} of x; got {jnp.shape(start)}")
        return _project(threat, jnp.asarray(start, x.dtype), x)
    if key is None:
        return x
    for number in run:
        key = jax.random.fold_in(key, number)
    return _random_on_surface(threat, key, x)


# Each compiled as a whole rather than operation by operation.
_project = jax.jit(Threat.project)
_zero_gradients = jax.jit(LossAndGradient.zero_gradients)
_random_on_surface = jax.jit(Threat.random_on_surface)
