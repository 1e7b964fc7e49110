"""Distances, projections and directions in the two balls; pure functions of arrays.

Shapes: ``x`` and everything like it is (B, ...); an "example" is one index of the first axis.
"""

import jax
import jax.numpy as jnp

Bounds = tuple[float, float]


def per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    """Gives (B,) values the rank of ``like``, so that they broadcast over each example."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def euclidean(delta: jax.Array) -> jax.Array:
    """Euclidean length of each example, (B,), without underflow of the squares."""
    flat = delta.reshape(delta.shape[0], -1)
    peak = jnp.max(jnp.abs(flat), axis=1)
    safe = jnp.where(peak > 0, peak, 1)
    return peak * jnp.sqrt(jnp.sum((flat / safe[:, None]) ** 2, axis=1))


def distance(x_adv: jax.Array, x: jax.Array, norm: str) -> jax.Array:
    """Distance of each example from its original in ``norm``, (B,)."""
    delta = x_adv - x
    if norm == "l2":
        return euclidean(delta)
    return jnp.max(jnp.abs(delta.reshape(delta.shape[0], -1)), axis=1)


def project(x_adv: jax.Array, x: jax.Array, norm: str, epsilon: float, bounds: Bounds) -> jax.Array:
    """Moves ``x_adv`` into the ball around ``x`` and then into the box.

    ``x`` lies in the box, so clipping to the box brings every value closer to ``x``: the result is
    in both.
    """
    if norm == "l2":
        delta = x_adv - x
        length = euclidean(delta)
        outside = length > epsilon
        factor = jnp.where(outside, epsilon / jnp.where(outside, length, 1), 1)
        delta = delta * per_example(factor, delta)
        return jnp.clip(x + delta, bounds[0], bounds[1])
    # x + epsilon may be rounded away from x; the next number towards x is inside.
    high, low = x + epsilon, x - epsilon
    high = jnp.where(high - x > epsilon, jnp.nextafter(high, x), high)
    low = jnp.where(x - low > epsilon, jnp.nextafter(low, x), low)
    inside = jnp.clip(x_adv, low, high)
    return jnp.clip(inside, bounds[0], bounds[1])


def ascent(gradient: jax.Array, norm: str) -> jax.Array:
    """The direction of unit size in ``norm`` in which the linearised loss grows fastest.

    Euclidean directions are normalised per example.  There is no small constant in the divisor:
    one that is larger than the gradient would shorten the step and make a confident model look
    robust.  An all-zero gradient gives a zero step.
    """
    if norm != "l2":
        return jnp.sign(gradient)
    # Two divisions: the first brings a tiny gradient into the range where its square is not zero.
    peak = jnp.max(jnp.abs(gradient.reshape(gradient.shape[0], -1)), axis=1)
    scaled = gradient / per_example(jnp.where(peak > 0, peak, 1), gradient)
    length = euclidean(scaled)
    return scaled / per_example(jnp.where(length > 0, length, 1), gradient)


def with_mean_size_one(gradient: jax.Array) -> jax.Array:
    """The gradient of each example over the mean of its absolute values; zero stays zero."""
    size = jnp.mean(jnp.abs(gradient.reshape(gradient.shape[0], -1)), axis=1)
    return gradient / per_example(jnp.where(size > 0, size, 1), gradient)


def random_in_ball(key: jax.Array, x: jax.Array, norm: str, epsilon: float) -> jax.Array:
    """Uniform draws from the ball of radius ``epsilon`` around zero, one per example of ``x``."""
    if norm != "l2":
        return jax.random.uniform(key, x.shape, x.dtype, -epsilon, epsilon)
    direction_key, radius_key = jax.random.split(key)
    direction = ascent(jax.random.normal(direction_key, x.shape, x.dtype), "l2")
    dimensions = x[0].size
    radius = jax.random.uniform(radius_key, x.shape[:1], x.dtype) ** (1 / dimensions)
    return direction * per_example(epsilon * radius, x)


def random_on_sphere(key: jax.Array, x: jax.Array, norm: str, epsilon: float) -> jax.Array:
    """Draws on the surface of that ball: uniform or normal ones, scaled to the radius."""
    if norm == "l2":
        draw = jax.random.normal(key, x.shape, x.dtype)
        return epsilon * ascent(draw, "l2")
    draw = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
    peak = jnp.max(jnp.abs(draw.reshape(draw.shape[0], -1)), axis=1)
    return epsilon * draw / per_example(jnp.where(peak > 0, peak, 1), draw)
