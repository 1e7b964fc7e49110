"""The shortest step within the box from a point to a hyperplane (Croce & Hein 2020a)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from steinnorm.attacks import _geometry as geometry

_Search = tuple[
    jax.Array, jax.Array, jax.Array
]  # t, which coordinates still move, whether that set changed
_NEGLIGIBLE = 1e-12  # weights below this share of the largest count as zero


def step_to_plane(point: jax.Array, normal: jax.Array, gap: jax.Array, threat: Any) -> jax.Array:
    """Solves min |d| subject to <w, d> = gap and low <= point + d <= high, exactly.

    This is the problem of Croce & Hein (2020a), equation 7. Each coordinate moves towards the plane
    by min(speed * t, room), where room is its distance from the box. Its speed is 1 for Linf (its
    radius if there is one per channel) and |w| for L2. <w, d> is concave and piecewise linear in t,
    so that Newton's iteration from t = 0 never overshoots, and reaches the solution after as many
    iterations as there are sets of stopped coordinates on the way, usually a handful.

    Args:
      point: points (B, ...) within the bounds.
      normal: w, (B, ...).
      gap: required <w, d>, (B,).
      threat: the norm and the box.

    Returns:
      d, (B, ...). If the plane does not meet the box, the step to the corner with the smallest
      distance to the plane, measured by <w, .>.
    """
    peak = geometry.largest(normal)
    scale = jnp.where(peak > 0, peak, 1)
    weight = normal / geometry.per_example(scale, normal)
    needed = jnp.abs(gap) / scale
    size = jnp.abs(weight)
    direction = jnp.sign(weight) * geometry.per_example(jnp.sign(gap), weight)
    direction = jnp.where(size > _NEGLIGIBLE, direction, 0)
    room = _room(point, direction, threat.bounds)
    if threat.norm == "l2":
        speed = size
    elif threat.per_channel:
        speed = jnp.broadcast_to(geometry.as_broadcastable(threat.epsilon, point), point.shape)
        room = jnp.where(speed > 0, room, 0)
    else:
        speed = jnp.ones_like(size)
    time = _time(needed, size, speed, room)
    return direction * jnp.minimum(speed * geometry.per_example(time, speed), room)


def _room(point: jax.Array, direction: jax.Array, bounds: Any) -> jax.Array:
    """Returns how far each coordinate may move, (B, ...); 0 if its direction is 0."""
    if bounds is None:
        room = jnp.full_like(point, jnp.finfo(point.dtype).max)
    else:
        low, high = (geometry.as_broadcastable(bound, point) for bound in bounds)
        room = jnp.maximum(jnp.where(direction > 0, high - point, point - low), 0)
    return jnp.where(direction == 0, 0, room)


def _time(needed: jax.Array, size: jax.Array, speed: jax.Array, room: jax.Array) -> jax.Array:
    """Returns the smallest t with sum(size * min(speed * t, room)) = needed, (B,).

    If there is none, t is the largest finite number.
    """
    axes = geometry.inner_axes(size)

    def newton(state: _Search) -> _Search:
        _, moving, _ = state
        slope = jnp.sum(jnp.where(moving, size * speed, 0), axis=axes)
        gained = jnp.sum(jnp.where(moving, 0, size * room), axis=axes)
        can_move = slope > 0
        time = jnp.maximum(needed - gained, 0) / jnp.where(can_move, slope, 1)
        time = jnp.where(can_move, time, jnp.finfo(time.dtype).max)
        still_moving = moving & (speed * geometry.per_example(time, speed) < room)
        return time, still_moving, jnp.any(still_moving != moving)

    start = (jnp.zeros_like(needed), room > 0, jnp.array(True))
    time, _, _ = jax.lax.while_loop(lambda state: state[2], newton, start)
    return time
