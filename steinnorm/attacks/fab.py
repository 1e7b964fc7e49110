"""FAB (Croce & Hein 2020a): looks for the nearest adversarial point, not the largest loss."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._ball import Ball
from steinnorm.attacks._criterion import Criterion, share_reached
from steinnorm.attacks._fab_projection import step_to_plane
from steinnorm.attacks._inputs import Problem, check_finite, resolve_batch_dependence
from steinnorm.attacks._model import LogitsFn, traced_logits
from steinnorm.attacks._progress import OnProgress, Tick
from steinnorm.attacks._survivors import Kept, bucket, gather, padded
from steinnorm.attacks.losses import margin
from steinnorm.attacks.threat import AttackResult, Threat

_TELL_EVERY = 25
# Nearest points lie on the boundary, where rounding in a batch of another size turns a label back.
# By this share of the largest logit a wrong one must lead.
_CLEAR = 1e-6


def fab(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 100,
    target_classes: int = 9,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    batch_dependent: bool | None = None,
    on_progress: OnProgress | None = None,
) -> AttackResult:
    """Repeated projections onto the linearised boundary, drawn back to ``x`` (Croce & Hein 2020a).

    The targeted form of AutoAttack (Croce & Hein 2020b): one run towards each of the classes that
    are likeliest but for the right one.  Its steps have no size, and the radius only decides which
    of the points that were found count: the nearest one of a run, if it lies in the ball.  Any
    wrong class counts.  Broken examples leave before the next run; those that no run breaks come
    back as they were.

    Args:
      logits_fn: maps a batch to logits (B, K) or (B, 1); as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels (B,).
      threat: the ball and the box.
      key: randomness of the second and later starts; the first is ``x``.
      steps: gradient steps per run.
      target_classes: how many classes; all K - 1 where there are fewer.
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
    _check(steps, target_classes, restarts, key)
    settings = _Settings(Ball.of(threat), float(alpha_max), float(eta), float(beta))
    settings.check()
    problem = Problem.of(logits_fn, x, y, threat)
    if problem.label_axes:
        raise ValueError("fab is for one label per example; for a label per pixel take pgd or sea")
    if resolve_batch_dependence(problem, batch_dependent, warn=False):
        raise ValueError(
            "fab keeps a smallest distance per example, which says nothing where an example's "
            "logits change with its companions: take apgd or square"
        )
    kept = Kept(problem.x, share_reached(problem.logits, problem.criterion))
    targets = problem.likeliest_wrong(target_classes)
    done, total, vanished = 0, targets.shape[1] * restarts * steps, 0
    for number in range(targets.shape[1]):
        for restart in range(restarts):
            start = _start(key, (number, restart), problem)
            if not len(kept.standing):
                break
            tick = Tick(on_progress, done, total)
            everything = _Batch(problem.x, problem.criterion.y, targets[:, number])
            run = _Run(problem, everything, settings, steps)
            vanished = run.follow(start, kept, tick)
            done += steps
    if on_progress is not None:
        on_progress(total, total)
    x_adv = geometry.project(
        jnp.asarray(kept.x), problem.x, threat.norm, threat.epsilon, threat.bounds
    )
    return problem.result(x_adv, vanished)


class _Settings(NamedTuple):
    """Numbers of the attack, all traced."""

    ball: Ball
    alpha_max: float
    eta: float
    beta: float

    def check(self) -> None:
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max must lie in [0, 1]; got {self.alpha_max}")
        if not 1 <= self.eta < float("inf"):
            raise ValueError(f"eta must be finite and at least 1; got {self.eta}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must lie in (0, 1]; got {self.beta}")


class _Batch(NamedTuple):
    """Inputs, right labels, and those of the classes that a run heads for."""

    x: jax.Array
    y: jax.Array
    target: jax.Array


class _State(NamedTuple):
    """Of each example: where it is, the nearest adversarial point, and how far that is."""

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
    """The input at first, then points half a radius away from it."""
    if key is None or run[1] == 0:
        return problem.x
    for number in run:
        key = jax.random.fold_in(key, number)
    threat = problem.threat
    away = geometry.random_on_sphere(key, problem.x, threat.norm, 0.5 * threat.epsilon)
    return jnp.clip(problem.x + away, *threat.bounds)


