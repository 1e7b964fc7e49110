"""Batch statistics: mean, biased variance and count of every channel, on one device or many."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from steinnorm import _checks, _layer_inputs
from steinnorm._numerics import power_of_two_near, promote_types, real
from steinnorm._references import sums_about
from steinnorm._sharding import placed_as_features, placed_on, select
from steinnorm._sums import AxisName, Plan, Sums, shift_and_variance

__all__ = ["AxisName", "BatchStatistics", "Moments", "batch_statistics"]


class Moments(NamedTuple):
    """A mean and a variance for each channel: running ones, or those that a layer used.

    Attributes:
      mean: shape (C,); running means are zeros at first.
      variance: shape (C,); running variances are ones at first.
    """

    mean: jax.Array
    variance: jax.Array


class _Fields(NamedTuple):
    mean: jax.Array
    variance: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a tuple's method of that name is not used
    mean_noise: jax.Array | None = None
    variance_noise: jax.Array | None = None
    examples: jax.Array | None = None
    relative_variance_noise: jax.Array | None = None


class BatchStatistics(_Fields):
    """Statistics of a batch; features have the shape of the feature axes, usually (C,).

    Attributes:
      mean: sample means, shape (C,); 0 where the count is 0. Complex for complex input.
      variance: biased sample variances (divided by the count), shape (C,); 0 where the count is 0.
      count: number of values behind each channel, over all devices and with the mask taken into
        account; a scalar, or (C,) where the mask differs between channels.
      mean_noise: sampling variance of ``mean``, shape (C,), or None where it was not asked for.
        0 where it cannot be told, with fewer than two ``examples``.
      variance_noise: sampling variance of ``variance``, likewise.
      examples: number of examples with at least one valid value, shape () or (C,), or None.
      relative_variance_noise: ``variance_noise`` over the square of ``variance``, likewise. It
        holds where they leave the range of floats, at deviations above 4e9.
    """

    __slots__ = ()

    def _replace(self, **changes: Any) -> BatchStatistics:
        """Returns the statistics with other values for some.

        Another ``variance_noise`` counts: the relative one, which is not its own, is left out.
        """
        if "variance_noise" in changes:
            changes.setdefault("relative_variance_noise", None)
        return super()._replace(**changes)


def batch_statistics(
    x: ArrayLike,
    *,
    axis: _checks.Axes = -1,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Any = None,
    use_fast_variance: bool = True,
    noise: bool = False,
    examples: bool = False,
    dtype: Any = None,
    reference: ArrayLike | None = None,
    epsilon: ArrayLike = 0.0,
) -> BatchStatistics:
    """Computes mean, biased variance and count of every channel.

    The batch is read once, and several devices make one all-reduce. A second one follows in two
    cases. Where a mean lies more than two standard deviations from its ``reference``, the squares
    are summed again about the mean: on CPUs and TPUs only then, decided by the sums themselves.
    (Where the reference is also far beyond the mean, of which it then took the digits, two reads
    more, each with an all-reduce, find the mean anew.) On GPUs, where such a decision would stop
    the host, the reference is sampled from the batch first.

    Pixels of one image are correlated, so variance / N understates the noise of a channel's mean
    by far. With ``noise=True`` the sampling variances are estimated from the spread *between
    examples* instead (cluster-robust, Liang & Zeger 1986): with t_b the sum of x - mean over
    example b and w_b that of (x - mean)^2 - variance, they are B/(B-1) sum_b t_b^2 / N^2 and
    B/(B-1) sum_b w_b^2 / N^2.

    Args:
      x: input of any rank >= 1, of a real or complex floating dtype (integers become float32).
      axis: the feature axis, or several; all other axes are averaged over. The first of those
        is the example axis. Where all axes are features, ``x`` is one example.
      mask: which values count, broadcastable to ``x`` from the last axis on; of numbers, those that
        are not 0. Values outside may be anything, NaN too.
      axis_name: name of the mapped axis (pmap, shard_map, vmap) to combine over. Under ``jit``
        with sharded inputs leave it None: the statistics are global already. It must split the
        examples where they count (``noise``, ``examples``): part of one is taken for one.
      axis_index_groups: groups of indices within that axis, as in ``jax.lax.psum``: in pmap, and in
        shard_map with check_vma=False. One all-reduce more, of a single number, goes with them.
      use_fast_variance: False finds the mean first, in a read and an all-reduce of its own.
      noise: also estimate ``mean_noise`` and ``variance_noise``; costs a few (examples, C)
        intermediates, and a larger all-reduce. Devices send 2C numbers (with a mask one more, with
        one that differs between channels 3C), with noise 5C (7C + 3, 10C), and four more where JAX
        does not track how devices differ (pmap, vmap, check_vma=False). In every read that
        follows where a reference was far they send C, with noise 3C (4C with a mask). One follows
        with noise also where fourth powers of the deviations leave the range of floats.
      examples: also count the ``examples``; with ``noise`` they are counted in any case.
      dtype: smallest dtype to compute in; at least float32 whatever is asked for.
      reference: a guess of the means, such as running means, in the shape of the features; zeros
        by default. It decides what is read twice, not the result, and may differ between devices.
      epsilon: what will be added to the variances, scalar or in the shape of the features; errors
        small beside it are left.

    Returns:
      The statistics, in float32 (float64 stays).

    Raises:
      TypeError: ``x`` is not numeric.
      ValueError: an axis out of range; a mask or reference of the wrong shape; noise of a complex
        input.
      NotImplementedError: ``axis_index_groups`` where JAX has none.

    Example:
      >>> import jax.numpy as jnp
      >>> s = batch_statistics(jnp.array([[1.0, 0.0], [3.0, 0.0]]))
      >>> s.mean, s.variance, s.count
      (Array([2., 0.], dtype=float32), Array([1., 0.], dtype=float32), Array(2., dtype=float32))
    """
    plan, x, *others = planned(
        x,
        axis=axis,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_fast_variance=use_fast_variance,
        noise=noise,
        examples=examples,
        dtype=dtype,
        reference=reference,
        epsilon=epsilon,
    )
    return _statistics(plan, x, *others)


def planned(
    x: ArrayLike,
    *,
    axis: _checks.Axes,
    mask: ArrayLike | None,
    axis_name: AxisName | None,
    axis_index_groups: Any,
    use_fast_variance: bool,
    noise: bool,
    examples: bool,
    dtype: Any,
    reference: ArrayLike | None,
    epsilon: ArrayLike,
) -> tuple[Plan, jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """Checks the arguments of :func:`batch_statistics` and prepares them for its sums.

    Returns:
      How to reduce, the batch, its mask, the reference and epsilon, laid out over devices.
    """
    x = _layer_inputs.inexact_input(x)
    features = _checks.feature_axes(axis, x.ndim)
    if noise and jnp.iscomplexobj(x):
        raise ValueError(f"noise=True needs a real input; got dtype {x.dtype}.")
    valid = None if mask is None else placed_on(_layer_inputs.mask_array(mask, x.shape), x)
    shape = tuple(x.shape[f] for f in features)
    if reference is not None:
        _checks.feature_shape("reference", reference, shape)
    if len(features) == x.ndim:  # one example, or one a device
        x, valid = x[None], None if valid is None else valid[None]
        features = tuple(f + 1 for f in features)
    computing = promote_types(x.dtype if dtype is None else dtype, x.dtype, jnp.float32)
    plan = Plan(
        axes=tuple(a for a in range(x.ndim) if a not in features),
        dtype=computing,
        by_example=noise,
        counts_examples=examples,
        two_passes=not use_fast_variance,
        axis_name=axis_name,
        groups=None if axis_index_groups is None else tuple(map(tuple, axis_index_groups)),
    )
    start = jnp.zeros(shape, computing) if reference is None else jnp.asarray(reference, computing)
    small = jnp.asarray(epsilon, jnp.finfo(computing).dtype)
    start, small = (placed_as_features(a, x, features) for a in (start, small))
    return plan, x, valid, start, small


# Compiled so that what is traced for the value serves the derivative's trace too.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _statistics(
    plan: Plan, x: jax.Array, valid: jax.Array | None, reference: jax.Array, epsilon: jax.Array
) -> BatchStatistics:
    sums, about = sums_about(plan, x, valid, reference, epsilon)
    count = jnp.maximum(sums["count"], 1)
    shift, variance = shift_and_variance(sums)
    some = sums["count"] > 0
    result = BatchStatistics(
        mean=select(some, about + shift),
        variance=variance,
        count=_shared(sums["count"], variance),
    )
    if plan.by_example or plan.counts_examples:
        result = result._replace(examples=_shared(sums["examples"], variance))
    if not plan.by_example:
        return result
    unit = sums["unit"]
    variance_in_units = variance / unit / unit
    squares = _squares_of_examples(sums, shift / unit, variance_in_units)
    examples = sums["examples"]
    correction = examples / jnp.maximum(examples - 1, 1) / jnp.square(count)
    noises = (select(examples > 1, correction * jnp.maximum(a, 0)) for a in squares)
    return _with_noises(result, *noises, unit=unit, variance=variance_in_units)


def _with_noises(
    result: BatchStatistics,
    of_mean: jax.Array,
    of_variance: jax.Array,
    *,
    unit: jax.Array,
    variance: jax.Array,
) -> BatchStatistics:
    """Puts the noises in, which like the variance are given in units of a power of two."""
    divisor = jnp.square(variance)
    some = divisor >= jnp.finfo(divisor.dtype).tiny
    unit_squared = jnp.square(unit)
    return result._replace(
        mean_noise=of_mean * unit_squared,
        variance_noise=of_variance * unit_squared * unit_squared,
        relative_variance_noise=select(some, of_variance / select(some, divisor, 1)),
    )


def _squares_of_examples(
    sums: Sums, shift: jax.Array, variance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the sums over examples of t_b^2 and w_b^2, about the mean and the variance.

    Of values about a reference example b has the sum t and the sum of squares w; about the mean,
    ``shift`` away, and less the variance these are t - shift n and w - 2 shift t + excess n.
    """
    tt, tw, ww, nn, nt, nw = (sums[name] for name in ("tt", "tw", "ww", "nn", "nt", "nw"))
    excess = jnp.square(shift) - variance
    t_squared = tt - 2 * shift * nt + jnp.square(shift) * nn
    w_squared = ww + 4 * shift * (shift * tt - tw - excess * nt) + excess * (excess * nn + 2 * nw)
    return t_squared, w_squared


