"""The changes that the Square Attack proposes (Andriushchenko et al. 2020, algorithms 2 and 3).

Sizes and positions of the squares are traced, so that nothing is compiled again as they shrink.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks.threat import Threat

_TILES = 5  # per axis, in the starting point for L2

Sides = Sequence[int | jax.Array]
"""Length of a window along each spatial axis, in pixels."""


def sides_of(p: float, spatial: tuple[int, ...], norm: str) -> tuple[int, ...]:
    """Returns the sides of a window that covers a share ``p`` of the input."""
    side = max(round((p * float(np.prod(spatial))) ** (1 / len(spatial))), 1)
    if norm == "l2":  # odd and at least 3, so that bump and dent have a centre
        side = max(side, 3)
        side += 1 - side % 2
    return tuple(min(side, size) for size in spatial)


def grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape as (B, *spatial, C); features (B, F) become (B, F, 1)."""
    return (*shape, 1) if len(shape) == 2 else shape


@jax.jit
def start(draws: jax.Array, x: jax.Array, position: jax.Array, threat: Threat) -> jax.Array:
    """Adds stripes across the last spatial axis (Linf) or a grid of bumps (L2) to the inputs.

    Args:
      draws: random numbers for the whole batch, (B, *start_draws).
      x: inputs of some of its examples, (n, ...).
      position: positions of these examples in the whole batch, (n,).
      threat: ball and box.
    """
    draws, shape = draws[position], grid(x.shape)
    axes, channels = len(shape) - 2, shape[-1]
    if threat.norm != "l2":
        signs = _signs(draws)
        stripes = signs.reshape(shape[0], *(1,) * (axes - 1), shape[-2], channels)
        delta = jnp.broadcast_to(stripes.astype(x.dtype), shape) * _radius(threat, x)
    else:
        tile, places, sides = _tiles(shape[1:-1])
        draws = draws[:, tile.reshape(-1)].reshape(*shape[:-1], channels + 1)
        axis_index = (draws[..., :1] * axes).astype(jnp.int32)
        bumps = _bumps([jnp.asarray(place) for place in places], sides, axis_index)
        delta = bumps.astype(x.dtype) * _signs(draws[..., 1:]).astype(x.dtype)
        delta = threat.epsilon * geometry.steepest_direction(delta, "l2")
    return threat.project(x + delta.reshape(x.shape), x)


def start_draws(shape: tuple[int, ...], norm: str) -> tuple[int, ...]:
    """Returns how many random numbers a start needs per example.

    Linf: a sign per stripe and channel. L2: an axis and a sign per channel, for each tile.
    """
    if norm != "l2":
        return (shape[-2] * shape[-1],)
    return (int(_tiles(shape[1:-1])[0].max()) + 1, shape[-1] + 1)


def proposal_draws(shape: tuple[int, ...]) -> int:
    """Returns how many random numbers a proposal needs: 2 corners, an axis, a sign per channel."""
    return 2 * (len(shape) - 2) + 1 + shape[-1]


