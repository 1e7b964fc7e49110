"""The layer as a pure function: statistics, shrinkage, normalisation, running averages.

``linen.py`` and ``nnx.py`` only hold variables and call :func:`stein_batch_norm`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from steinnorm import _checks
from steinnorm._numerics import promote_types
from steinnorm.shrinkage import RunningStatistics, Shrinkage, resolve, toward_running
from steinnorm.statistics import (
    SAVED_STATISTICS,
    AxisName,
    BatchStatistics,
    batch_statistics,
)

__all__ = [
    "TEST_STATISTICS",
    "Normalised",
    "rule_in_use",
    "stein_batch_norm",
]

TestStatistics = Literal["running", "batch", "shrunk"]
TEST_STATISTICS: tuple[str, ...] = ("running", "batch", "shrunk")
"""Where inference takes its statistics from."""


class Normalised(NamedTuple):
    """What :func:`stein_batch_norm` returns.

    Attributes:
      y: the normalised input, in the shape of ``x``.
      running: the running statistics after this call; unchanged in inference.
      batch: the batch's own statistics, or None where only running ones were used.
      used: the mean and variance that ``y`` was normalised with.
    """

    y: jax.Array
    running: RunningStatistics | None
    batch: BatchStatistics | None
    used: RunningStatistics


def stein_batch_norm(
    x: ArrayLike,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    running: RunningStatistics | None = None,
    *,
    use_running_average: bool = False,
    shrinkage: str | Shrinkage = "stein",
    test_statistics: TestStatistics = "running",
    axis: _checks.Axes = -1,
    mask: ArrayLike | None = None,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    dtype: Any = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Any = None,
    use_fast_variance: bool = True,
    force_float32_reductions: bool = True,
) -> Normalised:
    r"""Batch normalisation with shrunk statistics.

    .. math:: y = (x - \hat\mu)\,\frac{\gamma}{\sqrt{\hat\sigma^2 + \epsilon}} + \beta

    In training :math:`\hat\mu, \hat\sigma^2` are the batch's statistics after ``shrinkage``, and
    the running averages record them (``momentum`` is the share of the old value that is kept).
    They are computed as ``x * a + d`` with per-channel a and d, and the backward pass keeps only
    per-channel values and ``x`` itself (``jax.checkpoint``), so nothing of the size of ``x`` is
    stored beside it. Forward mode and higher derivatives work. The rounding error of y is that of
    x * a, about 1e-7 |mean| / deviation in float32, where the deviation is at least sqrt(epsilon).

    Args:
      x: input of any rank, real or (with shrinkage "none") complex.
      scale: gamma, in the shape of the features, or None for 1.
      bias: beta, in the shape of the features, or None for 0.
      running: running statistics in the shape of the features. Needed in inference, with a
        shrinkage towards them, and with a mask that may be all False.
      use_running_average: inference rather than training.
      shrinkage: a :class:`~steinnorm.shrinkage.Shrinkage` or its name.
      test_statistics: in inference, ``"running"``; or ``"batch"``, the statistics of the test
        batch by the rule of training; or ``"shrunk"``, those of the test batch shrunk towards the
        running ones. Nothing is recorded in inference, and gradients are those of the function
        that is evaluated, whatever a shrinkage does in training.
      axis: the feature axis, or several.
      mask: which values count, broadcastable to ``x``. Channels with no valid value are
        normalised with the running statistics and leave them unchanged.
      momentum: in [0, 1].
      epsilon: added to the variance; the square of the units of ``x``.
      dtype: dtype of ``y``; by default that of ``x``, ``scale`` and ``bias`` together.
      axis_name: mapped axis to combine statistics over (pmap, shard_map, vmap); see
        :func:`~steinnorm.batch_statistics`.
      axis_index_groups: groups within that axis.
      use_fast_variance: see :func:`~steinnorm.batch_statistics`.
      force_float32_reductions: False rounds the statistics to the dtype of ``x`` (or ``dtype``).

    Returns:
      A :class:`Normalised`.

    Raises:
      TypeError: an input that is not numeric, or complex with a shrinkage other than "none".
      ValueError: an unknown name, momentum or epsilon out of range, shapes that do not fit, or
        ``running`` missing where it is needed.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 5.0], [3.0, 5.0]])
      >>> stein_batch_norm(x, shrinkage="none", epsilon=0.0).y[:, 0]
      Array([-1.,  1.], dtype=float32)
    """
    x = _checks.inexact_input(x)
    rule = resolve(shrinkage)
    _checks.momentum(momentum)
    _checks.epsilon(epsilon)
    _checks.one_of("test_statistics", test_statistics, TEST_STATISTICS)
    features = _checks.feature_axes(axis, x.ndim)
    feature_shape = tuple(x.shape[f] for f in features)
    for name, value in (("scale", scale), ("bias", bias), *_named(running)):
        _check_feature_shape(name, value, feature_shape)
    inference = use_running_average
    if running is None and (inference or rule.toward_running):
        raise ValueError(
            "running must be given in inference and with a shrinkage towards the running "
            "statistics: RunningStatistics(mean=jnp.zeros(C), variance=jnp.ones(C)) to start with."
        )
    out_dtype = _result_dtype(dtype, x, scale, bias)
    if inference and test_statistics == "running":
        assert running is not None
        y = _affine(x, *_coefficients(running, running, scale, bias, epsilon), features)
        return Normalised(y.astype(out_dtype), running, None, running)
    rule = rule_in_use(rule, inference=inference, test_statistics=test_statistics)
    settings = _Settings(
        rule=rule,
        features=features,
        epsilon=epsilon,
        dtype=dtype,
        rounded=not force_float32_reductions,
        axis_name=axis_name,
        axis_index_groups=_hashable(axis_index_groups),
        use_fast_variance=use_fast_variance,
    )
    y, batch, used, valid = _normalise_by_batch(x, scale, bias, running, mask, settings=settings)
    if running is not None and not inference:
        recorded = RunningStatistics(batch.mean, batch.variance) if rule.toward_running else used
        if not force_float32_reductions:
            low = promote_types(dtype or x.dtype, x.dtype)
            recorded = RunningStatistics(
                recorded.mean.astype(low), recorded.variance.astype(jnp.finfo(low).dtype)
            )
        running = _update(running, recorded, valid, momentum)
    return Normalised(y.astype(out_dtype), running, batch, used)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is fixed when the layer is compiled."""

    rule: Shrinkage
    features: tuple[int, ...]
    epsilon: float
    dtype: Any
    rounded: bool
    axis_name: AxisName | None
    axis_index_groups: Any
    use_fast_variance: bool


