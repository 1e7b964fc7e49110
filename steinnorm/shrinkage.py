"""Which estimate of the channel means and variances a layer normalises with.

A :class:`Shrinkage` is two rules, one for the means and one for the variances, and three facts
about them. The constructors below give the rules of the paper, its baselines and our own; a rule
of your own is one more :class:`Shrinkage`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp

from steinnorm import _checks, estimators
from steinnorm._numerics import safe_divide
from steinnorm.statistics import BatchStatistics

__all__ = [
    "NAMES",
    "RunningStatistics",
    "Shrinkage",
    "by_name",
    "combine",
    "jsnorm",
    "lasso",
    "none",
    "resolve",
    "ridge",
    "stein",
    "stein_mean_only",
    "toward_running",
]


class RunningStatistics(NamedTuple):
    """Moving averages of batch statistics.

    Attributes:
      mean: running means, shape (C,); zeros at first.
      variance: running variances, shape (C,); ones at first.
    """

    mean: jax.Array
    variance: jax.Array


P = ParamSpec("P")
Rule = Callable[[BatchStatistics, RunningStatistics], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shrinkage:
    """A rule for the means and a rule for the variances.

    A rule takes the statistics of the batch (over all devices) and the running ones, all of shape
    (C,), and returns an estimate of shape (C,).

    Attributes:
      name: what tables and plots call it.
      mean: rule for the means.
      variance: rule for the variances.
      needs_noise: the rules read ``mean_noise``, ``variance_noise`` or ``examples``.
      toward_running: the rules shrink towards the running statistics. Those then record the
        batch's own statistics: a target that recorded what was shrunk to it would chase itself.
      made_by: name and arguments of the constructor, for pickling; none for rules of one's own.
      straight_through: in training, values are those of the shrunk statistics, gradients those of
        plain batch normalisation (as in Batch Renormalization, Ioffe 2017).

    Example:
      >>> from steinnorm import moderated_variance
      >>> moderated = Shrinkage(
      ...     name="moderated",
      ...     mean=lambda batch, running: batch.mean,
      ...     variance=lambda batch, running: moderated_variance(batch.variance, batch.count - 1),
      ... )
      >>> moderated.name
      'moderated'
    """

    name: str
    mean: Rule
    variance: Rule
    needs_noise: bool = False
    toward_running: bool = False
    straight_through: bool = False
    made_by: tuple[str, tuple[Any, ...]] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    def __reduce__(self) -> Any:
        """Pickles those of this module by name, so that they come back as the same object."""
        # One that dataclasses.replace() has changed is no longer what its constructor makes.
        if self.made_by is not None and _construct(*self.made_by) == self:
            return _construct, self.made_by
        return super().__reduce__()


def combine(mean: str | Shrinkage, variance: str | Shrinkage) -> Shrinkage:
    """Takes the means from one shrinkage and the variances from another.

    Args:
      mean: a shrinkage or its name.
      variance: a shrinkage or its name.

    Returns:
      The combination; it needs noise, shrinks towards the running statistics or passes gradients
      straight through if either of the two does.

    Example:
      >>> combine(mean="none", variance=stein(fraction=0.5)).name
      'mean: none, variance: stein(fraction=0.5)'
    """
    first, second = resolve(mean), resolve(variance)
    return Shrinkage(
        name=f"mean: {first.name}, variance: {second.name}",
        mean=first.mean,
        variance=second.variance,
        needs_noise=first.needs_noise or second.needs_noise,
        toward_running=first.toward_running or second.toward_running,
        straight_through=first.straight_through or second.straight_through,
    )


def _batch_mean(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
    del running
    return batch.mean


def _batch_variance(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
    del running
    return batch.variance


def _cached(constructor: Callable[P, Shrinkage]) -> Callable[P, Shrinkage]:
    """Makes equal arguments give the same object, however they are passed.

    Two layers that are built alike then compare equal, and jit does not compile the second again.
    """
    signature = inspect.signature(constructor)

    @functools.cache
    def cached(*args: Any) -> Shrinkage:
        made = constructor(*args)  # type: ignore[call-arg]  # bound to the signature below
        return dataclasses.replace(made, made_by=(constructor.__name__, args))

    @functools.wraps(constructor)
    def construct(*args: P.args, **kwargs: P.kwargs) -> Shrinkage:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return cached(*bound.args)

    return construct


@_cached
def none() -> Shrinkage:
    """The sample statistics as they are: Flax's BatchNorm."""
    return Shrinkage("none", _batch_mean, _batch_variance)