def _shared(count: jax.Array, like: jax.Array) -> jax.Array:
    """Returns one count where it serves all channels, otherwise one a channel."""
    return count.reshape(()) if count.size == 1 else jnp.broadcast_to(count, like.shape)


@_statistics.defjvp
def _statistics_jvp(
    plan: Plan, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[BatchStatistics, BatchStatistics]:
    """Differentiates the definitions of mean and variance rather than the sums behind them.

    What the sums are about, and whether they are made twice, has no effect on the result. Of the
    forward pass only x itself and per-channel values are kept.
    """
    x, valid, *_ = primals
    result = _statistics(plan, *primals)
    # The barriers that prevent_cse would add make a backward pass keep a float32 copy of a bfloat16
    # input as well.
    slopes = jax.checkpoint(functools.partial(_slopes, plan), prevent_cse=False)
    return result, slopes(x, valid, result, tangents[0])


def _slopes(
    plan: Plan, x: jax.Array, valid: jax.Array | None, result: BatchStatistics, dx: jax.Array
) -> BatchStatistics:
    """Returns how the statistics change where the batch changes by ``dx``."""
    change = dx.astype(plan.dtype)
    centred = x.astype(plan.dtype) - plan.wide(result.mean)
    if valid is not None:
        change, centred = select(valid, change), select(valid, centred)
    sums = {
        "mean": jnp.sum(change, plan.axes),
        "variance": 2 * jnp.sum(real(centred * jnp.conj(change)), plan.axes),
    }
    count = jnp.maximum(result.count, 1)
    slopes = {n: a / count.astype(a.dtype) for n, a in plan.everywhere(sums).items()}
    tangent = jax.tree.map(jnp.zeros_like, result)._replace(**slopes)
    if plan.by_example:
        noise = functools.partial(_noise_about, plan, valid=valid, counts=result)
        along = (dx, slopes["mean"], slopes["variance"])
        _, noises = jax.jvp(noise, (x, result.mean, result.variance), along)
        names = ("mean_noise", "variance_noise", "relative_variance_noise")
        tangent = tangent._replace(**{n: getattr(noises, n) for n in names})
    return tangent


def _noise_about(
    plan: Plan,
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    *,
    valid: jax.Array | None,
    counts: BatchStatistics,
) -> BatchStatistics:
    """The noises as defined, given mean and variance: what is differentiated."""
    unit = power_of_two_near(jnp.sqrt(lax.stop_gradient(variance)))
    variance = variance / unit / unit
    centred = (x.astype(plan.dtype) - plan.wide(mean)) / plan.wide(unit)
    excess = jnp.square(centred) - plan.wide(variance)
    if valid is not None:
        centred, excess = select(valid, centred), select(valid, excess)
    inner = plan.axes[1:]
    sums = {
        name: jnp.sum(jnp.square(jnp.sum(a, inner, keepdims=True)), plan.axes)
        for name, a in (("mean", centred), ("variance", excess))
    }
    sums = plan.everywhere(sums)
    examples = counts.examples
    assert examples is not None
    correction = examples / jnp.maximum(examples - 1, 1) / jnp.square(jnp.maximum(counts.count, 1))
    known = jnp.where(examples > 1, correction, 0)
    noises = (known * sums[name] for name in ("mean", "variance"))
    return _with_noises(counts, *noises, unit=unit, variance=variance)