def _tiles(spatial: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray], tuple[int, ...]]:
    """Returns a centred grid of tiles: each pixel's tile and place in that tile, and the sides."""
    tile, places = np.zeros(spatial, int), []
    sides = tuple(max(size // _TILES, 1) for size in spatial)
    for axis, (size, side) in enumerate(zip(spatial, sides, strict=True)):
        count = min(_TILES, size)
        offset = np.arange(size) - (size - count * side) // 2
        inside = (offset >= 0) & (offset < count * side)
        shape = np.ones(len(spatial) + 2, int)
        shape[axis + 1] = size
        # A pixel outside the grid gets a place that no window contains.
        places.append(np.where(inside, offset % side, -size - 1).reshape(shape))
        number = np.clip(offset // side, 0, count - 1).reshape(shape[1:-1])
        tile = tile * count + number
    return tile, places, sides


@jax.jit
def propose(
    draws: jax.Array, x: jax.Array, point: jax.Array, sides: Sides, threat: Threat
) -> jax.Array:
    """Returns the points with one square changed in each example.

    Args:
      draws: random numbers, (n, proposal_draws).
      x: inputs, (n, ...).
      point: current points of the search, (n, ...).
      sides: sides of the square.
      threat: ball and box.
    """
    shape = grid(x.shape)
    axes, channels = len(shape) - 2, shape[-1]
    signs = _signs(draws[:, 2 * axes + 1 :]).astype(x.dtype)
    signs = signs.reshape(shape[0], *(1,) * axes, channels)
    places = _window(draws[:, :axes], sides, shape)
    inside = _inside(places, sides)
    origin, current = x.reshape(shape), point.reshape(shape)
    if threat.norm != "l2":
        proposal = current + jnp.where(inside, 2 * _radius(threat, x) * signs, 0.0)
    else:
        axis_index = geometry.per_example((draws[:, 2 * axes] * axes).astype(jnp.int32), origin)
        fresh = _bumps(places, sides, axis_index).astype(x.dtype) * signs
        taken = _inside(_window(draws[:, axes : 2 * axes], sides, shape), sides)
        delta = _moved_mass(current - origin, fresh, (inside, taken), threat.epsilon)
        proposal = origin + threat.epsilon * geometry.steepest_direction(delta, "l2")
    return threat.project(proposal.reshape(x.shape), x)


def _radius(threat: Threat, x: jax.Array) -> float | jax.Array:
    """Returns the radius in a form that broadcasts to ``grid(x.shape)``."""
    if not threat.per_channel:
        return threat.epsilon
    radius = jnp.broadcast_to(geometry.as_broadcastable(threat.epsilon, x), (1, *x.shape[1:]))
    return radius.reshape(1, *grid(x.shape)[1:])


def _moved_mass(
    delta: jax.Array, fresh: jax.Array, windows: tuple[jax.Array, jax.Array], epsilon: float
) -> jax.Array:
    """Moves the second window's share of the norm, and the unspent rest, into the first window.

    Algorithm 3 of Andriushchenko et al. (2020).
    """
    inside, taken = windows
    fresh = _unit(fresh + _unit(jnp.where(inside, delta, 0.0)))
    spent = jnp.sum(delta**2, axis=tuple(range(1, delta.ndim)), keepdims=True)
    unspent = jnp.maximum(epsilon**2 - spent, 0) / delta.shape[-1]
    window_mass = _over_space(jnp.where(inside | taken, delta, 0.0))
    fresh = fresh * jnp.sqrt(unspent + window_mass)
    return jnp.where(inside, fresh, jnp.where(taken, 0.0, delta))


@functools.partial(jax.jit, static_argnames="shape")
def uniform(key: jax.Array, number: int, *, shape: tuple[int, ...]) -> jax.Array:
    """Draws from [0, 1) for the whole batch, so that no example's draws depend on who has left."""
    return jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32)


def _signs(draws: jax.Array) -> jax.Array:
    return jnp.where(draws < 0.5, -1.0, 1.0)


def _window(draws: jax.Array, sides: Sides, shape: tuple[int, ...]) -> list[jax.Array]:
    """Returns for each axis the places of pixels relative to a window's corner, to be broadcast."""
    places = []
    for axis, (size, side) in enumerate(zip(shape[1:-1], sides, strict=True)):
        last = jnp.asarray(size - side, jnp.int32)
        room = (last + 1).astype(draws.dtype)
        corner = jnp.minimum((draws[:, axis] * room).astype(jnp.int32), last)
        place = jnp.arange(size, dtype=jnp.int32)[None, :] - corner[:, None]
        others = [a for a in range(1, len(shape)) if a != axis + 1]
        places.append(jnp.expand_dims(place, others))
    return places


def _inside(places: list[jax.Array], sides: Sides) -> jax.Array:
    """Returns which pixels lie in the window, (B, *spatial, 1)."""
    each = [(place >= 0) & (place < side) for place, side in zip(places, sides, strict=True)]
    return functools.reduce(jnp.logical_and, jnp.broadcast_arrays(*each))


def _bumps(places: list[jax.Array], sides: Sides, axis_index: jax.Array) -> jax.Array:
    """Returns a bump in one half of the window and a dent in the other, split along one axis."""
    total = jnp.zeros((1,) * axis_index.ndim, jnp.float32)
    for axis, side in enumerate(sides):
        half = side // 2
        shifted = [place - half if a == axis else place for a, place in enumerate(places)]
        lower = [half if a == axis else s for a, s in enumerate(sides)]
        upper = [side - half if a == axis else s for a, s in enumerate(sides)]
        both = _unit(_pyramid(places, lower)) - _unit(_pyramid(shifted, upper))
        total = jnp.where(axis_index == axis, both, total)
    return _unit(total)


def _pyramid(places: list[jax.Array], sides: Sides) -> jax.Array:
    """Returns rings around the window's centre, the k-th being 1 / k^2 higher than the next."""
    longest = sum(max(place.shape) for place in places) + 2
    heights = np.cumsum([0.0] + [1 / k**2 for k in range(1, longest)]).astype(np.float32)
    each = [jnp.abs(place - side // 2) for place, side in zip(places, sides, strict=True)]
    ring = functools.reduce(jnp.maximum, jnp.broadcast_arrays(*each))
    rings = functools.reduce(jnp.maximum, [jnp.asarray(side // 2 + 1, jnp.int32) for side in sides])
    table = jnp.asarray(heights)
    return jnp.where(_inside(places, sides), table[rings] - table[jnp.minimum(ring, rings)], 0.0)


def _over_space(delta: jax.Array) -> jax.Array:
    """Returns each channel's sum of squares over the spatial axes."""
    return jnp.sum(delta**2, axis=tuple(range(1, delta.ndim - 1)), keepdims=True)


def _unit(delta: jax.Array) -> jax.Array:
    """Scales each channel to length one; zero stays zero."""
    length = jnp.sqrt(_over_space(delta))
    return delta / jnp.where(length > 0, length, 1)