@_cached
def stein(fraction: float = 1.0) -> Shrinkage:
    """The paper's pair, :func:`~steinnorm.stein_mean` and :func:`~steinnorm.stein_variance`.

    Args:
      fraction: share of the variance rule's constant, in (0, 1].

    Raises:
      ValueError: ``fraction`` outside (0, 1].
    """
    _checks.fraction(fraction)

    def variance(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.stein_variance(batch.variance, batch.count, fraction=fraction)

    name = "stein" if fraction == 1.0 else f"stein(fraction={fraction})"
    return Shrinkage(name, stein_mean_only().mean, variance)


@_cached
def stein_mean_only() -> Shrinkage:
    """:func:`~steinnorm.stein_mean` for the means, sample variances."""

    def mean(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.stein_mean(batch.mean)

    return Shrinkage("stein_mean_only", mean, _batch_variance)


@_cached
def jsnorm() -> Shrinkage:
    """JSNorm (arXiv 2312.00313): one rule for the means and for the variances."""

    def mean(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.jsnorm_mean(batch.mean)

    def variance(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.jsnorm_variance(batch.variance)

    return Shrinkage("jsnorm", mean, variance)


@_cached
def ridge(strength: float = 1e-3) -> Shrinkage:
    """The ridge baseline of the paper's code.

    Args:
      strength: at least 0.

    Raises:
      ValueError: a negative strength.
    """
    _checks.strength(strength)

    def mean(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.ridge_mean(batch.mean, batch.count, strength=strength)

    def variance(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.ridge_variance(batch.variance, strength=strength)

    return Shrinkage("ridge" if strength == 1e-3 else f"ridge({strength=})", mean, variance)


@_cached
def lasso(strength: float = 1e-3) -> Shrinkage:
    """The lasso baseline of the paper's code.

    Args:
      strength: at least 0.

    Raises:
      ValueError: a negative strength.
    """
    _checks.strength(strength)

    def mean(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.lasso_mean(batch.mean, batch.count, strength=strength)

    def variance(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        del running
        return estimators.lasso_variance(batch.variance, strength=strength)

    return Shrinkage("lasso" if strength == 1e-3 else f"lasso({strength=})", mean, variance)


@_cached
def toward_running(single_example: Literal["batch", "running"] = "batch") -> Shrinkage:
    """Shrinks batch statistics towards the running ones, by their measured sampling noise.

    James-Stein (positive part) on the means in units of the channels' standard deviations, and
    on the logarithms of the variances, with the noise estimated from the spread between examples.
    A batch that tells much (many examples, or far from the running statistics) is kept; a small
    one close to them is mostly replaced. There is nothing to tune. In training, gradients are those
    of batch normalisation. While the running statistics are still at their initial values the
    batch's own are used.

    Args:
      single_example: what a channel uses whose noise is unknown (a batch of one example, a constant
        channel): ``"batch"`` as in training batch norm, ``"running"`` for inference.

    Raises:
      ValueError: an unknown ``single_example``.
    """
    _checks.one_of("single_example", single_example, ["batch", "running"])

    def estimate(
        own: jax.Array,
        running: RunningStatistics,
        candidates: tuple[jax.Array, jax.Array],
        known: jax.Array,
    ) -> jax.Array:
        shrunk, target = candidates
        fallback = own if single_example == "batch" else target
        empty = jnp.all(running.mean == 0) & jnp.all(running.variance == 1)
        return jnp.where(empty, own, jnp.where(known, shrunk, fallback))

    def mean(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        known = _has_noise(batch)
        variance = jnp.where(known, batch.variance, 1)
        noise = jnp.where(known, _asked_for(batch.mean_noise), 0) / variance
        distance = (batch.mean - running.mean) / jnp.sqrt(variance)
        kept = _kept(distance, noise, known)
        shrunk = running.mean + kept * (batch.mean - running.mean)
        return estimate(batch.mean, running, (shrunk, running.mean), known)

    def variance(batch: BatchStatistics, running: RunningStatistics) -> jax.Array:
        known = _has_noise(batch)
        own = jnp.where(known, batch.variance, 1)
        noise = jnp.where(known, _asked_for(batch.variance_noise), 0) / jnp.square(own)
        target = jnp.maximum(running.variance, jnp.finfo(own.dtype).tiny)
        distance = jnp.log(own) - jnp.log(target)
        shrunk = target * jnp.exp(_kept(distance, noise, known) * distance)
        return estimate(batch.variance, running, (shrunk, running.variance), known)

    return Shrinkage(
        "toward_running",
        mean,
        variance,
        needs_noise=True,
        toward_running=True,
        straight_through=True,
    )


def _has_noise(batch: BatchStatistics) -> jax.Array:
    """Channels whose sampling noise is known: two examples or more, and not constant.

    A constant channel has no scale to measure a distance in.
    """
    known = (batch.variance > 0) & jnp.isfinite(_asked_for(batch.mean_noise))
    return known & jnp.isfinite(_asked_for(batch.variance_noise))


def _kept(distance: jax.Array, noise: jax.Array, known: jax.Array) -> jax.Array:
    """The positive-part James-Stein factor over the channels whose noise is known.

    That of :func:`~steinnorm.james_stein`, but a channel that cannot be judged takes no part:
    neither a dead unit nor an empty channel may decide for the others.
    """
    channels = jnp.sum(known, dtype=distance.dtype)
    total = jnp.sum(jnp.where(known, jnp.square(distance), 0))
    average = jnp.sum(jnp.where(known, noise, 0)) / jnp.maximum(channels, 1)
    share = safe_divide(jnp.maximum(channels - 2, 0) * average, total, otherwise=0.0)
    return jnp.maximum(1 - share, 0)


def _asked_for(noise: jax.Array | None) -> jax.Array:
    if noise is None:
        raise ValueError(
            "this rule needs the batch's sampling noise: batch_statistics(..., noise=True), or "
            "needs_noise=True in the Shrinkage."
        )
    return noise


_CONSTRUCTORS: dict[str, Callable[..., Shrinkage]] = {
    "none": none,
    "stein": stein,
    "stein_mean_only": stein_mean_only,
    "jsnorm": jsnorm,
    "ridge": ridge,
    "lasso": lasso,
    "toward_running": toward_running,
}


def _construct(name: str, args: tuple[Any, ...]) -> Shrinkage:
    return _CONSTRUCTORS[name](*args)


NAMES: tuple[str, ...] = tuple(_CONSTRUCTORS)
"""The names that :func:`by_name` knows."""


def by_name(name: str, **options: Any) -> Shrinkage:
    """Returns a shrinkage by its name, for configs.

    Args:
      name: one of :data:`NAMES`.
      **options: arguments of the constructor of that name.

    Raises:
      ValueError: an unknown name; the message lists the names.

    Example:
      >>> by_name("ridge", strength=0.1).name
      'ridge(strength=0.1)'
    """
    _checks.one_of("shrinkage", name, NAMES)
    return _CONSTRUCTORS[name](**options)


def resolve(shrinkage: str | Shrinkage) -> Shrinkage:
    """Returns a shrinkage given by itself or by its name.

    Raises:
      TypeError: neither a name nor a :class:`Shrinkage`.
      ValueError: an unknown name.
    """
    if isinstance(shrinkage, Shrinkage):
        return shrinkage
    if isinstance(shrinkage, str):
        return by_name(shrinkage)
    hint = f" Did you mean {shrinkage.__name__}()?" if callable(shrinkage) else ""
    raise TypeError(
        f"shrinkage must be a Shrinkage or one of the names {', '.join(NAMES)}; "
        f"got {type(shrinkage).__name__}.{hint}"
    )