class _Run(NamedTuple):
    """The search of the examples that still stand, towards one class each."""

    problem: Problem
    batch: _Batch
    settings: _Settings
    steps: int

    def follow(self, start: jax.Array, kept: Kept, tick: Tick) -> int:
        """Offers what lies in the ball to ``kept``; how many last gradients were all zero."""
        threat, index = self.problem.threat, kept.standing
        rows = padded(index, bucket(len(index), len(self.batch.x)))
        batch, at = gather((self.batch, start), rows)
        infinite = jnp.full(len(rows), jnp.inf, at.dtype)
        state = _State(at, batch.x, infinite, *jnp.zeros((2, len(rows)), bool))
        for number in range(self.steps):
            state = _step(self.problem.model, state, batch, self.settings, norm=threat.norm)
            if (number + 1) % _TELL_EVERY == 0:
                tick(number + 1)
        check_finite(np.asarray(state.broken)[: len(index)], "logits or gradients")
        inside = state.distance <= threat.epsilon
        found = jnp.where(geometry.per_example(inside, at), state.nearest, batch.x)
        kept.offer(index, found, inside.astype(at.dtype))
        return int(np.asarray(state.vanished)[: len(index)].sum())


@functools.partial(jax.jit, static_argnames="norm")
def _step(
    model: jax.tree_util.Partial, state: _State, batch: _Batch, settings: _Settings, *, norm: str
) -> _State:
    """One step to the boundary, and back where it was crossed (Croce & Hein 2020a, algorithm 1)."""

    def lead(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = traced_logits(model, images)
        wanted, right = (
            jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            for labels in (batch.target, batch.y)
        )
        return jnp.sum(wanted - right), wanted - right

    gradient, ahead = jax.grad(lead, has_aux=True)(state.at)
    flat = gradient.reshape(gradient.shape[0], -1)
    moved = _towards(state, batch.x, (gradient, ahead.astype(gradient.dtype)), settings, norm)
    crossed = _is_wrong(traced_logits(model, moved), batch)
    distance = geometry.distance(moved, batch.x, norm)
    nearer = crossed & (distance < state.distance)
    back = batch.x + settings.beta * (moved - batch.x)
    return _State(
        at=jnp.where(geometry.per_example(crossed, moved), back, moved),
        nearest=jnp.where(geometry.per_example(nearer, moved), moved, state.nearest),
        distance=jnp.where(nearer, distance, state.distance),
        vanished=jnp.all(flat == 0, axis=1),
        broken=state.broken | ~(jnp.all(jnp.isfinite(flat), axis=1) & jnp.isfinite(ahead)),
    )


def _towards(
    state: _State, x: jax.Array, plane: tuple[jax.Array, jax.Array], settings: _Settings, norm: str
) -> jax.Array:
    """Between the boundary's points nearest to ``at`` and to ``x``, and beyond by ``eta``."""
    gradient, ahead = plane
    here, origin, normal = (a.reshape(a.shape[0], -1) for a in (state.at, x, gradient))
    ahead_at_x = ahead + jnp.sum(normal * (origin - here), axis=1)
    step, step_from_x = jnp.split(
        step_to_plane(
            jnp.concatenate([here, origin]),
            jnp.concatenate([normal, normal]),
            -jnp.concatenate([ahead, ahead_at_x]),
            norm,
            settings.ball.bounds,
        ),
        2,
    )
    size, size_from_x = (
        jnp.maximum(geometry.distance(d, jnp.zeros_like(d), norm), 1e-8)
        for d in (step, step_from_x)
    )
    alpha = jnp.minimum(size / (size + size_from_x), settings.alpha_max)[:, None]
    ours = (1 - alpha) * (here + settings.eta * step)
    moved = ours + alpha * (origin + settings.eta * step_from_x)
    return jnp.clip(moved, *settings.ball.bounds).reshape(x.shape)


def _is_wrong(logits: jax.Array, batch: _Batch) -> jax.Array:
    """Whether a wrong class leads clearly, (B,)."""
    leads_by = margin(logits, Criterion(batch.y))
    return leads_by > _CLEAR * jnp.max(jnp.abs(logits), axis=1)