# Compiled, for the sake of those who call layers outside jit; inlined into an outer jit.
@functools.partial(jax.jit, static_argnames="settings", inline=True)
def _normalise_by_batch(x: jax.Array, *others: Any, settings: _Settings) -> Any:
    """:func:`_forward`, with only per-channel values kept for the backward pass."""
    forward: Callable[..., Any] = functools.partial(_forward, settings=settings)
    if not jnp.iscomplexobj(x):  # JAX 0.10's checkpoint cannot keep named complex values
        save = jax.checkpoint_policies.save_only_these_names(SAVED_STATISTICS)
        forward = jax.checkpoint(forward, policy=save)
    return forward(x, *others)


def _forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    running: RunningStatistics | None,
    mask: ArrayLike | None,
    *,
    settings: _Settings,
) -> tuple[jax.Array, BatchStatistics, RunningStatistics, jax.Array | None]:
    """Statistics, shrinkage, normalisation.

    Returns:
      y, the batch's own statistics, those that were used, and which channels had a valid value.
    """
    rule = settings.rule
    raw = batch_statistics(
        x,
        axis=settings.features,
        mask=mask,
        axis_name=settings.axis_name,
        axis_index_groups=settings.axis_index_groups,
        use_fast_variance=settings.use_fast_variance,
        noise=rule.needs_noise,
        dtype=settings.dtype,
    )
    if settings.rounded:
        to = promote_types(settings.dtype or x.dtype, x.dtype)
        raw = raw._replace(
            mean=raw.mean.astype(to).astype(raw.mean.dtype),
            variance=raw.variance.astype(jnp.finfo(to).dtype).astype(raw.variance.dtype),
        )
    batch, valid = raw, None
    if mask is not None:
        # Channels without a valid value: stand-ins that shrink and normalise to finite values.
        valid = jnp.broadcast_to(raw.count > 0, raw.mean.shape)
        stand_in = running or RunningStatistics(
            jnp.zeros_like(raw.mean), jnp.ones_like(raw.variance)
        )
        batch = raw._replace(
            mean=jnp.where(valid, raw.mean, stand_in.mean.astype(raw.mean.dtype)),
            variance=jnp.where(valid, raw.variance, stand_in.variance.astype(raw.variance.dtype)),
        )
    shrunk = _shrink(rule, batch, running)
    if valid is not None:
        shrunk = RunningStatistics(
            jnp.where(valid, shrunk.mean, batch.mean),
            jnp.where(valid, shrunk.variance, batch.variance),
        )
    shrunk = jax.tree.map(lambda a: checkpoint_name(a, SAVED_STATISTICS), shrunk)
    own = RunningStatistics(batch.mean, batch.variance)
    a, d = _coefficients(
        shrunk, own, scale, bias, settings.epsilon, straight_through=rule.straight_through
    )
    a, d = checkpoint_name(a, SAVED_STATISTICS), checkpoint_name(d, SAVED_STATISTICS)
    return _affine(x, a, d, settings.features), raw, shrunk, valid


