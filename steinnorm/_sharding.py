"""Where arrays lie, as far as their types say: meshes with explicit axes (``jax.set_mesh``).

Elsewhere XLA decides, and these functions do nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from steinnorm._compat import reshard

A = TypeVar("A", bound=jax.Array | None)
P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "flattened",
    "is_explicit",
    "lying_alike",
    "placed_as_features",
    "placed_like",
    "placed_on",
    "select",
    "sharded_axes",
    "under_a_set_mesh",
]


def is_explicit(x: jax.Array) -> bool:
    """Returns whether the type of ``x`` says where it lies."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def sharded_axes(x: jax.Array) -> frozenset[int]:
    """Returns the axes of which the type says that they lie on several devices."""
    spec = jax.typeof(x).sharding.spec
    return frozenset(axis for axis, names in enumerate(spec) if names is not None)


def lying_alike(arrays: Mapping[str, jax.Array]) -> dict[object, list[str]]:
    """Returns the names of arrays by where these lie: those on one device together.

    Those on several are together if their shapes are the same as well.
    """
    found: dict[object, list[str]] = {}
    for name, array in arrays.items():
        spread = sharded_axes(array)
        place = (array.shape, tuple(jax.typeof(array).sharding.spec)) if spread else None
        found.setdefault(place, []).append(name)
    return found


def flattened(a: jax.Array) -> jax.Array:
    """Returns per-channel values as (C,), with several feature axes on every device if need be.

    With explicit axes JAX refuses to flatten an array that any but its first axis divides.
    """
    if a.ndim < 2:
        return a
    if sharded_axes(a) - {0}:
        a = reshard(a, NamedSharding(jax.typeof(a).sharding.mesh, PartitionSpec()))
    return a.reshape(-1)


def placed_as_features(value: A, x: jax.Array, features: Sequence[int]) -> A:
    """Lays per-channel values out over devices as the channels of ``x`` are.

    Args:
      value: in the shape of the features; or a scalar, or None, which stay as they are.
      x: the batch.
      features: its feature axes.
    """
    if value is None or jnp.ndim(value) == 0 or not is_explicit(x):
        return value
    sharding = jax.typeof(x).sharding
    spec = PartitionSpec(*(sharding.spec[f] for f in features))
    return reshard(jnp.asarray(value), NamedSharding(sharding.mesh, spec))


def placed_on(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Lays a mask out over devices as ``x`` is, but for the axes along which it broadcasts."""
    if not is_explicit(x):
        return mask
    sharding = jax.typeof(x).sharding
    sizes = zip(sharding.spec, mask.shape, x.shape, strict=True)
    spec = PartitionSpec(*(names if m == size else None for names, m, size in sizes))
    return reshard(mask, NamedSharding(sharding.mesh, spec))


def placed_like(value: jax.Array, other: jax.Array) -> jax.Array:
    """Lays ``value`` out over its devices as ``other`` is, an array of the same rank."""
    if not is_explicit(value):
        return value
    spec = jax.typeof(other).sharding.spec  # of nothing but None where it is on one device
    return reshard(value, NamedSharding(jax.typeof(value).sharding.mesh, spec))


def select(condition: jax.Array, yes: jax.Array, no: ArrayLike = 0) -> jax.Array:
    """Does what ``jnp.where`` does, in the shape and place of ``yes``.

    With explicit axes ``jnp.where`` refuses a condition that lies elsewhere than the values.
    """
    if not is_explicit(yes):
        return jnp.where(condition, yes, no)

    def like_yes(a: jax.Array) -> jax.Array:
        axes = range(yes.ndim - a.ndim, yes.ndim)
        return lax.broadcast_in_dim(a, yes.shape, axes, out_sharding=jax.typeof(yes).sharding)

    return lax.select(like_yes(condition), yes, like_yes(jnp.asarray(no, yes.dtype)))


def under_a_set_mesh(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function set the mesh that is in use, if only to none.

    JAX differentiates a jitted function under a mesh that is set. It finds again what was traced
    for the value, and need not trace it twice, only if that was done under a set mesh too. A JAX
    without ``use_abstract_mesh`` traces twice.
    """
    if not hasattr(jax.sharding, "use_abstract_mesh"):
        return function

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
            return function(*args, **kwargs)

    return call
