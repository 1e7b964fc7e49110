"""Batch statistics: mean, biased variance and count of every channel, on one device or many.

How the numbers are made:

1. The batch is cut into *parts*: one part per device with ``axis_name``; otherwise as many equal
   parts of the example axis as there are devices, so that under ``jit`` with sharded inputs every
   part lies on one device.
2. Each part is reduced by itself: its mean first, then the squares about that mean. A mean of
   1e4 with a standard deviation of 1 loses nothing, where E[x^2] - E[x]^2 would lose everything.
3. The parts' counts, means and sums of squares are brought together by **one** all-reduce, in
   which each part adds its numbers into a slot of its own, and combined exactly (Chan, Golub &
   LeVeque 1979). Parts of unequal size, empty ones included, and masks give what a single device
   would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from steinnorm import _checks
from steinnorm._numerics import promote_types

__all__ = ["SAVED_STATISTICS", "BatchStatistics", "batch_statistics"]

AxisName = str | tuple[str, ...]

SAVED_STATISTICS = "steinnorm_statistics"
"""Name under which per-channel values are kept for the backward pass (``jax.checkpoint``)."""


class BatchStatistics(NamedTuple):
    """Statistics of a batch; features have the shape of the feature axes, usually (C,).

    Attributes:
      mean: sample means, shape (C,); 0 where the count is 0. Complex for complex input.
      variance: biased sample variances (divided by the count), shape (C,); 0 where the count is 0.
      count: number of values behind each channel, over all devices and with the mask taken into
        account; a scalar, or (C,) where the mask differs between channels.
      mean_noise: sampling variance of ``mean``, shape (C,), or None where it was not asked for.
      variance_noise: sampling variance of ``variance``, shape (C,), or None.
      examples: number of examples with at least one valid value, shape () or (C,), or None.
    """

    mean: jax.Array
    variance: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a tuple's method of that name is not used
    mean_noise: jax.Array | None = None
    variance_noise: jax.Array | None = None
    examples: jax.Array | None = None


def batch_statistics(
    x: ArrayLike,
    *,
    axis: _checks.Axes = -1,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Any = None,
    use_fast_variance: bool = True,
    noise: bool = False,
    dtype: Any = None,
) -> BatchStatistics:
    """Computes mean, biased variance and count of every channel.

    Pixels of one image are correlated, so variance / N understates the noise of a channel's mean
    by far. With ``noise=True`` the sampling variances are estimated from the spread *between
    examples* instead (cluster-robust, Liang & Zeger 1986): with t_b the sum of x - mean over
    example b and w_b that of (x - mean)^2 - variance, they are B/(B-1) sum_b t_b^2 / N^2 and
    B/(B-1) sum_b w_b^2 / N^2; infinite with fewer than two examples.

    Args:
      x: input of any rank >= 1, of a real or complex floating dtype (integers become float32).
      axis: the feature axis, or several; all other axes are averaged over. The first of those
        is the example axis.
      mask: which values count, broadcastable to ``x``; values outside may be anything, NaN too.
      axis_name: name of the mapped axis (pmap, shard_map, vmap) to combine over. Under ``jit``
        with sharded inputs leave it None: the statistics are global already.
      axis_index_groups: groups of indices within that axis, as in ``jax.lax.psum``.
      use_fast_variance: True combines the devices' parts with one all-reduce of 3 * C numbers per
        device. False reduces the global mean first and the squares about it second: two
        all-reduces of C numbers, for axes of hundreds of devices.
      noise: also estimate ``mean_noise`` and ``variance_noise``; costs a few (examples, C)
        intermediates. ``use_fast_variance=False`` has no effect then.
      dtype: smallest dtype to compute in; at least float32 whatever is asked for.

    Returns:
      The statistics, in float32 (float64 stays).

    Raises:
      TypeError: ``x`` is not numeric.
      ValueError: an axis out of range or none left to average over; a mask of the wrong shape;
        noise of a complex input.

    Example:
      >>> import jax.numpy as jnp
      >>> s = batch_statistics(jnp.array([[1.0, 0.0], [3.0, 0.0]]))
      >>> s.mean, s.variance, s.count
      (Array([2., 0.], dtype=float32), Array([1., 0.], dtype=float32), Array(2., dtype=float32))
    """
    x = _checks.inexact_input(x)
    features = _checks.feature_axes(axis, x.ndim)
    if noise and jnp.iscomplexobj(x):
        raise ValueError(f"noise=True needs a real input; got dtype {x.dtype}.")
    x = x.astype(promote_types(x.dtype if dtype is None else dtype, jnp.float32))
    valid = None if mask is None else _checks.mask_array(mask, x.shape)
    if len(features) == x.ndim:
        if axis_name is None:
            raise ValueError(
                f"axis {axis} names every axis of an input of rank {x.ndim}; at least one axis "
                "must be left to compute statistics over (a batch axis), or axis_name be given."
            )
        # One example a device: a batch axis of one.
        x, valid = x[None], None if valid is None else valid[None]
        features = tuple(f + 1 for f in features)
    if not use_fast_variance and not noise:
        return _in_two_reductions(x, features, valid, axis_name, axis_index_groups)
    parts = _reduce_parts(x, features, valid, 1 if axis_name is not None else None, noise)
    parts = _gather_parts(parts, axis_name, axis_index_groups)
    parts = checkpoint_name(parts, SAVED_STATISTICS)
    return _combine_parts(parts, one_count=_is_shared(valid, features))


def _reduce_parts(
    x: jax.Array,
    features: tuple[int, ...],
    valid: jax.Array | None,
    n_parts: int | None,
    noise: bool,
) -> jax.Array:
    """Reduces each part of the examples by itself.

    Returns:
      Shape (parts, fields, *features): count, mean, sum of squares about the part's own mean.
      For noise also the number of examples, and sums over the examples of the products of (n_b,
      t_b, r_b): the values of example b, the sum of their deviations from the part's mean, and
      that of their squares less n_b times the part's variance. No more is needed to move both
      noises from the part's mean and variance to those of the whole batch.
    """
    example = _reduction_axes(x.ndim, features)[0]
    if n_parts is None:
        n_parts = _parts_for_devices(x, example)
    x = _split_axis(x, example, n_parts)
    valid = None if valid is None else _split_axis(valid, example, n_parts)
    features = tuple(f + 1 if f > example else f for f in features)
    axes = tuple(a for a in _reduction_axes(x.ndim, features) if a != example)

    # With noise the sums are kept by example at first; otherwise one sum goes over all.
    inner = axes[1:] if noise else axes
    n, sums = _count(x, inner, valid), _sum(x, inner, valid)
    if noise:
        n = jnp.broadcast_to(n, sums.shape)
    count, total = (jnp.sum(a, axes, keepdims=True) for a in (n, sums))
    mean = total / jnp.maximum(count, 1).astype(x.dtype)
    inner_squares = _squares_about(mean, x, inner, valid, n=n, sums=sums)
    squares = jnp.sum(inner_squares, axes, keepdims=True)
    fields = [count, mean, squares]
    if noise:
        t = sums - n * mean
        r = inner_squares - n * (squares / jnp.maximum(count, 1))
        products = (jnp.minimum(n, 1), n * n, n * t, n * r, t * t, t * r, r * r)
        fields += [jnp.sum(a, axes, keepdims=True) for a in products]

    def parts_first(field: jax.Array) -> jax.Array:
        field = jnp.broadcast_to(field, mean.shape).astype(mean.dtype)
        return jnp.squeeze(jnp.moveaxis(field, example, 0), tuple(a + (a < example) for a in axes))

    return jnp.stack([parts_first(field) for field in fields], axis=1)


def _parts_for_devices(x: jax.Array, example: int) -> int:
    """How many equal parts of the example axis there are, so that each lies on one device.

    With explicit sharding the type says how the axis is cut. Otherwise that is not known while
    tracing, but a number of parts that the number of shards divides is enough; it does where the
    mesh holds all devices, or a number of them that divides all.
    """
    sharding = jax.typeof(x).sharding
    if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
        names = sharding.spec[example] or ()
        return math.prod(
            sharding.mesh.shape[n] for n in ((names,) if isinstance(names, str) else names)
        )
    return math.gcd(x.shape[example], jax.device_count())


def _gather_parts(parts: jax.Array, axis_name: AxisName | None, groups: Any) -> jax.Array:
    """Brings all parts to every device by one all-reduce over slots, one slot a part.

    A sum over slots that are zero but for one entry is exact, so this gathers. It is an
    all-reduce rather than an all-gather because its result is known to be the same on every
    device, which `shard_map` checks for running statistics.
    """
    if axis_name is not None:
        own = jnp.arange(lax.axis_size(axis_name)) == lax.axis_index(axis_name)
        own = own.reshape((-1,) + (1,) * (parts.ndim - 1))
        return lax.psum(jnp.where(own, parts, 0), axis_name, axis_index_groups=groups)
    n_parts = parts.shape[0]
    if n_parts == 1:
        return parts
    own = jnp.eye(n_parts, dtype=bool).reshape((n_parts, n_parts) + (1,) * (parts.ndim - 1))
    return jnp.sum(jnp.where(own, parts[:, None], 0), axis=0)


def _combine_parts(parts: jax.Array, one_count: bool) -> BatchStatistics:
    """Combines parts of any size exactly (Chan, Golub & LeVeque 1979); drops the parts' axis."""
    fields = [parts[:, i] for i in range(parts.shape[1])]
    counts, means, squares = _real(fields[0]), fields[1], _real(fields[2])

    def total(field: jax.Array) -> jax.Array:
        return jnp.sum(field, axis=0, keepdims=True)

    def finish(field: jax.Array, shared: bool = False) -> jax.Array:
        if not shared:
            return jnp.squeeze(field, 0)
        return jnp.max(field, initial=0)  # all channels have the same

    count = total(counts)
    weights = counts / jnp.maximum(count, 1)
    mean = total(weights.astype(means.dtype) * means)
    shift = means - mean
    variance = total(squares + counts * _abs_squared(shift)) / jnp.maximum(count, 1)
    statistics = BatchStatistics(finish(mean), finish(variance), finish(count, one_count))
    if len(fields) == 3:
        return statistics

    nn, nt, nr, tt, tr, rr = fields[4:]
    # Example b's sums about the whole batch's mean and variance are t_b + shift n_b and
    # r_b + 2 shift t_b + excess n_b.
    excess = jnp.square(shift) + squares / jnp.maximum(counts, 1) - variance
    t_squared = tt + 2 * shift * nt + jnp.square(shift) * nn
    w_squared = rr + 4 * shift * (shift * tt + tr + excess * nt) + excess * (excess * nn + 2 * nr)
    examples = total(fields[3])
    correction = examples / jnp.maximum(examples - 1, 1)

    def sampling_variance(per_example: jax.Array) -> jax.Array:
        noise = correction * total(per_example) / jnp.square(jnp.maximum(count, 1))
        return finish(jnp.where(examples > 1, jnp.maximum(noise, 0), jnp.inf))

    return statistics._replace(
        mean_noise=sampling_variance(t_squared),
        variance_noise=sampling_variance(w_squared),
        examples=finish(examples, one_count),
    )