def _shrink(
    rule: Shrinkage, batch: BatchStatistics, running: RunningStatistics | None
) -> RunningStatistics:
    """Applies the two rules to statistics laid out as (C,), whatever the feature axes."""
    shape = batch.mean.shape

    def flat(a: jax.Array) -> jax.Array:
        return a if a.ndim == 0 else a.reshape(-1)

    target = running or RunningStatistics(jnp.zeros_like(batch.mean), jnp.ones_like(batch.variance))
    target = jax.tree.map(
        lambda a, b: flat(a).astype(b.dtype), target, RunningStatistics(batch.mean, batch.variance)
    )
    flattened = jax.tree.map(flat, batch)
    estimates = []
    for what, estimate in (("mean", rule.mean), ("variance", rule.variance)):
        value = estimate(flattened, target)
        if jnp.shape(value) != target.mean.shape:
            raise ValueError(
                f"the {what} rule of shrinkage {rule.name!r} must return shape "
                f"{target.mean.shape}, one value per channel; got {jnp.shape(value)}."
            )
        estimates.append(value.reshape(shape))
    return RunningStatistics(*estimates)


def _coefficients(
    used: RunningStatistics,
    own: RunningStatistics,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: float,
    *,
    straight_through: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The a and d of y = x a + d, per channel."""
    affine = [p for p in (scale, bias) if p is not None]
    dtype = promote_types(used.mean.dtype, *(p.dtype for p in affine))
    used_inverse = lax.rsqrt(used.variance + epsilon)
    if straight_through:
        # x_hat = (x - own mean) / own deviation, then r x_hat + s with r and s held constant:
        # the value is (x - used mean) / used deviation, the gradient that of batch norm.
        inverse = lax.rsqrt(own.variance + epsilon)
        r = lax.stop_gradient(used_inverse / inverse)
        s = lax.stop_gradient((own.mean - used.mean) * used_inverse)
        a, d = inverse * r, s - own.mean * inverse * r
    else:
        a = used_inverse
        d = -used.mean * a.astype(used.mean.dtype)
    a, d = a.astype(dtype), d.astype(dtype)
    if scale is not None:
        a, d = a * scale.astype(dtype), d * scale.astype(dtype)
    if bias is not None:
        d = d + bias.astype(dtype)
    return a, d


def _affine(x: jax.Array, a: jax.Array, d: jax.Array, features: tuple[int, ...]) -> jax.Array:
    dtype = promote_types(x.dtype, a.dtype)
    shape = [x.shape[i] if i in features else 1 for i in range(x.ndim)]
    return x.astype(dtype) * a.reshape(shape).astype(dtype) + d.reshape(shape).astype(dtype)


def _update(
    running: RunningStatistics,
    recorded: RunningStatistics,
    valid: jax.Array | None,
    momentum: float,
) -> RunningStatistics:
    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        dtype = promote_types(old.dtype, new.dtype)
        updated = momentum * old.astype(dtype) + (1 - momentum) * new.astype(dtype)
        return updated if valid is None else jnp.where(valid, updated, old.astype(dtype))

    return RunningStatistics(*map(average, running, recorded))


def rule_in_use(shrinkage: str | Shrinkage, *, inference: bool, test_statistics: str) -> Shrinkage:
    """Returns the shrinkage that a call applies.

    Args:
      shrinkage: the layer's.
      inference: whether it is inference.
      test_statistics: with "shrunk", inference always shrinks towards the running statistics.

    Returns:
      In inference, a shrinkage with the true gradient: one that is straight through serves the
      training, and would lead an attack on the finished model astray.
    """
    if not inference:
        return resolve(shrinkage)
    shrunk = test_statistics == "shrunk"
    rule = toward_running(single_example="running") if shrunk else resolve(shrinkage)
    return dataclasses.replace(rule, straight_through=False)


def _hashable(groups: Any) -> Any:
    return None if groups is None else tuple(tuple(group) for group in groups)


def _named(running: RunningStatistics | None) -> list[tuple[str, jax.Array]]:
    if running is None:
        return []
    return [("running.mean", running.mean), ("running.variance", running.variance)]


def _check_feature_shape(name: str, value: jax.Array | None, shape: tuple[int, ...]) -> None:
    if value is not None and jnp.shape(value) != shape:
        raise ValueError(
            f"{name} must have the shape of the features, {shape}; got {jnp.shape(value)}."
        )


def _result_dtype(dtype: Any, *arrays: jax.Array | None) -> Any:
    if dtype is not None:
        return dtype
    return promote_types(*(a.dtype for a in arrays if a is not None))
