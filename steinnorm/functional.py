"""The layer as a pure function: statistics, shrinkage, normalisation, running averages.

``linen.py`` and ``nnx.py`` only hold variables and call :func:`stein_batch_norm`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from steinnorm import _checks, _layer_inputs
from steinnorm._affine import coefficients, scaled_and_shifted
from steinnorm._numerics import promote_types
from steinnorm._rules_applied import check_input_of_rules, rules_in_use, shrink
from steinnorm._sharding import placed_as_features, placed_like, select, under_a_set_mesh
from steinnorm.calibrated import Calibration, calibrated
from steinnorm.shrinkage import Shrinkage, resolve
from steinnorm.statistics import (
    AxisName,
    BatchStatistics,
    Moments,
    batch_statistics,
)

__all__ = [
    "CALIBRATED",
    "TEST_STATISTICS",
    "Normalised",
    "stein_batch_norm",
]

TestStatistics = Literal["running", "batch", "shrunk", "calibrated", "calibrated_streams"]
TEST_STATISTICS: tuple[str, ...] = get_args(TestStatistics)
"""Where inference takes its statistics from."""
CALIBRATED: tuple[str, ...] = ("calibrated", "calibrated_streams")
"""Those of them that need a calibration."""


class Normalised(NamedTuple):
    """What :func:`stein_batch_norm` returns.

    Attributes:
      y: the normalised input, in the shape of ``x``.
      running: the running statistics after this call; unchanged in inference.
      batch: the batch's own statistics, or None where only running ones were used.
      used: the mean and variance that ``y`` was normalised with.
      shrinkage: the rule that made them of ``batch``, the first of two with shrunk test statistics;
        or None where a calibration, or the running statistics alone, did.
      factors: how much of the shift of the means, and of the change of the variances, calibrated
        test statistics took as real; with shrunk ones, what was kept of the distance of the rule's
        estimates to the running ones; None with all others.
    """

    y: jax.Array
    running: Moments | None
    batch: BatchStatistics | None
    used: Moments
    shrinkage: Shrinkage | None = None
    factors: tuple[jax.Array, jax.Array] | None = None


def stein_batch_norm(
    x: ArrayLike,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    running: Moments | None = None,
    *,
    use_running_average: bool = False,
    shrinkage: str | Shrinkage = "stein",
    test_statistics: TestStatistics = "running",
    calibration: Calibration | None = None,
    axis: _checks.Axes = -1,
    mask: ArrayLike | None = None,
    momentum: float = 0.99,
    epsilon: ArrayLike = 1e-5,
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
    x * a, in float32 about ``1e-7 |mean| / deviation``, with a deviation of at least sqrt(epsilon).

    A channel whose variance does not exceed epsilon keeps its sample mean. What a rule other than
    ``toward_running`` leaves of a (nearly) constant channel's mean would be divided by
    sqrt(epsilon): of 64 normal examples with 16 channels it would make a constant 1 about 260.
    Elsewhere the rules' formulas hold as they are.

    Args:
      x: input of any rank >= 1, real or (with shrinkage "none", or a rule of your own that does not
        ask for noise) complex.
      scale: gamma, in the shape of the features, or None for 1.
      bias: beta, in the shape of the features, or None for 0.
      running: running statistics in the shape of the features. Needed in inference and with a
        shrinkage towards them. Without them channels with no valid value have mean 0, variance 1.
        What comes back is of their dtype and that of the batch's statistics together, as in Flax:
        float64 with an input of float64, complex with a complex one.
      use_running_average: inference rather than training.
      shrinkage: a :class:`~steinnorm.shrinkage.Shrinkage` or its name.
      test_statistics: in inference, ``"running"``; or ``"batch"``, the statistics of the test
        batch by the rule of training; or ``"shrunk"``, these shrunk towards the running
        ones; or ``"calibrated"``, those of the test batch judged by a calibration, and
        ``"calibrated_streams"``, the same where the examples of a batch may be alike (see
        :func:`~steinnorm.calibrated.calibrated`). Nothing is recorded in inference, and gradients
        are those of the function that is evaluated, whatever a shrinkage does in training.
      calibration: what the layer's clean inputs look like, in the shape of the features; needed
        for calibrated test statistics, not used otherwise.
      axis: the feature axis, or several.
      mask: which values count, broadcastable to ``x``; of numbers, those that are not 0. Axes are
        aligned from the last, as in NumPy: shape (B,) means channels, also where there are B of
        them; for the examples of (B, C) give it shape (B, 1). Channels with no valid value are
        normalised with the running statistics and leave them unchanged, as does an empty batch.
        The output is not masked: NaN or infinity outside the mask reaches no statistic, but it
        makes the gradients of ``x`` and ``scale`` NaN, also where the loss masks the output
        (0 * NaN; in Flax too). Pass ``jnp.where(mask, x, 0)`` then.
      momentum: in [0, 1].
      epsilon: added to the variance; a scalar or one for each channel, in the square of the units
        of ``x``; may be traced.
      dtype: dtype of ``y``, floating or complex; by default that of ``x``, ``scale`` and ``bias``
        together.
      axis_name: mapped axis to combine statistics over (pmap, shard_map, vmap); see
        :func:`~steinnorm.batch_statistics`.
      axis_index_groups: groups within that axis, in pmap and in shard_map with check_vma=False.
      use_fast_variance: see :func:`~steinnorm.batch_statistics`.
      force_float32_reductions: False rounds the statistics to ``dtype``, or that of ``x``.

    Returns:
      A :class:`Normalised`.

    Raises:
      TypeError: an argument of the wrong kind; a ``dtype`` of integers, or a real one of a complex
        result; or a complex input whose statistics are shrunk by a rule of this library, or judged
        by a calibration (inference with running statistics takes any).
      ValueError: an unknown name, momentum or epsilon out of range, shapes that do not fit, or
        ``running`` or ``calibration`` missing where it is needed.
      NotImplementedError: ``axis_index_groups`` where JAX has none.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 5.0], [3.0, 5.0]])
      >>> stein_batch_norm(x, shrinkage="none", epsilon=0.0).y[:, 0]
      Array([-1.,  1.], dtype=float32)
    """
    x = _layer_inputs.inexact_input(x)
    rule, then = rules_in_use(resolve(shrinkage), use_running_average, test_statistics)
    features = _checks.feature_axes(axis, x.ndim)
    shape = tuple(x.shape[f] for f in features)
    momentum = _checks.momentum(momentum)
    _checks.one_of("test_statistics", test_statistics, TEST_STATISTICS)
    epsilon = _checks.epsilon(epsilon, shape)
    if use_running_average and test_statistics in CALIBRATED:
        calibration = _checked(calibration, test_statistics, x)
    else:
        calibration = None
        if not (use_running_average and test_statistics == "running"):
            check_input_of_rules(rule, then, x)
    _check_per_channel(shape, scale, bias, running, calibration)
    if mask is not None:
        _layer_inputs.mask_shape(mask, x.shape)
    if running is None and (use_running_average or rule.toward_running):
        raise ValueError(
            "running must be given in inference and with a shrinkage towards the running "
            "statistics: RunningStatistics(mean=jnp.zeros(C), variance=jnp.ones(C)) to start with."
        )
    settings = _Settings(
        features=features,
        dtype=dtype,
        out_dtype=_layer_inputs.out_dtype(dtype, x, scale, bias),
        rounded=not force_float32_reductions,
        axis_name=axis_name,
        groups=_hashable(axis_index_groups),
        use_fast_variance=use_fast_variance,
    )
    given = running
    scale, bias, running, calibration, epsilon = jax.tree.map(
        lambda a: placed_as_features(a, x, features), (scale, bias, running, calibration, epsilon)
    )
    if use_running_average and test_statistics == "running":
        assert running is not None
        a, d = coefficients(running, running, scale, bias, epsilon)
        y = scaled_and_shifted(features, settings.out_dtype, x, a, d)
        return Normalised(y, given, None, running)
    y, batch, used, factors = _normalise(
        x,
        scale,
        bias,
        running,
        calibration,
        mask=mask,
        rule=rule,
        then=then,
        epsilon=epsilon,
        settings=dataclasses.replace(settings, streams=test_statistics == "calibrated_streams"),
    )
    if running is None or use_running_average:
        made = rule if calibration is None else None
        return Normalised(y, given, batch, used, made, factors)
    recorded = Moments(batch.mean, batch.variance) if rule.toward_running else used
    recorded = settings.round(recorded, x.dtype)
    # An empty batch leaves them alone. Only a mask, or a shape without values, can make one.
    some = batch.count > 0 if _may_be_empty(x, mask) else None
    updated = _update(running, recorded, some, momentum)
    return Normalised(y, jax.tree.map(placed_like, updated, given), batch, used, rule)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is fixed when the layer is compiled."""

    features: tuple[int, ...]
    dtype: Any
    out_dtype: Any
    rounded: bool
    axis_name: AxisName | None
    groups: Any
    use_fast_variance: bool
    streams: bool = False

    def round(self, moments: Moments, dtype: Any) -> Moments:
        """Rounds to the layer's dtype, or the input's, where reductions need not be float32."""
        if not self.rounded:
            return moments
        low = dtype if self.dtype is None else self.dtype
        return Moments(moments.mean.astype(low), moments.variance.astype(jnp.finfo(low).dtype))


# Compiled, for the sake of those who call layers outside jit. Inside a jit, layers of one shape
# share what has been traced here.
@under_a_set_mesh
@functools.partial(jax.jit, static_argnames="settings")
def _normalise(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    running: Moments | None,
    calibration: Calibration | None,
    *,
    mask: ArrayLike | None,
    rule: Shrinkage,
    then: Shrinkage | None,
    epsilon: ArrayLike,
    settings: _Settings,
) -> tuple[jax.Array, BatchStatistics, Moments, tuple[jax.Array, jax.Array] | None]:
    """Statistics, shrinkage or judgement by a calibration, normalisation.

    Returns:
      y, the batch's own statistics, those that were used, and the factors of a calibrated batch, or
      of the last of two rules.
    """
    needs_noise = rule.needs_noise or (then is not None and then.needs_noise)
    batch = batch_statistics(
        x,
        axis=settings.features,
        mask=mask,
        axis_name=settings.axis_name,
        axis_index_groups=settings.groups,
        use_fast_variance=settings.use_fast_variance,
        noise=needs_noise if calibration is None else settings.streams,
        examples=calibration is not None,
        dtype=settings.dtype,
        reference=None if running is None else running.mean,
        epsilon=epsilon,
    )
    rounded = settings.round(Moments(batch.mean, batch.variance), x.dtype)
    own = Moments(
        rounded.mean.astype(batch.mean.dtype), rounded.variance.astype(batch.variance.dtype)
    )
    batch = batch._replace(mean=own.mean, variance=own.variance)
    stand_in = _stand_in(running, like=own)
    if calibration is not None:
        used, *factors = calibrated(batch, calibration, stand_in, epsilon, streams=settings.streams)
        a, d = coefficients(used, own, scale, bias, epsilon)
        y = scaled_and_shifted(settings.features, settings.out_dtype, x, a, d)
        return y, batch, used, (factors[0], factors[1])
    if _may_be_empty(x, mask):
        # Channels without a valid value: stand-ins that shrink and normalise to finite values.
        some = batch.count > 0
        own = jax.tree.map(functools.partial(select, some), own, stand_in)
        used, kept = shrink(rule, batch._replace(**own._asdict()), stand_in, epsilon, then)
        used = jax.tree.map(functools.partial(select, some), used, own)
    else:
        used, kept = shrink(rule, batch, stand_in, epsilon, then)
    a, d = coefficients(used, own, scale, bias, epsilon, straight_through=rule.straight_through)
    return scaled_and_shifted(settings.features, settings.out_dtype, x, a, d), batch, used, kept


def _may_be_empty(x: jax.Array, mask: ArrayLike | None) -> bool:
    """Whether there may be channels without a value: only with a mask, or in a batch of nothing."""
    return mask is not None or 0 in x.shape


def _stand_in(running: Moments | None, like: Moments) -> Moments:
    """Returns the running statistics, or what they are at first."""
    if running is None:
        return Moments(jnp.zeros_like(like.mean), jnp.ones_like(like.variance))
    return jax.tree.map(lambda r, b: r.astype(b.dtype), running, like)


def _update(
    running: Moments, recorded: Moments, some: jax.Array | None, momentum: float
) -> Moments:
    """Moves the running statistics towards the recorded ones, in channels that had values."""

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        dtype = promote_types(old.dtype, new.dtype)
        real = jnp.finfo(dtype).dtype  # which a traced number may not be of
        kept = momentum.astype(real) if isinstance(momentum, jax.Array) else momentum
        updated = kept * old.astype(dtype) + (1 - kept) * new.astype(dtype)
        return updated if some is None else select(some, updated, old.astype(dtype))

    return Moments(*map(average, running, recorded))


def _hashable(groups: Any) -> Any:
    return None if groups is None else tuple(tuple(group) for group in groups)


def _check_per_channel(
    shape: tuple[int, ...],
    scale: Any,
    bias: Any,
    running: Any,
    calibration: Any,
) -> None:
    """Checks kinds and shapes of what there is one of for each channel."""
    held = (
        *_layer_inputs.fields_of("running", running, Moments, "RunningStatistics"),
        *_layer_inputs.fields_of("calibration", calibration, Calibration, "Calibration"),
    )
    for name, value in (("scale", scale), ("bias", bias), *held):
        _layer_inputs.feature_array(name, value, shape)


def _checked(
    calibration: Calibration | None, test_statistics: TestStatistics, x: jax.Array
) -> Calibration:
    if calibration is None:
        raise ValueError(
            f"test_statistics={test_statistics!r} needs a calibration, which "
            "steinnorm.nnx.calibrate and steinnorm.linen.calibrate measure on clean inputs; pass "
            "it as calibration=steinnorm.Calibration(...)."
        )
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"test_statistics={test_statistics!r} needs a real input: what it knows of noise is "
            f"of real values; got dtype {x.dtype}."
        )
    return calibration