def _in_two_reductions(
    x: jax.Array,
    features: tuple[int, ...],
    valid: jax.Array | None,
    axis_name: AxisName | None,
    groups: Any,
) -> BatchStatistics:
    """The global mean first, then the squares about it: one all-reduce each."""
    axes = _reduction_axes(x.ndim, features)

    def everywhere(a: jax.Array) -> jax.Array:
        if axis_name is None:
            return a
        return lax.psum(a, axis_name, axis_index_groups=groups)

    local_count, local_sum = _count(x, axes, valid), _sum(x, axes, valid)
    count = jnp.broadcast_to(local_count, local_sum.shape).astype(x.dtype)
    total, count = checkpoint_name(everywhere(jnp.stack([local_sum, count])), SAVED_STATISTICS)
    count = _real(count)
    mean = total / jnp.maximum(count, 1).astype(x.dtype)
    squares = everywhere(_squares_about(mean, x, axes, valid, n=local_count, sums=local_sum))
    squares = checkpoint_name(squares, SAVED_STATISTICS)
    mean, count, squares = (jnp.squeeze(a, axes) for a in (mean, count, squares))
    variance = squares / jnp.maximum(count, 1)
    if _is_shared(valid, features):
        count = jnp.max(count, initial=0)
    return BatchStatistics(mean, variance, count)


