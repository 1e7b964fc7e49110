"""Distances, projections and directions for Linf and L2 balls, as pure functions of arrays.

Shapes: ``x`` and whatever has its shape is (B, ...); an "example" is one index of the first axis.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = Any  # a float, or an array that broadcasts to an example
Bounds = tuple[Number, Number]


def as_broadcastable(value: Number, like: jax.Array) -> Number:
    """Returns ``value`` in a form that broadcasts to ``like`` (B, ...), in its dtype.

    Python numbers are returned unchanged, because JAX gives them the dtype of ``like``; NumPy's are
    not, although np.float64 is a Python float as well. Arrays get the rank of ``like``, because JAX
    can be configured to refuse rank promotion.
    """
    if isinstance(value, float | int) and not isinstance(value, np.generic):
        return value
    array = jnp.asarray(value, like.dtype)
    return array.reshape((1,) * (like.ndim - array.ndim) + array.shape) if array.ndim else array


def per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    """Returns (B,) values reshaped to (B, 1, ...), so that they broadcast over each example."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def inner_axes(like: jax.Array) -> tuple[int, ...]:
    """Returns all axes except the first."""
    return tuple(range(1, like.ndim))


def largest(values: jax.Array) -> jax.Array:
    """Returns the largest magnitude in each example, (B,)."""
    return jnp.max(jnp.abs(values), axis=inner_axes(values))


def all_in_example(condition: jax.Array) -> jax.Array:
    """Returns whether a condition (B, ...) holds for all values of an example, (B,) bool."""
    return jnp.all(condition, axis=inner_axes(condition))


def euclidean(delta: jax.Array) -> jax.Array:
    """Returns the Euclidean length of each example, (B,), without underflow of the squares."""
    peak = largest(delta)
    safe = jnp.where(peak > 0, peak, 1)
    squares = jnp.square(delta / per_example(safe, delta))
    return peak * jnp.sqrt(jnp.sum(squares, axis=inner_axes(delta)))


def distance(x_adv: jax.Array, x: jax.Array, norm: str, unit: Number | None = None) -> jax.Array:
    """Returns the distance of each example from its original in ``norm``, (B,).

    Args:
      x_adv: the examples, (B, ...).
      x: the originals, (B, ...).
      norm: ``linf`` or ``l2``.
      unit: radii that broadcast to an example; the Linf distance is then in multiples of them, and
        infinite if a value with a radius of 0 has changed.
    """
    delta = x_adv - x
    if norm == "l2":
        return euclidean(delta)
    if unit is not None:
        unit = as_broadcastable(unit, delta)
        change = jnp.abs(delta)
        delta = jnp.where(unit > 0, change / jnp.where(unit > 0, unit, 1), 0)
        delta = jnp.where((unit == 0) & (change > 0), jnp.inf, delta)
    return largest(delta)


def clip_to_box(x: jax.Array, bounds: Bounds | None) -> jax.Array:
    """Clips to the box; returns ``x`` unchanged without bounds."""
    if bounds is None:
        return x
    low, high = (as_broadcastable(bound, x) for bound in bounds)
    return jnp.clip(x, low, high)


def project(
    x_adv: jax.Array, x: jax.Array, norm: str, epsilon: Number, bounds: Bounds | None
) -> jax.Array:
    """Moves ``x_adv`` into the ball around ``x`` and then into the box.

    ``x`` lies in the box, so that clipping moves no value away from ``x``: the result lies in both.
    """
    if norm == "l2":
        delta = x_adv - x
        length = euclidean(delta)
        outside = length > epsilon
        factor = jnp.where(outside, epsilon / jnp.where(outside, length, 1), 1)
        delta = delta * per_example(factor.astype(delta.dtype), delta)
        return clip_to_box(x + delta, bounds)
    # Rounding may put x + epsilon outside the ball; the next number towards x is inside.
    epsilon = as_broadcastable(epsilon, x)
    high, low = x + epsilon, x - epsilon
    high = jnp.where(high - x > epsilon, jnp.nextafter(high, x), high)
    low = jnp.where(x - low > epsilon, jnp.nextafter(low, x), low)
    return clip_to_box(jnp.clip(x_adv, low, high), bounds)


def steepest_direction(gradient: jax.Array, norm: str) -> jax.Array:
    """Returns the direction of unit size in ``norm`` in which the linearised loss grows fastest.

    Euclidean directions are normalised per example, without a small constant in the divisor: a
    constant larger than the gradient would shorten the step and make a confident model look robust.
    An all-zero gradient gives a zero direction.
    """
    if norm != "l2":
        return jnp.sign(gradient)
    # Two divisions: the first brings a tiny gradient into the range where its square is not zero.
    peak = largest(gradient)
    scaled = gradient / per_example(jnp.where(peak > 0, peak, 1), gradient)
    length = euclidean(scaled)
    return scaled / per_example(jnp.where(length > 0, length, 1), gradient)


def scaled_to_mean_size_one(gradient: jax.Array) -> jax.Array:
    """Divides each example's gradient by the mean of its absolute values; zero stays zero."""
    peak = largest(gradient)
    scaled = gradient / per_example(jnp.where(peak > 0, peak, 1), gradient)
    size = jnp.mean(jnp.abs(scaled), axis=inner_axes(gradient))
    return scaled / per_example(jnp.where(size > 0, size, 1), gradient)


def random_in_ball(key: jax.Array, x: jax.Array, norm: str, epsilon: Number) -> jax.Array:
    """Returns a uniform draw per example from the ball of radius ``epsilon`` around zero."""
    if norm != "l2":
        if np.ndim(epsilon) == 0:
            return jax.random.uniform(key, x.shape, x.dtype, -epsilon, epsilon)
        draw = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
        return draw * as_broadcastable(epsilon, x)
    direction_key, radius_key = jax.random.split(key)
    direction = steepest_direction(jax.random.normal(direction_key, x.shape, x.dtype), "l2")
    dimensions = math.prod(x.shape[1:])
    radius = jax.random.uniform(radius_key, x.shape[:1], x.dtype) ** (1 / dimensions)
    return direction * per_example(as_broadcastable(epsilon, x) * radius, x)


def random_on_sphere(key: jax.Array, x: jax.Array, norm: str, epsilon: Number) -> jax.Array:
    """Returns a draw per example from the surface of the ball of radius ``epsilon`` around zero.

    L2: uniform on the sphere. Linf: uniform in the box, then scaled so that the largest value has
    the size of the radius.
    """
    if norm == "l2":
        draw = jax.random.normal(key, x.shape, x.dtype)
        return epsilon * steepest_direction(draw, "l2")
    draw = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
    peak = largest(draw)
    return as_broadcastable(epsilon, x) * draw / per_example(jnp.where(peak > 0, peak, 1), draw)
