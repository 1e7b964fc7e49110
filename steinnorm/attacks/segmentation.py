"""Attacks on models that predict a label per pixel, which maximise the share of wrong pixels."""

from __future__ import annotations

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _measurements as measurements
from steinnorm.attacks._arguments import check_counts, check_key
from steinnorm.attacks._criterion import Criterion, mean_if_joint, success_share
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._mixtures import Mixtures
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks._survivors import (
    WorstInputs,
    pad_indices,
    padded_size,
    place_like,
    shard_count,
)
from steinnorm.attacks.apgd import run_apgd
from steinnorm.attacks.losses import check_loss, per_example
from steinnorm.attacks.pgd import pgd
from steinnorm.attacks.result import AttackResult, Stage
from steinnorm.attacks.threat import Threat

SEA_LOSSES = ("masked_cross_entropy", "segpgd", "js", "masked_spherical")
"""Losses of the first version of the paper (2023) and of its code."""

_RADII = (2.0, 1.5, 1.0)
_SHARES = (0.3, 0.3)  # shares of the steps at the first two radii; the last radius gets the rest


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
    """Runs projected gradient descent on the SegPGD loss (Gu et al. 2022, arXiv 2207.12391).

    Args:
      logits_fn: maps a batch to logits (B, H, W, K) or (B, H, W, 1).
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: true labels (B, H, W), with 255 for unlabelled pixels.
      threat: ball and box.
      key: random key of the starts; None starts at ``x``.
      steps: gradient steps per run.
      step_size: absolute step size, in the units of ``x``; None means 2.5 * epsilon / steps.
      random_start: whether to start at a uniform draw from the ball; None means yes if there is a
        key.
      restarts: number of runs; more than one needs a random start.
      batch_dependent: as in ``pgd``.

    Returns:
      The attacked batch and its success, (B, H, W).

    Raises:
      ValueError: as in ``pgd``, or there is one label per example.

    Warns:
      As in ``pgd``.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, segpgd
      >>> x, y = jnp.full((1, 4, 4, 1), 0.8), jnp.ones((1, 4, 4), int)
      >>> segpgd(lambda x: 10 * x - 5, x, y, threat=Threat("linf", 0.4)).robust_accuracy
      0.0
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

    It makes one APGD run per loss, with 30 % of the steps in a ball of twice the radius, 30 % at
    1.5 times the radius, and the rest in the ball itself; each part starts at the last point of the
    one before. Each image keeps the run with most wrong pixels and, among those, the run of the
    largest cross-entropy. Images whose pixels are all wrong are not attacked again.

    If an image's logits depend on its companions, the batch is kept as a whole instead: that of a
    run, or a mixture of runs, which takes each image from the run with most wrong pixels and is
    evaluated as a batch of its own.

    Args:
      logits_fn: maps a batch to logits (B, H, W, K) or (B, H, W, 1).
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: true labels (B, H, W), with 255 for unlabelled pixels.
      threat: ball and box.
      key: random key of the starts; None means ``jax.random.key(0)``.
      steps: gradient steps per loss.
      losses: names in ``steinnorm.attacks.losses.LOSSES``. ``masked_spherical`` is left out for
        single logits, where its gradient is zero.
      batch_dependent: whether an image's logits depend on the rest of the batch; None to test it.
      on_progress: called with the loss, its completed steps, and ``steps``.

    Returns:
      The attacked batch and its success, (B, H, W). In ``stages`` an image counts as broken if all
      of its labelled pixels are wrong, which is rare: report the share of wrong pixels instead.

    Raises:
      ValueError: as in ``apgd``; or there is one label per example, or no usable loss.

    Warns:
      BatchDependenceWarning, RadiusWarning, ProbabilitiesWarning, RandomLogitsWarning: as in
        ``fgsm``.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, sea
      >>> x, y = jnp.full((1, 4, 4, 1), 0.8), jnp.ones((1, 4, 4), int)
      >>> sea(lambda x: 10 * x - 5, x, y, threat=Threat("linf", 0.4), steps=10).robust_accuracy
      0.0
    """
    check_key(key)
    key = jax.random.key(0) if key is None else key
    check_counts(steps=steps)
    problem = Problem.of(logits_fn, x, y, threat)
    if not problem.label_axes:
        raise ValueError("sea is for a label per pixel; for one per example use autoattack")
    chosen = _usable_losses(losses, problem)
    joint = resolve_batch_dependence(problem, batch_dependent)
    worst = WorstInputs(problem.x, problem.success_share(joint=joint))
    mixtures = Mixtures(problem) if joint else None
    stages, zero_gradients = [], 0
    for loss in chosen:
        start_time, broken_before = time.perf_counter(), _broken(problem, worst, joint)
        positions = np.arange(len(problem.x)) if joint else worst.unbroken
        if len(positions):
            indices = pad_indices(
                positions, padded_size(len(positions), len(problem.x), shard_count(problem.x))
            )
            part = problem.take(indices)
            # From the name, so that a loss's run does not depend on the other losses.
            own_key = jax.random.fold_in(key, zlib.crc32(loss.encode()))
            x_adv, count_of_zeros = _run_in_shrinking_balls(
                part, loss, steps, own_key, joint, on_progress
            )
            worst.update(positions, x_adv, *_share_and_loss(part, x_adv, joint))
            if mixtures is not None:
                worst.update(positions, *mixtures.add(x_adv))
            zero_gradients = max(zero_gradients, min(count_of_zeros, len(positions)))
        broken = _broken(problem, worst, joint) - broken_before
        stages.append(Stage(loss, len(positions), broken, time.perf_counter() - start_time))
    return problem.result(place_like(worst.x, problem.x), zero_gradients, tuple(stages))


