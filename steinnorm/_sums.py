"""Sums over a batch: one read about a reference, one all-reduce, on one device or many.

How the numbers are made:

1. Values are taken relative to a *reference* that every device knows by itself: the running mean,
   or zero. The sum of the values and that of their squared distances from the reference come out
   of one read of the batch; a TPU makes them while it writes the batch.
2. One all-reduce brings the sums of all devices together. It does not grow with their number, and
   shards of any size, empty ones included, give what a single device would give.
3. Squares about a reference many standard deviations away have lost the digits that the variance
   needs (Chan, Golub & LeVeque 1983). Where that is so, which all devices see in the same sums,
   the squares are summed again about the mean, with a second all-reduce.

A decision while the program runs stops the host on a GPU, where XLA copies the condition back and
waits. There the reference is sampled from the batch instead: the mean over the examples of their
centre pixels lies among the values, and nothing has to be repeated. It costs an all-reduce of C
numbers where there are several GPUs. (On a TPU it would cost a read of its own.)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from steinnorm._compat import psum, varying_axes, zeros_like
from steinnorm._numerics import abs_squared, real
from steinnorm._sharding import select, sharded_axes

__all__ = ["AxisName", "Plan", "Sums", "shift_and_variance", "sums_about"]

AxisName = str | tuple[str, ...]
Sums = dict[str, jax.Array]

# A reference at distance d costs the variance (d / deviation)^2 roundings: at most 5e-7 of it, or
# 1e-3 of epsilon, are accepted before the squares are summed again.
_FAR_IN_VARIANCES = 4.0
_FAR_IN_EPSILONS = 1e4
# A variance of so many roundings of what was subtracted is none.
_ROUNDINGS = 16
# The repeat goes through the batch in at least so many parts: XLA sets memory aside, and counts
# bytes, for one part, and does so where the repeat never runs too.
_LEAST_PARTS = 10
# Squares of what lies further out would overflow float32 when summed.
_LARGEST_REFERENCE = 1e15


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a batch is reduced; fixed when the program is traced.

    Attributes:
      axes: the axes to sum over; the first is the example axis.
      dtype: what to compute in.
      by_example: whether products of the examples' own sums are wanted, for sampling noise.
      counts_examples: whether the number of examples with a valid value is; by example it is.
      movable: whether the sums must be right about any other reference too, not the mean alone.
      two_passes: whether to find the mean first, by a read and an all-reduce of its own.
      in_two_steps: whether to sum by example first, as is good for a GPU: of small images it would
        write the values themselves out otherwise.
      axis_name: mapped axis to sum over as well, or None.
      groups: groups of indices within that axis, or None.
    """

    axes: tuple[int, ...]
    dtype: Any
    by_example: bool = False
    counts_examples: bool = False
    movable: bool = False
    two_passes: bool = False
    in_two_steps: bool = False
    axis_name: AxisName | None = None
    groups: Any = None

    def wide(self, per_channel: jax.Array) -> jax.Array:
        """Adds axes of size 1 to per-channel values, so that they broadcast over the batch."""
        return lax.expand_dims(per_channel, self.axes)

    def everywhere(self, sums: Sums) -> Sums:
        """Adds the sums of all devices of the mapped axis, in one all-reduce."""
        if self.axis_name is None:
            return sums
        dtype = jnp.result_type(*sums.values())
        flat = jnp.concatenate([a.astype(dtype).reshape(-1) for a in sums.values()])
        flat = psum(flat, self.axis_name, self.groups)
        total, start = {}, 0
        for name, a in sums.items():
            piece = flat[start : start + a.size].reshape(a.shape)
            total[name] = piece.astype(a.dtype) if jnp.iscomplexobj(a) else real(piece)
            start += a.size
        return total

    @property
    def devices(self) -> int:
        """Number of devices that :meth:`everywhere` adds over."""
        if self.axis_name is None:
            return 1
        return lax.psum(1, self.axis_name, axis_index_groups=self.groups)


