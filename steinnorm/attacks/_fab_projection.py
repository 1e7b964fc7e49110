"""The shortest step from a point to a hyperplane that stays in the box (Croce & Hein 2020a)."""

import jax
import jax.numpy as jnp

from steinnorm.attacks._geometry import Bounds

_Search = tuple[jax.Array, jax.Array, jax.Array]  # t, what moves, whether that changed
_NOTHING = 1e-12  # of the largest weight: such a coordinate cannot help


def step_to_plane(
    at: jax.Array, normal: jax.Array, gap: jax.Array, norm: str, bounds: Bounds
) -> jax.Array:
    """Solves min |d| subject to <w, d> = gap and low <= at + d <= high, exactly.

    The problem of Croce & Hein (2020a), equation 7.  Each coordinate goes towards the plane, by
    min(pace * t, room), where room is its distance from the box; its pace is 1 for Linf and |w|
    for L2.  What <w, d> gains is concave and piecewise linear in t, so that Newton's iteration
    from t = 0 never goes too far, and ends on the solution's own piece after as many turns as it
    meets sets of stopped coordinates; a handful, as a rule.

    Args:
      at: points (B, D) within the bounds.
      normal: w, (B, D).
      gap: wanted <w, d>, (B,).
      norm: ``linf`` or ``l2``.
      bounds: the box.

    Returns:
      d, (B, D): where the plane does not meet the box, the step to the corner that is nearest to
      it in <w, .>.
    """
    peak = jnp.max(jnp.abs(normal), axis=1)
    scale = jnp.where(peak > 0, peak, 1)
    weight = normal / scale[:, None]
    wanted = jnp.abs(gap) / scale
    size = jnp.abs(weight)
    way = jnp.sign(weight) * jnp.sign(gap)[:, None]
    way = jnp.where(size > _NOTHING, way, 0)
    room = jnp.maximum(jnp.where(way > 0, bounds[1] - at, at - bounds[0]), 0)
    room = jnp.where(way == 0, 0, room)
    pace = size if norm == "l2" else jnp.ones_like(size)
    time = _time(wanted, size, pace, room)
    return way * jnp.minimum(pace * time[:, None], room)


def _time(wanted: jax.Array, size: jax.Array, pace: jax.Array, room: jax.Array) -> jax.Array:
    """The smallest t with sum(size * min(pace * t, room)) = wanted, (B,); huge where none is."""

    def newton(state: _Search) -> _Search:
        _, moving, _ = state
        slope = jnp.sum(jnp.where(moving, size * pace, 0), axis=1)
        gained = jnp.sum(jnp.where(moving, 0, size * room), axis=1)
        free = slope > 0
        time = jnp.maximum(wanted - gained, 0) / jnp.where(free, slope, 1)
        time = jnp.where(free, time, jnp.finfo(time.dtype).max)
        still = moving & (pace * time[:, None] < room)
        return time, still, jnp.any(still != moving)

    start = (jnp.zeros_like(wanted), room > 0, jnp.array(True))
    time, _, _ = jax.lax.while_loop(lambda state: state[2], newton, start)
    return time
