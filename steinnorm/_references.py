"""What a batch is summed about, so that no reference spoils the result.

How the numbers are made:

1. The reference is one that every device knows by itself: the running mean, or zero. The batch is
   read once, and one all-reduce follows (``_sums.py``). Should devices have different ones, that is
   noticed (``_common_references.py``), and 3. follows.
2. Squares about a reference many standard deviations away have lost the digits that the variance
   needs (Chan, Golub & LeVeque 1983). Where that is so, which all devices see in the same sums,
   the squares are summed again about the mean, with a second all-reduce.
3. About a reference that is also far beyond the mean, the values themselves have been rounded by
   more than the mean can bear. There the mean is found anew before the squares are: about zero,
   then about what that gave. Each of these reads has an all-reduce of as many numbers as the
   squares.

A decision while the program runs stops the host on a GPU, where XLA copies the condition back and
waits. There the reference is sampled from the batch instead: the mean over the examples of their
centre pixels (of large examples, of the middle one of three; with a mask, of what is valid of five)
lies among the values, and nothing has to be repeated. It costs an all-reduce of C numbers where
there are several GPUs. (On a TPU it would cost a read of its own.) Nothing is noticed where the
sample is unlike the rest: where the mask lets none of it through, above all.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from steinnorm._common_references import (
    digest_of,
    digests_differ,
    made_common,
    types_tell,
)
from steinnorm._compat import varying_axes, zeros_like
from steinnorm._numerics import abs_squared, power_of_two_near, real
from steinnorm._sharding import select, sharded_axes
from steinnorm._sums import (
    Plan,
    Sums,
    block_of,
    completed,
    products_of,
    read,
    reduced,
    shift_and_variance,
    values_in,
)

__all__ = ["sums_about"]

Block = tuple[jax.Array, ...]

# A reference at distance d costs the variance (d / deviation)^2 roundings: at most 5e-7 of it, or
# 1e-5 of epsilon, are accepted before the squares are summed again.
_FAR_IN_VARIANCES = 4.0
_FAR_IN_EPSILONS = 1e2
# And it costs the mean the roundings of d, which are accepted up to so many times those of the mean
# and the deviation.
_ASTRAY = 4.0
# Reads of a repeat: the squares alone; or the mean twice before, where the reference was astray.
# The second mean is right to its last digit, as a constant channel needs it.
_SQUARES, _MEAN_AND_SQUARES = 1, 3
# Squares of what lies between are floats with all their digits, with up to 1e6 examples.
_LEAST_SQUARES, _MOST_SQUARES = 1e-15, 1e18
# Where a masked example is sampled on a GPU, along its diagonal; and one of many pixels, of which
# the middle value is taken. An outlier of P pixels is at most P^(1/2) deviations away and costs P
# roundings of sums: some 1e-4 of the variance below this many.
_QUARTERS = (0, 1, 2, 3, 4)
_INNER_QUARTERS = (1, 2, 3)
_MANY = 256
# The repeat goes through the batch in at least so many parts: XLA sets memory aside, and counts
# bytes, for one part, and does so where the repeat never runs too.
_LEAST_PARTS = 10
# Squares of what lies further out might overflow float32 when summed.
_LARGEST_REFERENCE = 1e12


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
      The sums over all devices (see :func:`~steinnorm._sums.read`), and the reference they are
      about.
    """
    near = jnp.abs(reference) < _LARGEST_REFERENCE  # False for NaN
    reference = made_common(plan, select(near, reference).astype(plan.dtype))
    find = _mean if plan.two_passes else _sampled_reference

    def on_gpu(x: jax.Array, valid: jax.Array | None, guess: jax.Array) -> tuple[Sums, jax.Array]:
        by_example = dataclasses.replace(plan, in_two_steps=True)
        about = find(by_example, x, valid, guess)
        unit = _unit_known_before(plan, about)
        return reduced(by_example, x, valid, about, unit)[0] | _named(plan, unit), about

    def elsewhere(
        x: jax.Array, valid: jax.Array | None, guess: jax.Array
    ) -> tuple[Sums, jax.Array]:
        if plan.two_passes:
            about = find(plan, x, valid, guess)
            unit = _unit_known_before(plan, about)
            return reduced(plan, x, valid, about, unit)[0] | _named(plan, unit), about
        if plan.axis_name is None or types_tell(plan, x):
            sums, block = reduced(plan, x, valid, guess)
            return _repeat_if_far(plan, x, valid, guess, epsilon, sums=sums, block=block)
        sums, block = reduced(plan, x, valid, guess, also={"digest": digest_of(plan, guess)})
        apart = digests_differ(plan, sums.pop("digest"))
        return _repeat_if_far(plan, x, valid, guess, epsilon, sums=sums, block=block, apart=apart)

    return lax.platform_dependent(x, valid, reference, cuda=on_gpu, rocm=on_gpu, default=elsewhere)