def _sum(x: jax.Array, axes: tuple[int, ...], valid: jax.Array | None) -> jax.Array:
    return jnp.sum(x if valid is None else jnp.where(valid, x, 0), axes, keepdims=True)


def _squares_about(
    mean: jax.Array,
    x: jax.Array,
    axes: tuple[int, ...],
    valid: jax.Array | None,
    *,
    n: jax.Array,
    sums: jax.Array,
) -> jax.Array:
    """Sum over ``axes`` of |x - mean|^2; ``n`` and ``sums`` are those of the values summed over.

    The large sum is about a centre that is constant under differentiation. Where it goes over all
    that the mean is of, it does not depend on the centre to first order, and the backward pass is
    spared a reduction over x. The second term moves the centre to the mean: its value is zero, its
    derivatives are what is missing. The centre has a name so that the backward pass keeps it
    rather than the centred input.
    """
    centre = checkpoint_name(lax.stop_gradient(mean), SAVED_STATISTICS)
    deviation = x - centre if valid is None else jnp.where(valid, x - centre, 0)
    squares = jnp.sum(_abs_squared(deviation), axes, keepdims=True)
    shift, n = mean - centre, n.astype(x.dtype)
    return squares - _real(jnp.conj(shift) * (2 * (sums - n * centre) - n * shift))


def _count(x: jax.Array, axes: tuple[int, ...], valid: jax.Array | None) -> jax.Array:
    """Number of valid values over ``axes``, which stay as axes of size 1; real."""
    dtype = jnp.finfo(x.dtype).dtype
    if valid is None:
        return jnp.full((1,) * x.ndim, math.prod(x.shape[a] for a in axes), dtype)
    # An axis that the mask leaves at size 1 counts in full.
    repeats = math.prod(x.shape[a] for a in axes if valid.shape[a] == 1)
    return repeats * jnp.sum(valid, axes, keepdims=True, dtype=dtype)


def _is_shared(valid: jax.Array | None, features: tuple[int, ...]) -> bool:
    """Whether all channels have the same valid values, so that one count serves them all."""
    return valid is None or all(valid.shape[f] == 1 for f in features)


def _split_axis(a: jax.Array, axis: int, n_parts: int) -> jax.Array:
    """Cuts one axis into (parts, size / parts); an axis of size 1 that broadcasts stays so."""
    size = a.shape[axis]
    cut = (n_parts, size // n_parts) if size % n_parts == 0 else (1, size)
    return a.reshape((*a.shape[:axis], *cut, *a.shape[axis + 1 :]))


def _reduction_axes(ndim: int, features: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in features)


def _abs_squared(x: jax.Array) -> jax.Array:
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def _real(x: jax.Array) -> jax.Array:
    return x.real if jnp.iscomplexobj(x) else x