def _run_in_shrinking_balls(  # noqa: PLR0917
    problem: Problem,
    loss: str,
    steps: int,
    key: jax.Array,
    joint: bool,
    on_progress: Callable[[str, int, int], None] | None,
) -> tuple[jax.Array, int]:
    """Runs APGD in balls that shrink to the threat's; each run starts where the last one ended."""
    start: Any = None
    done, zero_gradients = 0, 0
    for factor, count in _radius_schedule(steps):

        def report_progress(step: int, of: int, broken_before: int = done) -> None:
            if on_progress is not None:
                on_progress(loss, broken_before + step, steps)

        wider = dataclasses.replace(problem, threat=problem.threat.scaled(factor))
        start, zero_gradients = run_apgd(
            wider,
            key,
            joint=joint,
            steps=count,
            loss=loss,
            start=start,
            on_progress=report_progress,
        )
        done += count
    assert start is not None  # the last radius always has a run
    return start, zero_gradients


def _radius_schedule(steps: int) -> list[tuple[float, int]]:
    """Returns factors of the radius with their numbers of steps; none without steps."""
    counts = [int(share * steps) for share in _SHARES]
    counts.append(steps - sum(counts))
    plan = zip(_RADII, counts, strict=True)
    return [(factor, count) for factor, count in plan if count or factor == _RADII[-1]]


def _share_and_loss(problem: Problem, x_adv: jax.Array, joint: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the share of wrong labels, and a value that grows with the cross-entropy, (B,)."""
    logits = predict(problem.model, x_adv)
    loss_criterion = problem.criterion_for("cross_entropy", joint=joint)
    return _share_and_cross_entropy(logits, problem.criterion, loss_criterion, joint=joint)


# Compiled as a whole, because one operation after the other is some sixty compilations.
@functools.partial(jax.jit, static_argnames="joint")
def _share_and_cross_entropy(
    logits: jax.Array, criterion: Criterion, loss_criterion: Criterion, *, joint: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the share of wrong labels and the cross-entropy of logits, (B,)."""
    share = mean_if_joint(success_share(logits, criterion), joint)
    return share, per_example("cross_entropy", logits, loss_criterion, joint=joint)


def _broken(problem: Problem, worst: WorstInputs, joint: bool) -> int:
    """Returns the number of images whose labelled pixels are all wrong.

    If the batch is kept as a whole, ``worst`` has no shares per image, so it is evaluated again.
    """
    if not joint:
        return len(worst.share) - len(worst.unbroken)
    logits = predict(problem.model, place_like(worst.x, problem.x))
    return int(np.sum(np.asarray(measurements.success_share(logits, problem.criterion)) >= 1))


def _usable_losses(losses: Sequence[str], problem: Problem) -> list[str]:
    for loss in losses:
        check_loss(loss, problem.classes, problem.label_axes, targeted=False)
    single = problem.classes == 2 and not np.asarray(problem.logits)[..., 0].any()
    chosen = [loss for loss in losses if not (single and loss == "masked_spherical")]
    if not chosen:
        raise ValueError(
            f"losses must name at least one loss that is usable here; got {list(losses)}"
        )
    return chosen
