"""Auto-PGD (Croce & Hein 2020): projected gradient descent that finds its own step sizes."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._ball import Ball
from steinnorm.attacks._criterion import Criterion, for_batch, share_reached
from steinnorm.attacks._inputs import Problem, check_finite, resolve_batch_dependence
from steinnorm.attacks._loss_and_gradient import Look, look
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._progress import OnProgress, Tick
from steinnorm.attacks._survivors import Kept, bucket, gather, padded
from steinnorm.attacks.losses import check_loss, needs_reference
from steinnorm.attacks.threat import AttackResult, Threat

_TARGETED = {"targeted_dlr": "dlr", "targeted_margin": "margin"}
_RHO = 0.75  # share of the steps that must increase the loss, else they are halved
_INERTIA = 0.75  # share of the new step; the rest is the last movement


def apgd(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross_entropy",
    target_classes: int = 9,
    start: jax.Array | None = None,
    batch_dependent: bool | None = None,
    on_progress: OnProgress | None = None,
) -> AttackResult:
    """Ascent with momentum whose steps are halved where they stop to help (Croce & Hein 2020).

    Algorithm 1 there, with its constants.  Each example keeps the point in which the attack has
    most of what it wants and, of those, the one of the largest loss.  Where no example's logits
    hang on the others, examples that are broken leave the batch.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels; as in ``fgsm``.
      threat: the ball and the box.
      key: randomness of the starts, which lie on the ball's surface; without one the attack
        begins at ``x``.
      steps: gradient steps per run.
      restarts: number of runs; more than one needs a key.
      loss: a name of ``steinnorm.attacks.losses.LOSSES``; or ``targeted_dlr`` or
        ``targeted_margin``: a run towards each of the likeliest wrong classes, each of which may
        end in any wrong one (one label per example only).
      target_classes: how many of these classes; all K - 1 where there are fewer.
      start: points (B, ...) to begin at, instead of random ones; they are projected.
      batch_dependent: whether an example's logits change with its companions; None to find out.
        If so, the batch is kept as a whole.
      on_progress: called now and then.

    Raises:
      ValueError: as in ``fgsm``, or steps or restarts out of range, or restarts without a key.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1; got {steps} and {restarts}")
    if restarts > 1 and (key is None or start is not None):
        raise ValueError(f"{restarts} restarts from the same point are one; pass a key, no start")
    if needs_reference(loss) and key is None and start is None:
        raise ValueError(f"{loss} is flat at the clean input: pass a key for a random start")
    problem = Problem.of(logits_fn, x, y, threat)
    aims, name = _aims(problem, loss, target_classes)
    joint = resolve_batch_dependence(problem, batch_dependent)
    kept = Kept(problem.x, for_batch(share_reached(problem.logits, problem.criterion), joint))
    vanished, done, total = 0, 0, restarts * len(aims) * steps
    for restart in range(restarts):
        for number, aim in enumerate(aims):
            at = _start(key, (restart, number), problem, start)
            tick = Tick(on_progress, done, total)
            vanished = _Run(problem, aim, name, steps, joint).follow(at, kept, tick)
            done += steps
    return problem.result(jnp.asarray(kept.x), vanished)


class _State(NamedTuple):
    """Of each example: where it is, whence it came, and the best that it has seen."""

    at: jax.Array
    before: jax.Array
    now: Look
    best: jax.Array
    best_look: Look
    found: jax.Array
    found_share: jax.Array
    found_loss: jax.Array
    step: jax.Array
    increases: jax.Array
    broken: jax.Array
    best_at_check: jax.Array
    reduced: jax.Array


class _Run:
    """One ascent of the examples that still stand."""

    def __init__(self, problem: Problem, aim: Criterion, loss: str, steps: int, joint: bool):
        self._problem, self._steps, self._joint = problem, steps, joint
        self._loss = loss
        self._aim = aim
        self._ball = Ball.of(problem.threat)

    def follow(self, start: jax.Array, kept: Kept, tick: Tick) -> int:
        """Offers what it finds to ``kept``; how many gradients were all zero at the end."""
        problem, norm = self._problem, self._problem.threat.norm
        index = np.arange(len(problem.x)) if self._joint else kept.standing
        if not len(index):
            return 0
        largest = len(problem.x)
        rows = padded(index, bucket(len(index), largest))
        x, criterion, aim, at = gather((problem.x, problem.criterion, self._aim, start), rows)
        state = _begin(at, self._see(at, criterion, aim), 2 * self._ball.epsilon)
        checks = set(_checkpoints(self._steps))
        for number in range(self._steps):
            moved = _move(state, x, self._ball, 1.0 if number == 0 else _INERTIA, norm=norm)
            aim = aim._replace(progress=(number + 1) / self._steps)
            state = _absorb(state, moved, self._see(moved, criterion, aim))
            if number + 1 not in checks:
                continue
            width = number + 1 - max((c for c in checks if c < number + 1), default=0)
            state = _check(state, _RHO * width)
            tick(number + 1)
            if self._joint:
                continue
            check_finite(np.asarray(state.broken)[: len(index)], "losses or gradients")
            standing = np.flatnonzero(np.asarray(state.found_share)[: len(index)] < 1)
            if not len(standing) or bucket(len(standing), largest) < len(rows):
                kept.offer(index, state.found, state.found_share, state.found_loss)
                if not len(standing):
                    return 0
                index = index[standing]
                rows = padded(standing, bucket(len(standing), largest))
                state, x, criterion, aim = gather((state, x, criterion, aim), rows)
        check_finite(np.asarray(state.broken)[: len(index)], "losses or gradients")
        kept.offer(index, state.found, state.found_share, state.found_loss)
        return int(np.asarray(state.now.vanished())[: len(index)].sum())

    def _see(self, at: jax.Array, criterion: Criterion, aim: Criterion) -> Look:
        return look(self._problem.model, at, criterion, aim, loss=self._loss, joint=self._joint)


