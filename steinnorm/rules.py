"""The rules that the named shrinkages consist of: one for means or one for variances each.

A rule is called with the statistics of the batch (over all devices) and the running ones, all of
shape (C,), and returns an estimate of shape (C,). As frozen dataclasses rules compare, hash, copy
and pickle by their settings. As pytrees their numbers may be traced, mapped and differentiated.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from steinnorm import estimators
from steinnorm._numerics import safe_divide
from steinnorm.statistics import BatchStatistics, Moments

__all__ = [
    "JSNormMean",
    "JSNormVariance",
    "LassoMean",
    "LassoVariance",
    "RidgeMean",
    "RidgeVariance",
    "SampleMean",
    "SampleVariance",
    "SteinMean",
    "SteinVariance",
    "TowardRunningMean",
    "TowardRunningVariance",
]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _rule(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass whose numbers are a pytree's leaves and whose words are not."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    words = [name for name in names if isinstance(getattr(cls, name, None), str)]
    numbers = [name for name in names if name not in words]
    return jax.tree_util.register_dataclass(cls, data_fields=numbers, meta_fields=words)


@_rule
class SampleMean:
    """The batch's own mean."""

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return batch.mean


@_rule
class SampleVariance:
    """The batch's own variance."""

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return batch.variance


@_rule
class SteinMean:
    """:func:`~steinnorm.stein_mean`: dominates the sample means only for small or equal means."""

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.stein_mean(batch.mean)


@_rule
class SteinVariance:
    """:func:`~steinnorm.stein_variance`: proved to dominate for independent normal values."""

    fraction: ArrayLike = 1.0

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.stein_variance(batch.variance, batch.count, fraction=self.fraction)


@_rule
class JSNormMean:
    """:func:`~steinnorm.jsnorm_mean`."""

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.jsnorm_mean(batch.mean)


@_rule
class JSNormVariance:
    """:func:`~steinnorm.jsnorm_variance`."""

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.jsnorm_variance(batch.variance)


@_rule
class RidgeMean:
    """:func:`~steinnorm.ridge_mean`."""

    strength: ArrayLike = 1e-3

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.ridge_mean(batch.mean, batch.count, strength=self.strength)


@_rule
class RidgeVariance:
    """:func:`~steinnorm.ridge_variance`."""

    strength: ArrayLike = 1e-3

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.ridge_variance(batch.variance, strength=self.strength)


@_rule
class LassoMean:
    """:func:`~steinnorm.lasso_mean`."""

    strength: ArrayLike = 1e-3

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.lasso_mean(batch.mean, batch.count, strength=self.strength)


@_rule
class LassoVariance:
    """:func:`~steinnorm.lasso_variance`."""

    strength: ArrayLike = 1e-3

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        return estimators.lasso_variance(batch.variance, strength=self.strength)


SingleExample = Literal["batch", "running"]  # what a channel uses whose noise is unknown


@_rule
class TowardRunningMean:
    """James-Stein towards the running means, in units of the channels' standard deviations.

    Not proved to dominate the sample means where channels are correlated: see
    :func:`~steinnorm.shrinkage.toward_running`.
    """

    single_example: SingleExample = "batch"

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        known = _has_noise(batch, batch.mean_noise)
        variance = jnp.where(known, batch.variance, 1)
        noise = jnp.where(known, _asked_for(batch.mean_noise), 0) / variance
        distance = (batch.mean - running.mean) / jnp.sqrt(variance)
        share = _share(distance, noise, known)
        # A weighted average: added to a target that is far off, the batch's mean lost its digits.
        shrunk = (1 - share) * batch.mean + share * running.mean
        unknown = {"batch": batch.mean, "running": running.mean}[self.single_example]
        return _unless_empty(batch.mean, jnp.where(known, shrunk, unknown), running)


@_rule
class TowardRunningVariance:
    """James-Stein towards the running variances, on the logarithms.

    The logarithm of a sample variance is normal only roughly and in large batches, so nothing is
    proved here: see :func:`~steinnorm.shrinkage.toward_running`.
    """

    single_example: SingleExample = "batch"

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns the estimate, shape (C,)."""
        noise = batch.relative_variance_noise
        if noise is None:  # of a caller who made the statistics
            own = jnp.where(batch.variance > 0, batch.variance, 1)
            noise = _asked_for(batch.variance_noise) / own / own
        known = _has_noise(batch, noise)
        own = jnp.where(known, batch.variance, 1)
        target = jnp.log(jnp.maximum(running.variance, jnp.finfo(own.dtype).tiny))
        share = _share(jnp.log(own) - target, jnp.where(known, noise, 0), known)
        # Not target * exp(kept * distance): of variances far apart that exponential is infinite.
        shrunk = jnp.exp((1 - share) * jnp.log(own) + share * target)
        unknown = {"batch": batch.variance, "running": running.variance}[self.single_example]
        return _unless_empty(batch.variance, jnp.where(known, shrunk, unknown), running)


REAL = (
    *(SteinMean, SteinVariance, JSNormMean, JSNormVariance, RidgeMean, RidgeVariance),
    *(LassoMean, LassoVariance, TowardRunningMean, TowardRunningVariance),
)
"""Rules for real values: the samples' own alone are defined for complex ones."""


def _unless_empty(own: jax.Array, shrunk: jax.Array, running: Moments) -> jax.Array:
    """Returns the batch's own values while the running ones are as they were made."""
    empty = jnp.all(running.mean == 0) & jnp.all(running.variance == 1)
    return jnp.where(empty, own, shrunk)


def _has_noise(batch: BatchStatistics, noise: jax.Array | None) -> jax.Array:
    """Channels whose sampling noise is known: two examples or more, and not constant.

    A constant channel has no scale to measure a distance in. Nothing is known either of one whose
    variance or noise is too large for a float.
    """
    varies = (batch.variance > 0) & jnp.isfinite(batch.variance) & jnp.isfinite(_asked_for(noise))
    return varies & (_asked_for(batch.examples) > 1)


def _share(distance: jax.Array, noise: jax.Array, known: jax.Array) -> jax.Array:
    """The weight of the target: 1 less the positive-part James-Stein factor, over known channels.

    That of :func:`~steinnorm.james_stein`, but a channel that cannot be judged takes no part:
    neither a dead unit nor an empty channel may decide for the others.
    """
    channels = jnp.sum(known, dtype=distance.dtype)
    total = jnp.sum(jnp.where(known, jnp.square(distance), 0))
    average = jnp.sum(jnp.where(known, noise, 0)) / jnp.maximum(channels, 1)
    needed = jnp.maximum(channels - 2, 0) * average
    return safe_divide(needed, jnp.maximum(total, needed), otherwise=0.0)


def _asked_for(noise: jax.Array | None) -> jax.Array:
    if noise is None:
        raise ValueError(
            "this rule needs the batch's sampling noise: batch_statistics(..., noise=True), or "
            "needs_noise=True in the Shrinkage."
        )
    return noise