def _repeat_if_far(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    reference: jax.Array,
    epsilon: jax.Array,
    *,
    sums: Sums,
    block: tuple[jax.Array, ...],
    apart: jax.Array | None = None,
) -> tuple[Sums, jax.Array]:
    """Sums the squares again, about the mean, if any channel's reference was too far from it.

    Where devices had references of their own (``apart``), the sums say nothing, and neither does
    any of these: the mean is found anew.
    """
    shift, variance = shift_and_variance(sums)
    mean = reference + shift
    tolerated = _FAR_IN_VARIANCES * variance + _FAR_IN_EPSILONS * epsilon
    far = (abs_squared(shift) > tolerated) & (sums["count"] > 0)
    # The variance may be off here, but by no more than some 1e-3 of the distance, squared.
    own_size = jnp.abs(mean) + jnp.sqrt(variance + epsilon)
    astray = far & (jnp.abs(shift) > _ASTRAY * own_size)
    if apart is not None:
        astray |= apart
    # No better than the first sums know it, which the range of floats leaves room for.
    unit = None
    if plan.has_unit:
        rounding = float(jnp.finfo(variance.dtype).eps) * abs_squared(shift)
        unit = power_of_two_near(jnp.sqrt(jnp.maximum(variance, rounding)))
        far |= _out_of_range(sums["squares"], variance, epsilon)
    reads = jnp.where(jnp.any(astray), _MEAN_AND_SQUARES, jnp.where(jnp.any(far), _SQUARES, 0))
    reads = _agreed(plan, reads)
    # About the mean the values sum to zero, and what is multiplied by the shift does not matter.
    again_too = ("sum", "tw", "nt") if plan.movable else ()
    names = [n for n in ("squares", "tt", "ww", "nw", *again_too) if n in sums]

    def again() -> tuple[Sums, jax.Array]:
        start = select(~astray, mean)
        found, about = _again(
            plan, x, valid, start, reads, sums=sums, block=block, names=names, unit=unit
        )
        # A constant channel's squares are those of the roundings of its mean, and nothing else.
        # Where they do not matter beside epsilon they are none.
        largest = jnp.maximum(select(~astray, jnp.abs(reference)), jnp.abs(about))
        roundings = jnp.square(8 * float(jnp.finfo(variance.dtype).eps) * largest)
        nothing = found["squares"] <= sums["count"] * jnp.minimum(roundings, 1e-3 * epsilon)
        found["squares"] = select(~nothing, found["squares"])
        if valid is None:
            found = completed(plan, x, {"sum": zeros_like(shift)} | found, unit)
        return {n: found[n] for n in names} | _named(plan, unit), about

    as_they_are = {n: sums[n] for n in names} | _named(plan, zeros_like(variance) + 1)
    repeated, about = lax.cond(reads > 0, again, lambda: (as_they_are, reference))
    rest = [n for n in ("sum", "tw", "nt") if n in sums and n not in names]
    zero = {n: select(reads == 0, sums[n]) for n in rest}
    return sums | zero | repeated, about


def _named(plan: Plan, unit: jax.Array | None) -> Sums:
    """Returns the unit as one of the sums, where they have one."""
    return {"unit": unit} if plan.has_unit and unit is not None else {}


def _unit_known_before(plan: Plan, about: jax.Array) -> jax.Array | None:
    """Returns a unit for values about a mean of them: any within 1e9 of their deviation will do.

    It is 1 or more, as a small mean may be one of large values.
    """
    return jnp.maximum(power_of_two_near(about), 1) if plan.has_unit else None