@jax.jit
def _begin(at: jax.Array, seen: Look, step: float) -> _State:
    zero = jnp.zeros_like(seen.loss)
    return _State(
        at=at,
        before=at,
        now=seen,
        best=at,
        best_look=seen,
        found=at,
        found_share=seen.share,
        found_loss=seen.loss,
        step=jnp.full_like(seen.loss, step),
        increases=zero,
        broken=seen.not_finite(),
        best_at_check=seen.loss,
        reduced=jnp.ones(seen.loss.shape, bool),
    )


def _move_untraced(
    state: _State, x: jax.Array, ball: Ball, inertia: float, *, norm: str
) -> jax.Array:
    """Where the next step leads (Croce & Hein 2020, equation 3)."""
    size = geometry.per_example(state.step.astype(x.dtype), x)
    ahead = state.at + size * geometry.ascent(state.now.gradient, norm)
    ahead = geometry.project(ahead, x, norm, ball.epsilon, ball.bounds)
    moved = state.at + inertia * (ahead - state.at) + (1 - inertia) * (state.at - state.before)
    return geometry.project(moved, x, norm, ball.epsilon, ball.bounds)


_move = jax.jit(_move_untraced, static_argnames="norm")


@jax.jit
def _absorb(state: _State, at: jax.Array, seen: Look) -> _State:
    better = seen.loss > state.best_look.loss
    worse = (seen.share > state.found_share) | (
        (seen.share == state.found_share) & (seen.loss > state.found_loss)
    )
    return state._replace(
        at=at,
        before=state.at,
        now=seen,
        best=_where(better, at, state.best),
        best_look=jax.tree.map(lambda a, b: _where(better, a, b), seen, state.best_look),
        found=_where(worse, at, state.found),
        found_share=jnp.where(worse, seen.share, state.found_share),
        found_loss=jnp.where(worse, seen.loss, state.found_loss),
        broken=state.broken | seen.not_finite(),
        increases=state.increases + (seen.loss > state.now.loss).astype(seen.loss.dtype),
    )


@jax.jit
def _check(state: _State, enough: float) -> _State:
    """Halves the steps of examples that do not gain, and takes these back to their best point."""
    best = state.best_look.loss
    stuck = ~state.reduced & (state.best_at_check >= best)
    halve = (state.increases <= enough) | stuck
    return state._replace(
        at=_where(halve, state.best, state.at),
        now=jax.tree.map(lambda a, b: _where(halve, a, b), state.best_look, state.now),
        step=jnp.where(halve, 0.5 * state.step, state.step),
        increases=jnp.zeros_like(state.increases),
        best_at_check=best,
        reduced=halve,
    )


def _where(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(geometry.per_example(condition, a), a, b)


def _checkpoints(steps: int) -> Iterator[int]:
    """After how many steps the sizes are looked at: windows of 22 %, 19 %, ... down to 6 %."""
    width, narrowest = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    done = 0
    while done + width <= steps:
        done += width
        yield done
        width = max(width - max(int(0.03 * steps), 1), narrowest)


def _aims(problem: Problem, loss: str, target_classes: int) -> tuple[list[Criterion], str]:
    """The goals whose loss is followed, one per run, and the name of that loss."""
    if loss not in _TARGETED:
        check_loss(loss, problem.classes, problem.label_axes, targeted=False)
        return [problem.criterion_for(loss)], loss
    name = _TARGETED[loss]
    check_loss(name, problem.classes, problem.label_axes, targeted=True)
    if problem.label_axes:
        raise ValueError(f"{loss} is for one label per example; got a label per pixel")
    if target_classes < 1:
        raise ValueError(f"target_classes must be at least 1; got {target_classes}")
    targets = problem.likeliest_wrong(target_classes)
    return [problem.criterion._replace(target=targets[:, i]) for i in range(targets.shape[1])], name


def _start(
    key: jax.Array | None, run: tuple[int, int], problem: Problem, start: jax.Array | None
) -> jax.Array:
    """Where a run begins: where it is told to, at the ball's surface, or at the input."""
    x, threat = problem.x, problem.threat
    if start is not None:
        if jnp.shape(start) != x.shape:
            raise ValueError(f"start must have the shape {x.shape} of x; got {jnp.shape(start)}")
        at = jnp.asarray(start, x.dtype)
    elif key is None:
        return x
    else:
        for number in run:
            key = jax.random.fold_in(key, number)
        at = x + geometry.random_on_sphere(key, x, threat.norm, threat.epsilon)
    return geometry.project(at, x, threat.norm, threat.epsilon, threat.bounds)
