"""FAB (Croce & Hein 2020a): looks for the nearest adversarial point, not the largest loss.

Where it departs from algorithm 1 there and from the authors' code:

1. It is the targeted form of AutoAttack (Croce & Hein 2020b): one run towards each of the
   likeliest wrong classes; any wrong class counts, or with ``target`` only the wanted one.
2. The projection onto the linearised boundary within the box is exact, by Newton's iteration
   instead of a sort.
3. A wrong logit must lead by a millionth of the logits' spread: points on the boundary itself are
   turned back by rounding in a batch of another size.
4. Points outside of the ball are not handed back; broken examples leave before the next run.
5. There is no final search by bisection between the input and the nearest point.
6. With a radius per channel, distances are in multiples of it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._criterion import Criterion, share_reached
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._fab_projection import step_to_plane
from steinnorm.attacks._inputs import Problem, check_finite, check_key
from steinnorm.attacks._model import LogitsFn, traced_logits
from steinnorm.attacks._progress import OnProgress, Tick
from steinnorm.attacks._survivors import (
    Worst,
    bucket,
    padded,
    placed_like,
    shards,
    take_rows,
    where,
)
from steinnorm.attacks.losses import margin
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

_TELL_EVERY = 25
_CLEAR = 1e-6  # share of the logits' spread by which a wrong one must lead


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
    """Projects onto the linearised boundary again and again, drawn back to ``x``.

    The targeted form of AutoAttack (Croce & Hein 2020a, 2020b): one run towards each of the classes
    that are likeliest but for the right one. Its steps have no size, and the radius only decides
    which of the points that were found count: the nearest one of a run, if it lies in the ball.
    Any wrong class counts. Broken examples leave before the next run; those that no run breaks come
    back as they were.

    Args:
      logits_fn: maps a batch to logits (B, K) or (B, 1); as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels (B,).
      threat: the ball and the box.
      key: randomness of the second and later starts; the first is ``x``.
      steps: gradient steps per run.
      target_classes: how many classes; all K - 1 where there are fewer.
      target: wanted labels (B,), towards which alone it runs, and which alone count; None for any
        wrong ones.
      restarts: runs per class.
      alpha_max: the largest share by which a step is drawn towards ``x``.
      eta: by what steps to the boundary are prolonged, at least 1.
      beta: by what the way from ``x`` is shortened once a point is adversarial, in (0, 1].
      batch_dependent: whether an example's logits change with its companions; None to find out.
      on_progress: called now and then.

    Raises:
      ValueError: as in ``fgsm``, or label maps, a model that depends on the batch, restarts
        without a key, or settings out of range.
    """
    check_key(key)
    _check(steps, target_classes, restarts, key)
    settings = _Settings(float(alpha_max), float(eta), float(beta))
    settings.check()
    problem = Problem.of(logits_fn, x, y, threat, target)
    if problem.label_axes:
        raise ValueError("fab is for one label per example; for a label per pixel take pgd or sea")
    if resolve_batch_dependence(problem, batch_dependent, quiet=True):
        raise ValueError(
            "fab keeps a smallest distance per example, which says nothing where an example's "
            "logits change with its companions: take apgd or square"
        )
    x_adv, vanished = run_fab(
        problem,
        key,
        steps=steps,
        target_classes=target_classes,
        restarts=restarts,
        settings=settings,
        on_progress=on_progress,
    )
    return problem.result(x_adv, vanished)


class _Settings(NamedTuple):
    """Numbers of the attack, all traced."""

    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def check(self) -> None:
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max must lie in [0, 1]; got {self.alpha_max}")
        if not 1 <= self.eta < float("inf"):
            raise ValueError(f"eta must be finite and at least 1; got {self.eta}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must lie in (0, 1]; got {self.beta}")


_USUAL = _Settings()


def run_fab(
    problem: Problem,
    key: jax.Array | None,
    *,
    steps: int,
    target_classes: int = 9,
    restarts: int = 1,
    settings: _Settings = _USUAL,
    on_progress: OnProgress | None = None,
) -> tuple[jax.Array, int]:
    """Runs the attack on a problem; the arguments are those of ``fab``, checked already.

    Returns:
      The attacked inputs, and how many gradients were all zero at the end of the last run.
    """
    x, y, wanted, *_ = problem.x, *problem.criterion
    kept = Worst(x, share_reached(problem.logits, problem.criterion))
    if wanted is None:
        columns = [placed_like(c, x) for c in problem.likeliest_wrong(target_classes).T]
    else:
        columns = [wanted]
    done, total, vanished = 0, len(columns) * restarts * steps, 0
    for number, column in enumerate(columns):
        for restart in range(restarts):
            if not len(kept.standing):
                break
            start = _start(key, (number, restart), problem)
            run = _Run(problem, _Batch(x, Criterion(y, wanted), column), settings, steps)
            vanished = run.follow(start, kept, Tick(on_progress, done, total))
            done += steps
    if on_progress is not None:
        on_progress(total, total)
    return problem.threat.project(placed_like(kept.x, x), x), vanished


class _Batch(NamedTuple):
    """Inputs, what counts, and the classes that a run heads for."""

    x: jax.Array
    criterion: Criterion
    towards: jax.Array


class _State(NamedTuple):
    """Holds for each example where it is, the nearest adversarial point, and how far that is."""

    at: jax.Array
    nearest: jax.Array
    distance: jax.Array
    vanished: jax.Array
    broken: jax.Array


def _check(steps: int, target_classes: int, restarts: int, key: jax.Array | None) -> None:
    if min(steps, target_classes, restarts) < 1:
        raise ValueError(
            "steps, target_classes and restarts must be at least 1; got "
            f"{steps}, {target_classes} and {restarts}"
        )
    if restarts > 1 and key is None:
        raise ValueError(f"{restarts} restarts from the same point are one; pass a key")


def _start(key: jax.Array | None, run: tuple[int, int], problem: Problem) -> jax.Array:
    """Returns the input at first, then points half a radius away from it."""
    if key is None or run[1] == 0:
        return problem.x
    for number in run:
        key = jax.random.fold_in(key, number)
    threat = problem.threat
    away = geometry.random_on_sphere(key, problem.x, threat.norm, 0.5 * threat.epsilon)
    return geometry.into_box(problem.x + away, threat.bounds)


class _Run(NamedTuple):
    """The search of the examples that still stand, towards one class each."""

    problem: Problem
    batch: _Batch
    settings: _Settings
    steps: int

    def follow(self, start: jax.Array, kept: Worst, tick: Tick) -> int:
        """Offers what lies in the ball to ``kept``; how many last gradients were all zero."""
        threat, index = self.problem.threat, kept.standing
        rows = padded(index, bucket(len(index), len(self.batch.x), shards(self.batch.x)))
        batch, at = take_rows((self.batch, start), rows)
        state = _begin(at, batch)
        for number in range(self.steps):
            state = _step(self.problem.model, state, batch, threat, self.settings)
            if (number + 1) % _TELL_EVERY == 0:
                tick(number + 1)
        check_finite(np.asarray(state.broken)[: len(index)], "logits or gradients")
        inside = state.distance <= threat.radius
        found = where(inside, state.nearest, batch.x)
        kept.offer(index, found, inside.astype(at.dtype))
        return int(np.asarray(state.vanished)[: len(index)].sum())


@jax.jit
def _begin(at: jax.Array, batch: _Batch) -> _State:
    no = jnp.zeros_like(batch.towards, dtype=bool)
    infinite = jnp.full_like(batch.towards, jnp.inf, dtype=at.dtype)
    return _State(at, batch.x, infinite, no, no)


@jax.jit
def _step(
    model: jax.tree_util.Partial,
    state: _State,
    batch: _Batch,
    threat: Threat,
    settings: _Settings,
) -> _State:
    """Steps to the boundary, and back where it was crossed (Croce & Hein 2020a, algorithm 1)."""

    def lead(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = traced_logits(model, images)
        wanted, right = (
            jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            for labels in (batch.towards, batch.criterion.y)
        )
        return jnp.sum(wanted - right), wanted - right

    gradient, ahead = jax.grad(lead, has_aux=True)(state.at)
    moved = _towards(state, batch.x, (gradient, ahead.astype(gradient.dtype)), threat, settings)
    crossed = _is_clear(traced_logits(model, moved), batch.criterion)
    distance = threat.distance(moved, batch.x)
    nearer = crossed & (distance < state.distance)
    back = batch.x + settings.beta * (moved - batch.x)
    finite = geometry.all_in_example(jnp.isfinite(gradient)) & jnp.isfinite(ahead)
    return _State(
        at=where(crossed, back, moved),
        nearest=where(nearer, moved, state.nearest),
        distance=jnp.where(nearer, distance, state.distance),
        vanished=geometry.all_in_example(gradient == 0),
        broken=state.broken | ~finite,
    )


def _towards(
    state: _State,
    x: jax.Array,
    plane: tuple[jax.Array, jax.Array],
    threat: Threat,
    settings: _Settings,
) -> jax.Array:
    """Returns a point between the boundary's nearest to ``at`` and to ``x``, and beyond."""
    gradient, ahead = plane
    ahead_at_x = ahead + jnp.sum(gradient * (x - state.at), axis=geometry.inner_axes(x))

    def step(origin: jax.Array, lead: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = step_to_plane(origin, gradient, -lead, threat)
        size = jnp.maximum(threat.distance(found, jnp.zeros_like(found)), 1e-8)
        return origin + settings.eta * found, size

    from_here, size = step(state.at, ahead)
    from_x, size_from_x = step(x, ahead_at_x)
    alpha = jnp.minimum(size / (size + size_from_x), settings.alpha_max)
    alpha = geometry.per_example(alpha, x)
    moved = geometry.into_box((1 - alpha) * from_here + alpha * from_x, threat.bounds)
    if not threat.per_channel:
        return moved
    # A channel of radius 0 must not change by the average's rounding either.
    return jnp.where(geometry.as_number(threat.epsilon, x) > 0, moved, x)


def _is_clear(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns whether what is wanted leads clearly, (B,)."""
    spread = jnp.max(logits, axis=1) - jnp.min(logits, axis=1)
    rounding = 2 * jnp.finfo(logits.dtype).eps * jnp.max(jnp.abs(logits), axis=1)
    return margin(logits, criterion) > jnp.maximum(_CLEAR * spread, rounding)