def sums_about(
    plan: Plan, x: jax.Array, valid: jax.Array | None, reference: jax.Array, epsilon: jax.Array
) -> tuple[Sums, jax.Array]:
    """Sums a batch about a reference that is close enough to its mean.

    Args:
      plan: how to reduce.
      x: the batch.
      valid: which values count, of the rank of ``x``, or None for all.
      reference: a guess of the means, in the shape of the features; any value will do.
      epsilon: what will be added to the variances; an error small beside it does no harm.

    Returns:
      The sums over all devices (see :func:`_read`), and the reference they are about.
    """
    near = jnp.abs(reference) < _LARGEST_REFERENCE  # False for NaN
    reference = select(near, reference).astype(plan.dtype)
    find = _mean if plan.two_passes else _sampled_reference

    def on_gpu(x: jax.Array, valid: jax.Array | None, guess: jax.Array) -> tuple[Sums, jax.Array]:
        by_example = dataclasses.replace(plan, in_two_steps=True)
        about = find(by_example, x, valid, guess)
        return _sums(by_example, x, valid, about)[0], about

    def elsewhere(
        x: jax.Array, valid: jax.Array | None, guess: jax.Array
    ) -> tuple[Sums, jax.Array]:
        about = find(plan, x, valid, guess) if plan.two_passes else guess
        sums, block = _sums(plan, x, valid, about)
        if plan.two_passes:
            return sums, about
        return _repeat_if_far(plan, x, valid, about, epsilon, sums=sums, block=block)

    return lax.platform_dependent(x, valid, reference, cuda=on_gpu, rocm=on_gpu, default=elsewhere)


def _sums(
    plan: Plan, x: jax.Array, valid: jax.Array | None, about: jax.Array
) -> tuple[Sums, tuple[jax.Array, ...]]:
    """Sums over all devices, in one read and one all-reduce; see :func:`_read`."""
    local, block = _read(plan, x, valid, about)
    if plan.counts_examples and valid is not None and not plan.by_example:
        local |= _counts(plan, x, valid, local["squares"].dtype)
    return _complete(plan, x, plan.everywhere(local)), block


def shift_and_variance(sums: Sums) -> tuple[jax.Array, jax.Array]:
    """Returns how far the means lie from the reference, and the biased variances.

    What is within the roundings of the difference is 0: that of a constant channel, on which a
    geometric mean of all variances depends.
    """
    count = jnp.maximum(sums["count"], 1)
    shift = sums["sum"] / count.astype(sums["sum"].dtype)
    removed = abs_squared(shift)
    variance = sums["squares"] / count - removed
    roundings = _ROUNDINGS * float(jnp.finfo(variance.dtype).eps)
    return shift, select(~(variance <= roundings * removed), variance)  # NaN stays NaN


def _read(
    plan: Plan, x: jax.Array, valid: jax.Array | None, about: jax.Array
) -> tuple[Sums, tuple[jax.Array, ...]]:
    """Sums the local batch about ``about`` in one read.

    Returns:
      What to add over devices: ``sum`` and ``squares`` of the values less ``about``; with a mask
      their ``count``. By example also sums over the examples of the products of (n, t, w), the
      number, sum and squares of an example's values. And those sums before they were added up
      over examples, as :func:`_block` gives them.
    """
    block = _block(plan, x, valid, about)
    return _products(plan, block, masked=valid is not None), block


