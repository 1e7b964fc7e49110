"""How far values are outside box and ball, beyond what the rounding of float32 explains.

Rounding depends on the size of the numbers, so that each value has a tolerance of its own kind: one
of a channel between 0 and 1e-3 may leave its box by 1e-9, beside another between -1000 and 1000.
Values are of one kind where neither the radius nor the bounds tell them apart.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._geometry import Bounds, Number

_SPACINGS = 4
# Of a box whose largest bound is at most 1: rounding when a mean/std normalisation is undone.
_SHARE_OF_BOUND = 1e-6


def outside_box(x: jax.Array, bounds: Bounds | None) -> jax.Array:
    """Returns by how much a value is outside the box at most, a scalar; 0 without bounds.

    Up to four spacings of float32 at the bounds count as 0, and 1e-6 of bounds below 1.
    """
    if bounds is None:
        return jnp.zeros((), x.dtype)
    low, high = (jnp.asarray(geometry.as_broadcastable(bound, x), x.dtype) for bound in bounds)
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    explained = jnp.maximum(_spacings(size), _SHARE_OF_BOUND * jnp.minimum(size, 1))
    outside = jnp.maximum(low - x, x - high)
    return jnp.max(jnp.where(outside > explained, outside, 0), initial=0)


def outside_ball(
    x_adv: jax.Array, x: jax.Array, norm: str, epsilon: Number, bounds: Bounds | None
) -> jax.Array:
    """Returns by how much a value, in L2 an example, is outside the ball at most, a scalar.

    Four spacings of float32 count as 0, at the largest value of its kind plus the radius; in L2
    they add up as independent errors do, of which each is a fourth of that.

    Args:
      x_adv: the attacked inputs, (B, ...).
      x: the inputs, (B, ...).
      norm: ``linf`` or ``l2``.
      epsilon: the radius, which broadcasts to an example.
      bounds: of the box, which tell values of another kind.
    """
    numbers = (epsilon, *(bounds or ()))
    largest = jnp.max(jnp.abs(x), axis=_axes_of_a_kind(numbers, x.ndim), keepdims=True, initial=0)
    radius = jnp.asarray(geometry.as_broadcastable(epsilon, x), x.dtype)
    explained = _spacings(largest + radius)
    outside = jnp.abs(x_adv - x) - radius
    if norm == "l2":
        outside = geometry.euclidean(x_adv - x) - radius
        values = math.prod(x.shape[1:]) / math.prod(explained.shape)  # of each kind
        together = jnp.sqrt(values * jnp.sum(jnp.square(explained))) / _SPACINGS
        explained = jnp.maximum(jnp.max(explained), together)
    return jnp.max(jnp.where(outside > explained, outside, 0), initial=0)


def _axes_of_a_kind(numbers: tuple[Any, ...], rank: int) -> tuple[int, ...]:
    """Returns the axes of a batch along which no number differs, the examples' axis among them."""
    shape = np.broadcast_shapes((1,) * rank, *map(np.shape, numbers))
    return tuple(axis for axis, length in enumerate(shape) if length == 1)


def _spacings(size: jax.Array) -> jax.Array:
    """Returns four spacings of float32 numbers at a size, which is not negative."""
    single = size.astype(jnp.float32)
    return (_SPACINGS * (jnp.nextafter(single, jnp.inf) - single)).astype(size.dtype)
