"""Attacks on models that predict a label per pixel, all of which the attack wants wrong."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks._criterion import for_batch, share_reached
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem, check_key
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks._survivors import Worst, bucket, padded, placed_like, shards
from steinnorm.attacks.apgd import run_apgd
from steinnorm.attacks.losses import check_loss, per_example
from steinnorm.attacks.pgd import pgd
from steinnorm.attacks.result import AttackResult, Stage
from steinnorm.attacks.threat import Threat

SEA_LOSSES = ("masked_cross_entropy", "segpgd", "js", "masked_spherical")
"""Those of the first version of the paper and of its code in 2023."""

_RADII = (2.0, 1.5, 1.0)
_SHARES = (0.3, 0.3)  # of the steps, at the first two radii; the last has the rest


def segpgd(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool | None = None,
    restarts: int = 1,
    batch_dependent: bool | None = None,
) -> AttackResult:
    """Runs projected gradient descent on the loss of Gu et al. 2022 (arXiv 2207.12391).

    Args:
      logits_fn: maps a batch to logits (B, H, W, K) or (B, H, W, 1).
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels (B, H, W), with 255 where there is none.
      threat: the ball and the box.
      key: randomness of the starts.
      steps: gradient steps per run.
      step_size: absolute size of a step; None means 2.5 * epsilon / steps.
      random_start: start at a uniform draw from the ball; None means yes if there is a key.
      restarts: number of runs; more than one needs a random start.
      batch_dependent: as in ``pgd``.

    Returns:
      ``success`` is (B, H, W).

    Raises:
      ValueError: as in ``pgd``, or one label per example.
    """
    return pgd(
        logits_fn,
        x,
        y,
        threat=threat,
        key=key,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        restarts=restarts,
        loss="segpgd",
        batch_dependent=batch_dependent,
    )


def sea(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 300,
    losses: Sequence[str] = SEA_LOSSES,
    batch_dependent: bool | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> AttackResult:
    """Runs the segmentation ensemble attack (Croce, Singh & Hein 2023, arXiv 2306.12941).

    One APGD run per loss, each with 30 % of its steps in a ball of twice the radius, 30 % in one
    of 1.5 times the radius and the rest in the ball itself, from where the one before arrived.  Of
    these each image keeps the one that gets most of its known pixels wrong and, of those, the one
    of the largest cross-entropy.

    Where an image's logits change with its companions, the batch is kept as a whole instead.
    Elsewhere images of which all pixels are wrong are not attacked again.

    Args:
      logits_fn: maps a batch to logits (B, H, W, K) or (B, H, W, 1).
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels (B, H, W), with 255 where there is none.
      threat: the ball and the box.
      key: randomness of the starts.
      steps: gradient steps per loss.
      losses: names of ``steinnorm.attacks.losses.LOSSES``.  ``masked_spherical`` is left out
        for single logits, where its gradient is zero.
      batch_dependent: whether an image's logits change with its companions; None to find out.
      on_progress: called with the loss, its steps that are done, and ``steps``.

    Returns:
      ``success`` is (B, H, W).  A stage counts an image as broken if all its known pixels are
      wrong, which is rare: the score to report is the share of pixels.

    Raises:
      ValueError: as in ``apgd``, or one label per example, or no loss.

    Warns:
      BatchDependenceWarning: the model's logits change with the batch, and nobody said so.
    """
    check_key(key)
    key = jax.random.key(0) if key is None else key
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    problem = Problem.of(logits_fn, x, y, threat)
    if not problem.label_axes:
        raise ValueError("sea is for a label per pixel; for one per example take autoattack")
    chosen = _usable(losses, problem)
    joint = resolve_batch_dependence(problem, batch_dependent)
    kept = Worst(problem.x, for_batch(share_reached(problem.logits, problem.criterion), joint))
    stages, vanished = [], 0
    for loss in chosen:
        began, before = time.perf_counter(), _broken(problem, kept, joint)
        index = np.arange(len(problem.x)) if joint else kept.standing
        if len(index):
            rows = padded(index, bucket(len(index), len(problem.x), shards(problem.x)))
            part = problem.take(rows)
            # by name, so that a loss's run does not change with what else is asked for
            own = jax.random.fold_in(key, zlib.crc32(loss.encode()))
            x_adv, zeros = _shrinking(part, loss, steps, own, joint, on_progress)
            kept.offer(index, x_adv, *_judged(part, x_adv, joint))
            vanished = max(vanished, min(zeros, len(index)))
        broken = _broken(problem, kept, joint) - before
        stages.append(Stage(loss, len(index), broken, time.perf_counter() - began))
    return problem.result(placed_like(kept.x, problem.x), vanished, tuple(stages))


def _shrinking(  # noqa: PLR0917
    problem: Problem,
    loss: str,
    steps: int,
    key: jax.Array,
    joint: bool,
    on_progress: Callable[[str, int, int], None] | None,
) -> tuple[jax.Array, int]:
    """Runs APGD in balls that shrink to the threat's, each run from where the last one arrived."""
    start: Any = None
    done, vanished = 0, 0
    for factor, count in _plan(steps):

        def tick(step: int, of: int, before: int = done) -> None:
            if on_progress is not None:
                on_progress(loss, before + step, steps)

        wider = dataclasses.replace(problem, threat=problem.threat.scaled(factor))
        start, vanished = run_apgd(
            wider, key, joint=joint, steps=count, loss=loss, start=start, on_progress=tick
        )
        done += count
    assert start is not None  # the last radius always has a run
    return start, vanished


def _plan(steps: int) -> list[tuple[float, int]]:
    """Returns factors of the radius and numbers of steps; radii without a step are left out."""
    counts = [int(share * steps) for share in _SHARES]
    counts.append(steps - sum(counts))
    plan = zip(_RADII, counts, strict=True)
    return [(factor, count) for factor, count in plan if count or factor == _RADII[-1]]


def _judged(problem: Problem, x_adv: jax.Array, joint: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the share of the labels reached and what grows with the cross-entropy, (B,) both."""
    logits = predict(problem.model, x_adv)
    share = share_reached(logits, problem.criterion)
    criterion = problem.criterion_for("cross_entropy", joint=joint)
    loss = per_example("cross_entropy", logits, criterion, joint=joint)
    return for_batch(share, joint), loss


def _broken(problem: Problem, kept: Worst, joint: bool) -> int:
    """Returns the number of images without a right pixel; images of a joint batch are asked."""
    if not joint:
        return len(kept.share) - len(kept.standing)
    logits = predict(problem.model, placed_like(kept.x, problem.x))
    return int(jnp.sum(share_reached(logits, problem.criterion) >= 1))


def _usable(losses: Sequence[str], problem: Problem) -> list[str]:
    for loss in losses:
        check_loss(loss, problem.classes, problem.label_axes, targeted=False)
    single = problem.classes == 2 and not np.asarray(problem.logits)[..., 0].any()
    chosen = [loss for loss in losses if not (single and loss == "masked_spherical")]
    if not chosen:
        raise ValueError(f"losses must name at least one loss of use here; got {list(losses)}")
    return chosen
