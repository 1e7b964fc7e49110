"""Sums over a batch about a reference: one read and one all-reduce, on one device or many.

Values are taken relative to a *reference*, so that the sum of the values and that of their squared
distances from it come out of one read of the batch; a TPU makes them while it writes the batch.
One all-reduce brings the sums of all devices together. It does not grow with their number, and
shards of any size, empty ones included, give what a single device would give. What the reference
is, and what is done where it was far from the mean, is in ``_references.py``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from steinnorm._compat import psum
from steinnorm._numerics import abs_squared, real
from steinnorm._sharding import lying_alike, select, sharded_axes

__all__ = [
    "AxisName",
    "Plan",
    "Sums",
    "block_of",
    "completed",
    "products_of",
    "read",
    "reduced",
    "shift_and_variance",
    "values_in",
]

AxisName = str | tuple[str, ...]
Sums = dict[str, jax.Array]

# A variance of so many roundings of what was subtracted is none.
_ROUNDINGS = 16


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

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The names of the mapped axis, or of several; empty for none."""
        if self.axis_name is None:
            return ()
        return (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name

    def wide(self, per_channel: jax.Array) -> jax.Array:
        """Adds axes of size 1 to per-channel values, so that they broadcast over the batch."""
        return lax.expand_dims(per_channel, self.axes)

    def everywhere(self, sums: Sums) -> Sums:
        """Adds the sums of all devices of the mapped axis, in one all-reduce.

        Sums whose channels lie on several devices of an explicit axis have an all-reduce of their
        own, stacked, so that each device adds its channels.
        """
        if self.axis_name is None:
            return sums
        dtype = jnp.result_type(*sums.values())
        total = dict(sums)  # in this order
        for alike in lying_alike(sums).values():
            pieces = [sums[name].astype(dtype) for name in alike]
            if sharded_axes(pieces[0]):
                added = list(psum(jnp.stack(pieces), self.axis_name, self.groups))
            else:
                flat = jnp.concatenate([piece.reshape(-1) for piece in pieces])
                flat, start, added = psum(flat, self.axis_name, self.groups), 0, []
                for piece in pieces:
                    added.append(flat[start : start + piece.size].reshape(piece.shape))
                    start += piece.size
            for name, found in zip(alike, added, strict=True):
                a = sums[name]
                total[name] = found.astype(a.dtype) if jnp.iscomplexobj(a) else real(found)
        return total

    @property
    def has_unit(self) -> bool:
        """Whether the products of the examples' own sums are in a unit, that of their size."""
        return self.by_example and not self.movable

    @property
    def example_axis(self) -> int:
        """Where the example axis is once the other axes have been summed over."""
        return sum(a not in self.axes for a in range(self.axes[0]))

    @property
    def devices(self) -> Any:
        """Number of devices that :meth:`everywhere` adds over."""
        if self.axis_name is None:
            return 1
        sizes = {index: len(group) for group in self.groups or () for index in group}
        if len(set(sizes.values())) > 1:  # JAX's sum of a constant takes all for the first
            of_each = jnp.asarray([float(sizes[index]) for index in sorted(sizes)])
            return of_each[lax.axis_index(self.axis_name)]
        return lax.psum(1, self.axis_name, axis_index_groups=self.groups)


def reduced(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    about: jax.Array,
    unit: jax.Array | None = None,
    *,
    also: Sums | None = None,
) -> tuple[Sums, tuple[jax.Array, ...]]:
    """Sums over all devices, in one read and one all-reduce; see :func:`read`.

    ``also`` is added up as well, by name.
    """
    local, block = read(plan, x, valid, about, unit)
    local |= also or {}
    if plan.counts_examples and valid is not None and not plan.by_example:
        local |= _counts(plan, x, valid, local["squares"].dtype)
    return completed(plan, x, plan.everywhere(local), unit), block


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


def read(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    about: jax.Array,
    unit: jax.Array | None = None,
) -> tuple[Sums, tuple[jax.Array, ...]]:
    """Sums the local batch about ``about`` in one read.

    Returns:
      What to add over devices: ``sum`` and ``squares`` of the values less ``about``; with a mask
      their ``count``. By example also sums over the examples of the products of (n, t, w), the
      number, sum and squares of an example's values; in units of ``unit`` where there is one, as
      squares of w span twice the range of floats. And those sums before they were added up over
      examples, as :func:`block_of` gives them.
    """
    block = block_of(plan, x, valid, about)
    return products_of(plan, block, masked=valid is not None, unit=unit), block


def block_of(
    plan: Plan,
    x: jax.Array,
    valid: jax.Array | None,
    about: jax.Array,
    squared: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Returns count, sum and squares of part of a batch: per channel, or by example and channel.

    Where ``squared`` is given and False, the sum stands in the place of the squares too.
    """
    axes = plan.axes[1:] if plan.by_example else plan.axes
    x = x.astype(plan.dtype)
    # Two subtractions that the compiler may not see to be one: a difference with two uses would be
    # written out where reductions are library calls (XLA's CPU backend).
    deviation = x - plan.wide(about)
    other = x - plan.wide(lax.optimization_barrier(about))
    if squared is None:
        squares = abs_squared(other)
    else:  # by arithmetic: two arrays to select from would be written out there as well
        once = squared.astype(plan.dtype)
        squares = other * (once * other.conj() + (1 - once))
    dtype = jnp.finfo(plan.dtype).dtype
    if valid is None:
        count = jnp.asarray(math.prod(x.shape[a] for a in axes), dtype)
    else:
        deviation, squares = select(valid, deviation), select(valid, squares)
        count = _valid_values(x, valid, axes, dtype)
        if plan.by_example:  # one count an example, also where one mask serves all of them
            shape = list(count.shape)
            shape[plan.example_axis] = x.shape[plan.axes[0]]
            count = jnp.broadcast_to(count, shape)
    return count, *_summed(plan, deviation, squares)


def _valid_values(x: jax.Array, valid: jax.Array, axes: tuple[int, ...], dtype: Any) -> jax.Array:
    """Counts what the mask lets through along some axes; those that it broadcasts over too."""
    repeats = math.prod(x.shape[a] for a in axes if valid.shape[a] == 1)
    return repeats * jnp.sum(valid, axes, dtype=dtype)


def _counts(plan: Plan, x: jax.Array, valid: jax.Array, dtype: Any) -> Sums:
    """Counts values and the examples that have any, in one read of the mask."""
    by_example = _valid_values(x, valid, plan.axes[1:], dtype)
    axis = plan.example_axis
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
    return sums if plan.by_example else tuple(jnp.sum(a, plan.example_axis) for a in sums)


def products_of(
    plan: Plan, block: tuple[jax.Array, ...], *, masked: bool, unit: jax.Array | None = None
) -> Sums:
    """Adds up over the examples what :func:`block_of` returns."""
    n, t, w = block
    if not plan.by_example:
        return {"sum": t, "squares": w} | ({"count": n} if masked else {})
    products = {"sum": t, "squares": w}
    if unit is not None:
        wide = lax.expand_dims(unit, [plan.example_axis])
        t, w = t / wide, w / wide / wide
    products |= {
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
    return {name: jnp.sum(a, plan.example_axis) for name, a in products.items()}


def completed(plan: Plan, x: jax.Array, sums: Sums, unit: jax.Array | None = None) -> Sums:
    """Adds what needs no all-reduce without a mask, because all examples have as many values."""
    if "count" in sums:
        return sums
    dtype = sums["squares"].dtype
    sums = sums | {"count": values_in(plan, x, dtype)}
    if plan.by_example or plan.counts_examples:
        sums |= {"examples": jnp.asarray(x.shape[plan.axes[0]] * plan.devices, dtype)}
    if plan.by_example:
        n = jnp.asarray(math.prod(x.shape[a] for a in plan.axes[1:]), dtype)
        sums |= {"nn": n * n * sums["examples"]}
        t, w = sums["sum"], sums["squares"]
        if unit is not None:
            t, w = t / unit, w / unit / unit
        sums |= {"nt": n * t, "nw": n * w}
    return sums


def values_in(plan: Plan, x: jax.Array, dtype: Any) -> jax.Array:
    """Returns how many values are behind each channel without a mask, over all devices."""
    return jnp.asarray(math.prod(x.shape[a] for a in plan.axes) * plan.devices, dtype)
