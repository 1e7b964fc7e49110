"""Auto-PGD (Croce & Hein 2020b): projected gradient descent that finds its own step sizes.

Where it departs from algorithm 1 there and from the authors' code:

1. Each example keeps the point in which the attack has most of what it wants and, of those, the
   one of the largest loss; the authors keep the first point that is misclassified.
2. Broken examples leave the batch between windows, which changes no other example's result.
3. Label maps: the share of the pixels decides what is kept, the loss what is followed.
4. Where an example's logits depend on its companions the batch is one example: its loss, its
   steps and what is kept are those of the whole.
5. Targeted losses run towards the likeliest wrong classes one after the other, and any wrong class
   counts; with ``target`` only the wanted label does.
6. Starts are uniform on the ball's surface (Linf: scaled so that the largest change is the radius).
7. Saturating losses are followed without rounding, and the projection leaves none (``pgd``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._criterion import Criterion, for_batch, share_reached
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem, check_finite, check_key
from steinnorm.attacks._loss_and_gradient import LossAndGradient, loss_and_gradient
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._progress import OnProgress, Tick
from steinnorm.attacks._survivors import (
    Worst,
    bucket,
    is_worse,
    padded,
    placed_like,
    shards,
    take_rows,
    where,
)
from steinnorm.attacks.losses import check_loss, needs_reference
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

TOWARDS = {"targeted_dlr": "dlr", "targeted_margin": "margin"}
"""Losses of runs towards the likeliest wrong classes -> the loss of each run."""

_RHO = 0.75  # share of the steps that must increase the loss, else they are halved
_INERTIA = 0.75  # share of the new step; the rest is the last movement


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
    """Ascends with momentum and halves steps where they stop to help (Croce & Hein 2020b).

    Algorithm 1 there, with its constants. Each example keeps the point in which the attack has
    most of what it wants and, of those, the one of the largest loss. Where no example's logits
    depend on the others, examples that are broken leave the batch.

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
      target: wanted labels, of the shape of ``y``, which alone count; None for any wrong ones.
      start: points (B, ...) to begin at, instead of random ones; they are projected.
      batch_dependent: whether an example's logits change with its companions; None to find out.
        If so, the batch is kept as a whole.
      on_progress: called now and then.

    Raises:
      ValueError: as in ``fgsm``, or steps or restarts out of range, or restarts without a key.
    """
    check_key(key)
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1; got {steps} and {restarts}")
    if restarts > 1 and (key is None or start is not None):
        raise ValueError(f"{restarts} restarts from the same point are one; pass a key, no start")
    if needs_reference(loss) and key is None and start is None:
        raise ValueError(f"{loss} is flat at the clean input: pass a key for a random start")
    problem = Problem.of(logits_fn, x, y, threat, target)
    _check_loss(problem, loss, target_classes)
    x_adv, vanished = run_apgd(
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
    return problem.result(x_adv, vanished)


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
    """Runs the attack on a problem; the arguments are those of ``apgd``, checked already.

    Returns:
      The attacked inputs, and how many gradients were all zero at the end of the last run.
    """
    aims, name = _aims(problem, loss, target_classes, joint)
    kept = Worst(problem.x, for_batch(share_reached(problem.logits, problem.criterion), joint))
    vanished, done, total = 0, 0, restarts * len(aims) * steps
    for restart in range(restarts):
        for number, aim in enumerate(aims):
            at = _start(key, (restart, number), problem, start)
            tick = Tick(on_progress, done, total)
            vanished = _Run(problem, aim, name, steps, joint).follow(at, kept, tick)
            done += steps
    return placed_like(kept.x, problem.x), vanished


class _State(NamedTuple):
    """Holds for each example where it is, whence it came, and the best that it has seen.

    ``step`` is in multiples of the radius.
    """

    at: jax.Array
    before: jax.Array
    now: LossAndGradient
    best: jax.Array
    best_seen: LossAndGradient
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
        self._multiple = shards(problem.x)

    def follow(self, start: jax.Array, kept: Worst, tick: Tick) -> int:
        """Offers what it finds to ``kept``; how many gradients were all zero at the end."""
        problem, threat = self._problem, self._problem.threat
        index = np.arange(len(problem.x)) if self._joint else kept.standing
        if not len(index):
            return 0
        largest = len(problem.x)
        rows = padded(index, bucket(len(index), largest, self._multiple))
        x, criterion, aim, at = take_rows((problem.x, problem.criterion, self._aim, start), rows)
        state = _begin(at, self._see(at, criterion, aim))
        checks = set(_checkpoints(self._steps))
        for number in range(self._steps):
            moved = _move(state, x, threat, 1.0 if number == 0 else _INERTIA)
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
            size = bucket(max(len(standing), 1), largest, self._multiple)
            if not len(standing) or size < len(rows):
                kept.offer(index, state.found, state.found_share, state.found_loss)
                if not len(standing):
                    return 0
                index = index[standing]
                rows = padded(standing, size)
                state, x, criterion, aim = take_rows((state, x, criterion, aim), rows)
        check_finite(np.asarray(state.broken)[: len(index)], "losses or gradients")
        kept.offer(index, state.found, state.found_share, state.found_loss)
        return int(np.asarray(state.now.vanished())[: len(index)].sum())

    def _see(self, at: jax.Array, criterion: Criterion, aim: Criterion) -> LossAndGradient:
        model = self._problem.model
        return loss_and_gradient(model, at, criterion, aim, loss=self._loss, joint=self._joint)[0]


@jax.jit
def _begin(at: jax.Array, seen: LossAndGradient) -> _State:
    zero = jnp.zeros_like(seen.loss)
    return _State(
        at=at,
        before=at,
        now=seen,
        best=at,
        best_seen=seen,
        found=at,
        found_share=seen.share,
        found_loss=seen.loss,
        step=jnp.full_like(seen.loss, 2.0),
        increases=zero,
        broken=seen.not_finite(),
        best_at_check=seen.loss,
        reduced=jnp.ones_like(seen.loss, dtype=bool),
    )


@jax.jit
def _move(state: _State, x: jax.Array, threat: Threat, inertia: float) -> jax.Array:
    """Returns where the next step leads (Croce & Hein 2020b, equation 3)."""
    size = geometry.per_example(state.step.astype(x.dtype), x)
    size = size * geometry.as_number(threat.epsilon, x)
    ahead = threat.step(state.at, x, state.now.gradient, size)
    moved = state.at + inertia * (ahead - state.at) + (1 - inertia) * (state.at - state.before)
    return threat.project(moved, x)


@jax.jit
def _absorb(state: _State, at: jax.Array, seen: LossAndGradient) -> _State:
    better = seen.loss > state.best_seen.loss
    worse = is_worse(seen.share, seen.loss, state.found_share, state.found_loss)
    return state._replace(
        at=at,
        before=state.at,
        now=seen,
        best=where(better, at, state.best),
        best_seen=jax.tree.map(lambda a, b: where(better, a, b), seen, state.best_seen),
        found=where(worse, at, state.found),
        found_share=jnp.where(worse, seen.share, state.found_share),
        found_loss=jnp.where(worse, seen.loss, state.found_loss),
        broken=state.broken | seen.not_finite(),
        increases=state.increases + (seen.loss > state.now.loss).astype(seen.loss.dtype),
    )


@jax.jit
def _check(state: _State, enough: float) -> _State:
    """Halves the steps of examples that do not gain, and takes these back to their best point."""
    best = state.best_seen.loss
    stuck = ~state.reduced & (state.best_at_check >= best)
    halve = (state.increases <= enough) | stuck
    return state._replace(
        at=where(halve, state.best, state.at),
        now=jax.tree.map(lambda a, b: where(halve, a, b), state.best_seen, state.now),
        step=jnp.where(halve, 0.5 * state.step, state.step),
        increases=jnp.zeros_like(state.increases),
        best_at_check=best,
        reduced=halve,
    )


def _checkpoints(steps: int) -> Iterator[int]:
    """After how many steps the sizes are looked at: windows of 22 %, 19 %, ... down to 6 %."""
    width, narrowest = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    done = 0
    while done + width <= steps:
        done += width
        yield done
        width = max(width - max(int(0.03 * steps), 1), narrowest)


def _check_loss(problem: Problem, loss: str, target_classes: int) -> None:
    """Refuses a loss that is not defined for the problem."""
    towards, targeted = loss in TOWARDS, problem.criterion.target is not None
    name = TOWARDS.get(loss, loss)
    check_loss(name, problem.classes, problem.label_axes, targeted=towards or targeted)
    if towards and problem.label_axes:
        raise ValueError(f"{loss} is for one label per example; got a label per pixel")
    if towards and targeted:
        raise ValueError(f"{loss} goes through several targets itself; with target take {name}")
    if target_classes < 1:
        raise ValueError(f"target_classes must be at least 1; got {target_classes}")


def _aims(
    problem: Problem, loss: str, target_classes: int, joint: bool
) -> tuple[list[Criterion], str]:
    """Returns the criteria whose loss is followed, one per run, and the name of that loss."""
    if loss not in TOWARDS:
        return [problem.criterion_for(loss, joint=joint)], loss
    targets = problem.likeliest_wrong(target_classes)
    columns = [placed_like(column, problem.x) for column in targets.T]
    return [problem.criterion._replace(target=column) for column in columns], TOWARDS[loss]


def _start(key: jax.Array | None, run: tuple[int, int], problem: Problem, start: Any) -> jax.Array:
    """Returns where a run begins: where it is told to, on the ball's surface, or at the input."""
    x, threat = problem.x, problem.threat
    if start is not None:
        if jnp.shape(start) != x.shape:
            raise ValueError(f"start must have the shape {x.shape} of x; got {jnp.shape(start)}")
        return threat.project(jnp.asarray(start, x.dtype), x)
    if key is None:
        return x
    for number in run:
        key = jax.random.fold_in(key, number)
    return threat.random_on_surface(key, x)