def _out_of_range(squares: jax.Array, variance: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Whether squares of the examples' sums of squares leave the range of floats, in units of 1.

    Below it that matters only where epsilon is no larger.
    """
    below = (squares < _LEAST_SQUARES) & (variance > 1e-3 * epsilon)
    return (squares > _MOST_SQUARES) | below


def _again(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    start: jax.Array,
    reads: jax.Array,
    *,
    sums: Sums,
    block: tuple[jax.Array, ...],
    names: list[str],
    unit: jax.Array | None,
) -> tuple[Sums, jax.Array]:
    """Reads the batch so many times about its mean; all reads but the last improve the mean.

    What they send takes the place of the squares, so that no read sends more than those need.

    Returns:
      The sums of the last read, by name as far as it makes them, and what they are about.
    """
    masked = valid is not None
    count = jnp.maximum(sums["count"], 1).astype(sums["sum"].dtype)
    parts = math.prod(x.shape[a] for a in _axes_to_cut(plan, x))
    made = names if masked or not plan.by_example else [n for n in names if n not in ("nw", "nt")]

    # One loop over the parts of all reads: a TPU would copy the batch for a loop within a loop.
    def once(i: jax.Array, state: tuple[Sums, jax.Array, Block]) -> tuple[Sums, jax.Array, Block]:
        found, about, so_far = state
        last = i >= (reads - 1) * parts
        so_far = _add_part(plan, x, valid, about, so_far, part=i % parts, last=last)

        def end_of_read() -> tuple[Sums, jax.Array, Block]:
            whole = (*block[: len(block) - len(so_far)], *so_far)
            products = products_of(plan, whole, masked=masked, unit=unit)
            products = plan.everywhere({n: products[n] for n in made})
            moved = about + products["squares"] / count
            return products, select(last, about, moved), tuple(map(zeros_like, so_far))

        if parts == 1:
            return end_of_read()
        return lax.cond((i + 1) % parts == 0, end_of_read, lambda: (found, about, so_far))

    # The place of the squares is in the dtype of the sum, as sums of values may be complex.
    zeros = {n: zeros_like(sums["sum" if n == "squares" else n]) for n in made}
    nothing = tuple(map(zeros_like, block[1:] if plan.by_example else block[1:2]))
    found, about, _ = lax.fori_loop(0, reads * parts, once, (zeros, start, nothing))
    return found | {"squares": real(found["squares"])}, about


def _add_part(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    mean: jax.Array,
    so_far: Block,
    *,
    part: jax.Array,
    last: jax.Array,
) -> Block:
    """Adds to the squares of :func:`~steinnorm._sums.block_of`, and by example to the sums, a part.

    The squares are values before the ``last`` read.
    """
    axes = _axes_to_cut(plan, x)
    sizes = [x.shape[a] for a in axes]
    place = (part,) if len(axes) == 1 else jnp.unravel_index(part, sizes) if axes else ()

    # A part keeps no axis of size 1: a TPU may lay it out last, where it is padded to 128.
    kept = [a for a in range(x.ndim) if a not in axes]
    part_plan = dataclasses.replace(plan, axes=tuple(kept.index(a) for a in plan.axes if a in kept))

    def cut(array: jax.Array) -> jax.Array:
        for axis, index in zip(axes, place, strict=True):
            if array.shape[axis] != 1:  # an axis of a mask that broadcasts
                array = lax.dynamic_slice_in_dim(array, index, 1, axis)
        return lax.squeeze(array, axes)

    found = block_of(part_plan, cut(x), None if valid is None else cut(valid), mean, last)
    return tuple(a + b for a, b in zip(so_far, found[-len(so_far) :], strict=True))


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
    """Returns the mean over all examples of a pixel of each, or of what is valid of a few."""
    axes = [a for a in plan.axes[1:] if a not in sharded_axes(x) and x.shape[a] != 0]

    def at(quarters: int, array: jax.Array) -> jax.Array:
        for axis in axes:
            size = array.shape[axis]  # or a symbol of jax.export
            index = size - 1 if quarters == 4 else size * quarters // 4
            array = lax.slice_in_dim(array, index, index + 1, axis=axis)
        return array

    pixels = math.prod(x.shape[a] for a in axes)
    few = (isinstance(pixels, int) and pixels < _MANY) or jnp.iscomplexobj(x)
    if valid is None and not few:
        a, b, c = (at(place, x) for place in _INNER_QUARTERS)
        middle = jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))
        return _mean(plan, middle, None, otherwise)
    if valid is None or not axes:
        return _mean(plan, at(2, x), None if valid is None else at(2, valid), otherwise)
    # Of padded examples the centre may be padding: one end or the other is none.
    several, their_valid = (
        jnp.concatenate([at(place, array) for place in _QUARTERS], axes[0]) for array in (x, valid)
    )
    return _mean(plan, several, their_valid, otherwise)


def _mean(plan: Plan, x: jax.Array, valid: jax.Array | None, otherwise: jax.Array) -> jax.Array:
    """Returns the mean over all devices, by an all-reduce of its own; ``otherwise`` of nothing."""
    plan = dataclasses.replace(plan, by_example=False, counts_examples=False)
    local, _ = read(plan, x, valid, jnp.zeros_like(otherwise))
    del local["squares"]
    sums = plan.everywhere(local)
    count = sums["count"] if valid is not None else values_in(plan, x, jnp.float32)
    mean = sums["sum"] / jnp.maximum(count, 1).astype(plan.dtype)
    return select(count > 0, mean, otherwise)


def _agreed(plan: Plan, reads: jax.Array) -> jax.Array:
    """Makes devices that do not share their sums read as often, since all must reduce again."""
    if plan.axis_name is None:
        return reads
    apart = varying_axes(reads)
    if plan.groups is not None:
        apart += plan.axis_names
    return lax.pmax(reads, apart) if apart else reads
