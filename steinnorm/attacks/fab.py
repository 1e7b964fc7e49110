"""FAB (Croce & Hein 2020a): searches the nearest adversarial point, not the largest loss.

Differences from algorithm 1 there and from the authors' code:

1. It is the targeted form used in AutoAttack (Croce & Hein 2020b), with one run towards each of the
   likeliest wrong classes. Any wrong class counts as success; with ``target`` only the target does.
2. The projection onto the linearised boundary within the box is computed by Newton's iteration
   instead of a sort; both are exact.
3. A wrong logit must lead by a millionth of the logits' spread (of the classes that are not far
   behind), because rounding in a batch of another size may undo success on the boundary itself.
4. Points outside the ball are not returned, and broken examples leave before the next run.
5. There is no final bisection between the input and the nearest point.
6. With a radius per channel, distances are in multiples of it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._arguments import check_counts, check_key
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._explicit_meshes import full_like
from steinnorm.attacks._fab_projection import step_to_plane
from steinnorm.attacks._inputs import Problem, check_finite
from steinnorm.attacks._model import LogitsFn, traced_logits
from steinnorm.attacks._progress import OnProgress, RunProgress
from steinnorm.attacks._survivors import (
    WorstInputs,
    pad_indices,
    padded_size,
    place_like,
    shard_count,
    take_rows,
    where,
)
from steinnorm.attacks.losses import margin
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

_PROGRESS_EVERY = 25  # steps between two progress reports
_CLEAR_LEAD = 1e-6  # share of the logits' spread by which a wrong logit must lead
_MOST_SPREAD = 100.0  # that counts, in terms of the leading logits


def fab(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 100,
    target_classes: int = 9,
    target: ArrayLike | None = None,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    batch_dependent: bool | None = None,
    on_progress: OnProgress | None = None,
) -> AttackResult:
    """Minimises the distance of adversarial points by projections onto the linearised boundary.

    This is the targeted form used in AutoAttack (Croce & Hein 2020a, 2020b): one run towards each
    of the likeliest wrong classes. There is no step size, and the radius only decides whether the
    nearest point of a run counts. Any wrong class counts. Broken examples leave before the next
    run; examples that no run breaks are returned unchanged.

    Args:
      logits_fn: maps a batch to logits (B, K) or (B, 1); as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: true labels (B,).
      threat: ball and box.
      key: random key of the second and later starts; the first start is ``x``.
      steps: gradient steps per run.
      target_classes: number of likeliest wrong classes; at most all K - 1.
      target: labels (B,) of a targeted attack, which makes runs towards them only; None for an
        untargeted one.
      restarts: runs per class.
      alpha_max: largest weight of the projection of ``x`` in a step, in [0, 1].
      eta: factor by which steps to the boundary are extended, at least 1.
      beta: factor by which the distance from ``x`` is reduced at an adversarial point, in (0, 1].
      batch_dependent: whether an example's logits depend on the rest of the batch; None to test it.
      on_progress: called from time to time with the completed steps and all steps.

    Returns:
      The attacked batch and its success.

    Raises:
      ValueError: as in ``fgsm``; or the labels are label maps, logits depend on the batch, restarts
        have no key, or settings are out of range.

    Warns:
      RadiusWarning, ProbabilitiesWarning, RandomLogitsWarning: as in ``fgsm``.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, fab
      >>> x, y = jnp.array([[0.75, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
      >>> fab(lambda x: 4 * x, x, y, threat=Threat("linf", 0.25), steps=10).success
      Array([ True, False], dtype=bool)
    """
    check_key(key)
    _check_arguments(steps, target_classes, restarts, key)
    settings = _Settings(float(alpha_max), float(eta), float(beta))
    settings.check()
    problem = Problem.of(logits_fn, x, y, threat, target)
    if problem.label_axes:
        raise ValueError("fab is for one label per example; for a label per pixel use pgd or sea")
    if resolve_batch_dependence(problem, batch_dependent, quiet=True):
        raise ValueError(
            "fab minimises the distance of each example separately, which has no meaning if its "
            "logits depend on its companions or its place in the batch: use apgd or square"
        )
    x_adv, zero_gradients = run_fab(
        problem,
        key,
        steps=steps,
        target_classes=target_classes,
        restarts=restarts,
        settings=settings,
        on_progress=on_progress,
    )
    return problem.result(x_adv, zero_gradients)


class _Settings(NamedTuple):
    """Numeric settings of the attack, all traced; their meaning is that in ``fab``."""

    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def check(self) -> None:
        """Refuses settings out of range.

        Raises:
          ValueError: the message names the setting.
        """
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max must lie in [0, 1]; got {self.alpha_max}")
        if not 1 <= self.eta < float("inf"):
            raise ValueError(f"eta must be finite and at least 1; got {self.eta}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must lie in (0, 1]; got {self.beta}")


_DEFAULT_SETTINGS = _Settings()


def run_fab(
    problem: Problem,
    key: jax.Array | None,
    *,
    steps: int,
    target_classes: int = 9,
    restarts: int = 1,
    settings: _Settings = _DEFAULT_SETTINGS,
    on_progress: OnProgress | None = None,
) -> tuple[jax.Array, int]:
    """Runs the attack on a checked problem; the other arguments are those of ``fab``.

    Returns:
      The attacked inputs, and the number of all-zero gradients at the end of the last run.
    """
    x, y, target, *_ = problem.x, *problem.criterion
    worst = WorstInputs(x, problem.success_share())
    if target is None:
        runs_targets = [place_like(c, x) for c in problem.likeliest_wrong_classes(target_classes).T]
    else:
        runs_targets = [target]
    done, total, zero_gradients = 0, len(runs_targets) * restarts * steps, 0
    for number, target_classes_of_run in enumerate(runs_targets):
        for restart in range(restarts):
            if not len(worst.unbroken):
                break
            start = _start(key, (number, restart), problem)
            run = _Run(
                problem, _Batch(x, Criterion(y, target), target_classes_of_run), settings, steps
            )
            zero_gradients = run.follow(start, worst, RunProgress(on_progress, done, total))
            done += steps
    if on_progress is not None:
        on_progress(total, total)
    return _projected(place_like(worst.x, x), x, problem.threat), zero_gradients


class _Batch(NamedTuple):
    """Inputs, the criterion of success, and the class that a run aims for, (B,)."""

    x: jax.Array
    criterion: Criterion
    target_class: jax.Array


class _State(NamedTuple):
    """State of a run, with one entry per example.

    Attributes:
      point: current points, (B, ...).
      nearest: nearest adversarial points so far; the inputs if there are none.
      distance: distance of ``nearest``; infinite if there are none.
      zero_gradients: whether the last gradient was all zero.
      not_finite: whether any logit or gradient was NaN or infinite.
    """

    point: jax.Array
    nearest: jax.Array
    distance: jax.Array
    zero_gradients: jax.Array
    not_finite: jax.Array


def _check_arguments(steps: int, target_classes: int, restarts: int, key: jax.Array | None) -> None:
    check_counts(steps=steps, target_classes=target_classes, restarts=restarts)
    if restarts > 1 and key is None:
        raise ValueError(f"{restarts} restarts from the same point are identical; pass a key")


def _start(key: jax.Array | None, run: tuple[int, int], problem: Problem) -> jax.Array:
    """Returns the inputs for the first run, then points at half the radius from them."""
    if key is None or run[1] == 0:
        return problem.x
    for number in run:
        key = jax.random.fold_in(key, number)
    return _beside(key, problem.x, problem.threat.scaled(0.5))


@jax.jit
def _projected(x_adv: jax.Array, x: jax.Array, threat: Threat) -> jax.Array:
    return threat.project(x_adv, x)


@jax.jit
def _beside(key: jax.Array, x: jax.Array, threat: Threat) -> jax.Array:
    """Returns draws from the balls' surfaces around ``x``, clipped to the box, (B, ...)."""
    away = geometry.random_on_sphere(key, x, threat.norm, threat.epsilon)
    return geometry.clip_to_box(x + away, threat.bounds)


class _Run(NamedTuple):
    """One run on the examples that are not broken yet, towards one class each."""

    problem: Problem
    batch: _Batch
    settings: _Settings
    steps: int

    def follow(self, start: jax.Array, worst: WorstInputs, progress: RunProgress) -> int:
        """Updates ``worst``; returns the number of all-zero gradients in the last step."""
        threat, positions = self.problem.threat, worst.unbroken
        indices = pad_indices(
            positions, padded_size(len(positions), len(self.batch.x), shard_count(self.batch.x))
        )
        batch, point = take_rows((self.batch, start), indices)
        state = _initial_state(point, batch)
        for number in range(self.steps):
            state = _step(self.problem.model, state, batch, threat, self.settings)
            if (number + 1) % _PROGRESS_EVERY == 0:
                progress(number + 1)
        check_finite(np.asarray(state.not_finite)[: len(positions)], "logits or gradients")
        inside = state.distance <= threat.radius
        nearest_in_ball = where(inside, state.nearest, batch.x)
        worst.update(positions, nearest_in_ball, inside.astype(point.dtype))
        return int(np.asarray(state.zero_gradients)[: len(positions)].sum())


@jax.jit
def _initial_state(point: jax.Array, batch: _Batch) -> _State:
    no = full_like(batch.target_class, False, bool)
    infinite = full_like(batch.target_class, jnp.inf, point.dtype)
    return _State(point, batch.x, infinite, no, no)


@jax.jit
def _step(
    model: jax.tree_util.Partial,
    state: _State,
    batch: _Batch,
    threat: Threat,
    settings: _Settings,
) -> _State:
    """Steps to the boundary, and back if it was crossed (Croce & Hein 2020a, algorithm 1)."""

    def total_lead(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        lead = _lead(traced_logits(model, images), batch)
        return jnp.sum(lead), lead

    gradient, lead = jax.grad(total_lead, has_aux=True)(state.point)
    next_point = _project_between(
        state, batch.x, (gradient, lead.astype(gradient.dtype)), threat, settings
    )
    crossed = _leads_clearly(traced_logits(model, next_point), batch.criterion)
    distance = threat.distance(next_point, batch.x)
    nearer = crossed & (distance < state.distance)
    back = batch.x + settings.beta * (next_point - batch.x)
    finite = geometry.all_in_example(jnp.isfinite(gradient)) & jnp.isfinite(lead)
    return _State(
        point=where(crossed, back, next_point),
        nearest=where(nearer, next_point, state.nearest),
        distance=jnp.where(nearer, distance, state.distance),
        zero_gradients=geometry.all_in_example(gradient == 0),
        not_finite=state.not_finite | ~finite,
    )


def _project_between(
    state: _State,
    x: jax.Array,
    plane: tuple[jax.Array, jax.Array],
    threat: Threat,
    settings: _Settings,
) -> jax.Array:
    """Returns a weighted mean of the extended projections of ``point`` and of ``x``."""
    gradient, lead = plane
    lead_at_x = lead + jnp.sum(gradient * (x - state.point), axis=geometry.inner_axes(x))

    def projection(origin: jax.Array, lead_there: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = step_to_plane(origin, gradient, -lead_there, threat)
        size = jnp.maximum(threat.distance(step, jnp.zeros_like(step)), 1e-8)
        return origin + settings.eta * step, size

    from_here, size = projection(state.point, lead)
    from_x, size_from_x = projection(x, lead_at_x)
    alpha = jnp.minimum(size / (size + size_from_x), settings.alpha_max)
    alpha = geometry.per_example(alpha, x)
    next_point = geometry.clip_to_box((1 - alpha) * from_here + alpha * from_x, threat.bounds)
    if not threat.per_channel:
        return next_point
    # The mean's rounding must not change a channel of radius 0.
    return jnp.where(geometry.as_broadcastable(threat.epsilon, x) > 0, next_point, x)


def _lead(logits: jax.Array, batch: _Batch) -> jax.Array:
    """Returns what is zero on the boundary that a run steps to, and positive behind it, (B,)."""
    if batch.criterion.target is not None:  # the target must lead all classes, not the true one
        return margin(logits, batch.criterion)
    target, right = (
        jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        for labels in (batch.target_class, batch.criterion.y)
    )
    return target - right


def _leads_clearly(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns whether a point is adversarial by more than rounding, (B,) bool.

    Classes far behind, as padded ones with logits of -1e9, say nothing of the rounding of those
    that lead.
    """
    largest, true = (
        jnp.max(logits, axis=1),
        jnp.take_along_axis(logits, criterion.y[:, None], axis=1)[:, 0],
    )
    size = jnp.maximum(jnp.abs(largest), jnp.abs(true))
    spread = jnp.minimum(largest - jnp.min(logits, axis=1), _MOST_SPREAD * size)
    rounding = 2 * jnp.finfo(logits.dtype).eps * size
    return margin(logits, criterion) > jnp.maximum(_CLEAR_LEAD * spread, rounding)