def _block(
    plan: Plan, x: jax.Array, valid: jax.Array | None, about: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns count, sum and squares of part of a batch: per channel, or by example and channel."""
    axes = plan.axes[1:] if plan.by_example else plan.axes
    x = x.astype(plan.dtype)
    # Two subtractions that the compiler may not see to be one: a difference with two uses would be
    # written out where reductions are library calls (XLA's CPU backend).
    deviation = x - plan.wide(about)
    squares = abs_squared(x - plan.wide(lax.optimization_barrier(about)))
    if valid is None:
        count = jnp.asarray(math.prod(x.shape[a] for a in axes), squares.dtype)
    else:
        deviation, squares = select(valid, deviation), select(valid, squares)
        count = _valid_values(x, valid, axes, squares.dtype)
        if plan.by_example:  # one count an example, also where one mask serves all of them
            shape = list(count.shape)
            shape[_example_axis(plan)] = x.shape[plan.axes[0]]
            count = jnp.broadcast_to(count, shape)
    return count, *_summed(plan, deviation, squares)


def _valid_values(x: jax.Array, valid: jax.Array, axes: tuple[int, ...], dtype: Any) -> jax.Array:
    """Counts what the mask lets through along some axes; those that it broadcasts over too."""
    repeats = math.prod(x.shape[a] for a in axes if valid.shape[a] == 1)
    return repeats * jnp.sum(valid, axes, dtype=dtype)


def _counts(plan: Plan, x: jax.Array, valid: jax.Array, dtype: Any) -> Sums:
    """Counts values and the examples that have any, in one read of the mask."""
    by_example = _valid_values(x, valid, plan.axes[1:], dtype)
    axis = _example_axis(plan)
    repeats = x.shape[plan.axes[0]] if by_example.shape[axis] == 1 else 1
    found = {"count": by_example, "examples": jnp.minimum(by_example, 1)}
    return {name: repeats * jnp.sum(a, axis) for name, a in found.items()}


def _summed(plan: Plan, *values: jax.Array) -> tuple[jax.Array, ...]:
    """Sums over all axes, or over all but the examples', in one read of what values are made of.

    The barrier keeps XLA from making one sum of two steps.
    """
    if not (plan.by_example or plan.in_two_steps):
        return tuple(jnp.sum(a, plan.axes) for a in values)
    sums = tuple(lax.optimization_barrier([jnp.sum(a, plan.axes[1:]) for a in values]))
    return sums if plan.by_example else tuple(jnp.sum(a, _example_axis(plan)) for a in sums)


def _products(plan: Plan, block: tuple[jax.Array, ...], *, masked: bool) -> Sums:
    """Adds up over the examples what :func:`_block` returns."""
    n, t, w = block
    if not plan.by_example:
        return {"sum": t, "squares": w} | ({"count": n} if masked else {})
    products = {
        "sum": t,
        "squares": w,
        "tt": jnp.square(t),
        "tw": t * w,
        "ww": jnp.square(w),
    }
    if masked:
        products |= {
            "count": n,
            "examples": jnp.minimum(n, 1),
            "nn": jnp.square(n),
            "nt": n * t,
            "nw": n * w,
        }
    return {name: jnp.sum(a, _example_axis(plan)) for name, a in products.items()}


def _complete(plan: Plan, x: jax.Array, sums: Sums) -> Sums:
    """Adds what needs no all-reduce without a mask, because all examples have as many values."""
    if "count" in sums:
        return sums
    dtype = sums["squares"].dtype
    sums = sums | {"count": _values(plan, x, dtype)}
    if plan.by_example or plan.counts_examples:
        sums |= {"examples": jnp.asarray(x.shape[plan.axes[0]] * plan.devices, dtype)}
    if plan.by_example:
        n = jnp.asarray(math.prod(x.shape[a] for a in plan.axes[1:]), dtype)
        sums |= {"nn": n * n * sums["examples"]}
        sums |= {"nt": n * sums["sum"], "nw": n * sums["squares"]}
    return sums


def _values(plan: Plan, x: jax.Array, dtype: Any) -> jax.Array:
    """Returns how many values are behind each channel without a mask, over all devices."""
    return jnp.asarray(math.prod(x.shape[a] for a in plan.axes) * plan.devices, dtype)


def _repeat_if_far(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    reference: jax.Array,
    epsilon: jax.Array,
    *,
    sums: Sums,
    block: tuple[jax.Array, ...],
) -> tuple[Sums, jax.Array]:
    """Sums the squares again, about the mean, if any channel's reference was too far from it."""
    shift, variance = shift_and_variance(sums)
    tolerated = _FAR_IN_VARIANCES * variance + _FAR_IN_EPSILONS * epsilon
    far = _agreed(plan, jnp.any((abs_squared(shift) > tolerated) & (sums["count"] > 0)))
    mean = reference + shift
    # About the mean the values sum to zero, and what is multiplied by the shift does not matter.
    again_too = ("sum", "tw", "nt") if plan.movable else ()
    names = [n for n in ("squares", "tt", "ww", "nw", *again_too) if n in sums]

    def again() -> Sums:
        centred = _block_by_parts(plan, x, valid, mean, like=block, repeat=far)
        products = _products(plan, centred, masked=valid is not None)
        products = plan.everywhere({n: products[n] for n in names if n in products})
        # A constant channel's squares are those of the roundings of its mean, and nothing else.
        # Where they do not matter beside epsilon they are none.
        largest = jnp.maximum(jnp.abs(reference), jnp.abs(mean))
        roundings = jnp.square(8 * float(jnp.finfo(variance.dtype).eps) * largest)
        nothing = products["squares"] <= sums["count"] * jnp.minimum(roundings, 1e-3 * epsilon)
        products["squares"] = select(~nothing, products["squares"])
        if valid is None:
            products = _complete(plan, x, {"sum": 0 * shift} | products)
        return {n: products[n] for n in names}

    repeated = lax.cond(far, again, lambda: {n: sums[n] for n in names})
    rest = [n for n in ("sum", "tw", "nt") if n in sums and n not in names]
    zero = {n: select(~far, sums[n]) for n in rest}
    return sums | zero | repeated, select(far, mean, reference)


def _block_by_parts(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    mean: jax.Array,
    *,
    like: tuple[jax.Array, ...],
    repeat: jax.Array,
) -> tuple[jax.Array, ...]:
    """Does what :func:`_block` does, part by part, if ``repeat``; returns zeros otherwise."""
    axes = _axes_to_cut(plan, x)
    sizes = [x.shape[a] for a in axes]

    # A part keeps no axis of size 1: a TPU may lay it out last, where it is padded to 128.
    kept = [a for a in range(x.ndim) if a not in axes]
    part_plan = dataclasses.replace(plan, axes=tuple(kept.index(a) for a in plan.axes if a in kept))

    def part(array: jax.Array, place: tuple[jax.Array, ...]) -> jax.Array:
        for axis, index in zip(axes, place, strict=True):
            if array.shape[axis] != 1:  # an axis of a mask that broadcasts
                array = lax.dynamic_slice_in_dim(array, index, 1, axis)
        return lax.squeeze(array, axes)

    def add(i: jax.Array, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        place = (i,) if len(axes) == 1 else jnp.unravel_index(i, sizes) if axes else ()
        cut_valid = None if valid is None else part(valid, place)
        _, t, w = _block(part_plan, part(x, place), cut_valid, mean)
        return so_far[0] + t, so_far[1] + w

    count, *sums = like
    times = jnp.where(repeat, math.prod(sizes), 0)
    return count, *lax.fori_loop(0, times, add, tuple(map(zeros_like, sums)))


def _axes_to_cut(plan: Plan, x: jax.Array) -> list[int]:
    """Chooses axes along which the repeat goes through the batch.

    Not examples, nor what is known to lie on several devices: each is to have some of a part. The
    last axis only if the others are short: a TPU keeps it in tiles, out of which it cannot cut.
    """
    axes: list[int] = []
    for axis in (*plan.axes[-2:0:-1], *plan.axes[1:][-1:]):
        size = x.shape[axis]
        # Not a symbol of jax.export, and not nothing.
        if isinstance(size, int) and size > 0 and axis not in sharded_axes(x):
            axes.append(axis)
        if math.prod(x.shape[a] for a in axes) >= _LEAST_PARTS:
            break
    return axes


def _sampled_reference(
    plan: Plan, x: jax.Array, valid: jax.Array | None, otherwise: jax.Array
) -> jax.Array:
    """Returns the mean over all examples of their centre pixels."""
    several_devices = sharded_axes(x)

    def centre(array: jax.Array) -> jax.Array:
        for axis in plan.axes[1:]:
            if axis not in several_devices and array.shape[axis] != 0:
                middle = array.shape[axis] // 2
                array = lax.slice_in_dim(array, middle, middle + 1, axis=axis)
        return array

    return _mean(plan, centre(x), None if valid is None else centre(valid), otherwise)


def _mean(plan: Plan, x: jax.Array, valid: jax.Array | None, otherwise: jax.Array) -> jax.Array:
    """Returns the mean over all devices, by an all-reduce of its own; ``otherwise`` of nothing."""
    plan = dataclasses.replace(plan, by_example=False, counts_examples=False)
    local, _ = _read(plan, x, valid, jnp.zeros_like(otherwise))
    del local["squares"]
    sums = plan.everywhere(local)
    count = sums["count"] if valid is not None else _values(plan, x, jnp.float32)
    mean = sums["sum"] / jnp.maximum(count, 1).astype(plan.dtype)
    return select(count > 0, mean, otherwise)


def _agreed(plan: Plan, far: jax.Array) -> jax.Array:
    """Makes devices that do not share their sums take one decision, since all must reduce again."""
    if plan.axis_name is None:
        return far
    apart = varying_axes(far)
    if plan.groups is not None:
        apart += (plan.axis_name,) if isinstance(plan.axis_name, str) else plan.axis_name
    return lax.psum(far.astype(jnp.float32), apart) > 0 if apart else far


def _example_axis(plan: Plan) -> int:
    """Returns where the example axis is once the other axes have been summed over."""
    return sum(a not in plan.axes for a in range(plan.axes[0]))
