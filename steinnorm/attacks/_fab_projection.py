"""The shortest step from a point to a hyperplane that stays in the box (Croce & Hein 2020a)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from steinnorm.attacks import _geometry as geometry

_Search = tuple[jax.Array, jax.Array, jax.Array]  # t, what moves, whether that changed
_NOTHING = 1e-12  # of the largest weight: such a coordinate cannot help


def step_to_plane(at: jax.Array, normal: jax.Array, gap: jax.Array, threat: Any) -> jax.Array:
    """Solves min |d| subject to <w, d> = gap and low <= at + d <= high, exactly.

    The problem of Croce & Hein (2020a), equation 7. Each coordinate goes towards the plane, by
    min(pace * t, room), where room is its distance from the box; its pace is 1 for Linf (its radius
    where there is one per channel) and |w| for L2. What <w, d> gains is concave and piecewise
    linear in t, so that Newton's iteration from t = 0 never goes too far, and ends on the
    solution's own piece after as many turns as it meets sets of stopped coordinates; a handful, as
    a rule.

    Args:
      at: points (B, ...) within the bounds.
      normal: w, (B, ...).
      gap: wanted <w, d>, (B,).
      threat: whose norm and box.

    Returns:
      d, (B, ...): where the plane does not meet the box, the step to the corner that is nearest to
      it in <w, .>.
    """
    peak = geometry.largest(normal)
    scale = jnp.where(peak > 0, peak, 1)
    weight = normal / geometry.per_example(scale, normal)
    wanted = jnp.abs(gap) / scale
    size = jnp.abs(weight)
    way = jnp.sign(weight) * geometry.per_example(jnp.sign(gap), weight)
    way = jnp.where(size > _NOTHING, way, 0)
    room = _room(at, way, threat.bounds)
    if threat.norm == "l2":
        pace = size
    elif threat.per_channel:
        pace = jnp.broadcast_to(geometry.as_number(threat.epsilon, at), at.shape)
        room = jnp.where(pace > 0, room, 0)
    else:
        pace = jnp.ones_like(size)
    time = _time(wanted, size, pace, room)
    return way * jnp.minimum(pace * geometry.per_example(time, pace), room)


def _room(at: jax.Array, way: jax.Array, bounds: Any) -> jax.Array:
    """Returns how far each coordinate may go its way, (B, ...); 0 where it goes none."""
    if bounds is None:
        room = jnp.full_like(at, jnp.finfo(at.dtype).max)
    else:
        low, high = (geometry.as_number(bound, at) for bound in bounds)
        room = jnp.maximum(jnp.where(way > 0, high - at, at - low), 0)
    return jnp.where(way == 0, 0, room)


def _time(wanted: jax.Array, size: jax.Array, pace: jax.Array, room: jax.Array) -> jax.Array:
    """Returns the smallest t with sum(size * min(pace * t, room)) = wanted, (B,); or huge."""
    axes = geometry.inner_axes(size)

    def newton(state: _Search) -> _Search:
        _, moving, _ = state
        slope = jnp.sum(jnp.where(moving, size * pace, 0), axis=axes)
        gained = jnp.sum(jnp.where(moving, 0, size * room), axis=axes)
        free = slope > 0
        time = jnp.maximum(wanted - gained, 0) / jnp.where(free, slope, 1)
        time = jnp.where(free, time, jnp.finfo(time.dtype).max)
        still = moving & (pace * geometry.per_example(time, pace) < room)
        return time, still, jnp.any(still != moving)

    start = (jnp.zeros_like(wanted), room > 0, jnp.array(True))
    time, _, _ = jax.lax.while_loop(lambda state: state[2], newton, start)
    return time
