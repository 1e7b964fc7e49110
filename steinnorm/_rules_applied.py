"""Which rules a call of the layer applies, and their application to a batch's statistics."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from steinnorm._numerics import safe_divide
from steinnorm._sharding import flattened, placed_like
from steinnorm.rules import REAL, SampleMean, SampleVariance
from steinnorm.shrinkage import Shrinkage, toward_running
from steinnorm.statistics import BatchStatistics, Moments


def rules_in_use(
    rule: Shrinkage, inference: bool, test_statistics: str
) -> tuple[Shrinkage, Shrinkage | None]:
    """Returns the rule that a call applies, and one for its results.

    In inference they have the true gradient: one that is straight through serves the training, and
    would lead an attack on the finished model astray.
    """
    if not inference:
        return rule, None
    trained = dataclasses.replace(rule, straight_through=False)
    if test_statistics != "shrunk":
        return trained, None
    toward = dataclasses.replace(toward_running(single_example="running"), straight_through=False)
    # The running statistics are those that training normalised with, so what shrinks towards them
    # must be alike.
    return (trained, toward) if may_change_a_large_batch(rule) else (toward, None)


def check_input_of_rules(rule: Shrinkage, then: Shrinkage | None, x: jax.Array) -> None:
    """Checks that the rules which are applied to a batch are defined for its values.

    Raises:
      TypeError: ``x`` is complex, and a rule is for real values.
    """
    if not jnp.iscomplexobj(x):
        return
    for used in (rule, then):
        if used is not None and (
            used.needs_noise or isinstance(used.mean, REAL) or isinstance(used.variance, REAL)
        ):
            raise TypeError(
                f"shrinkage {used.name!r} needs a real input; got dtype {x.dtype}. Complex inputs "
                'are for shrinkage="none", and for test_statistics "running" or "batch" with it.'
            )


def may_change_a_large_batch(rule: Shrinkage) -> bool:
    """Returns whether a rule may change statistics that have no noise.

    Then what a network was trained on, and what was recorded, are not the batch's own statistics.
    A rule that shrinks towards the running statistics records the batch's own, and is not applied
    twice.
    """
    plain = isinstance(rule.mean, SampleMean) and isinstance(rule.variance, SampleVariance)
    return not (plain or rule.toward_running)


def shrink(
    rule: Shrinkage,
    batch: BatchStatistics,
    running: Moments,
    epsilon: ArrayLike,
    then: Shrinkage | None = None,
) -> tuple[Moments, tuple[jax.Array, jax.Array] | None]:
    """Applies a shrinkage, and another one to its results where there is one.

    Returns:
      The estimates, and what the other one kept of the distances of means and variances to the
      running ones; None where there is no other.
    """
    used = _estimate(rule, batch, running, epsilon)
    if then is None:
        return used, None
    # How noisy the batch's own statistics are is known: the means as they are, which says rather
    # too much of means that are smaller, and the variances relative to themselves.
    some = batch.variance > 0
    ratio = jnp.where(some, used.variance, 1) / jnp.where(some, batch.variance, 1)
    noise = None if batch.variance_noise is None else batch.variance_noise * jnp.square(ratio)
    estimated = batch._replace(
        **used._asdict(),
        variance_noise=noise,
        relative_variance_noise=batch.relative_variance_noise,
    )
    last = _estimate(then, estimated, running, epsilon)
    return last, (
        least_squares_factor(last.mean, used.mean, running.mean),
        least_squares_factor(last.variance, used.variance, running.variance),
    )


def least_squares_factor(
    used: jax.Array, own: jax.Array, target: jax.Array | None = None
) -> jax.Array:
    """Returns the share of ``own - target`` that ``used - target`` is, a real scalar."""
    if target is not None:
        used, own = used - target, own - target
    return safe_divide(
        jnp.sum(used * own.conj()).real, jnp.sum(own * own.conj()).real, otherwise=1.0
    )


def _estimate(
    rule: Shrinkage, batch: BatchStatistics, running: Moments, epsilon: ArrayLike
) -> Moments:
    """Applies the two rules to statistics laid out as (C,), whatever the feature axes.

    A channel whose variance does not exceed epsilon keeps its sample mean, unless the rule shrinks
    towards the running statistics: what another rule left of the mean, epsilon would magnify to
    up to 1/sqrt(epsilon) of it, where the formula without an epsilon has no value.
    """
    shape = batch.mean.shape

    flat, target = jax.tree.map(flattened, (batch, running))
    estimates = []
    for what, estimate in (("mean", rule.mean), ("variance", rule.variance)):
        value = estimate(flat, target)
        if jnp.shape(value) != target.mean.shape:
            raise ValueError(
                f"the {what} rule of shrinkage {rule.name!r} must return shape "
                f"{target.mean.shape}, one value per channel; got {jnp.shape(value)}."
            )
        estimates.append(placed_like(value.reshape(shape), batch.mean))
    mean, variance = estimates
    if not (rule.toward_running or isinstance(rule.mean, SampleMean)):
        mean = jnp.where(batch.variance > jnp.asarray(epsilon, variance.dtype), mean, batch.mean)
    return Moments(mean, variance)
