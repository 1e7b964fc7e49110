"""Keeps arrays divided among the devices of an explicit mesh, where JAX would forget it."""

from typing import Any

import jax
import jax.numpy as jnp


def explicit_sharding(x: jax.Array) -> Any:
    """Returns the sharding of an array that is divided by an explicit mesh; None for all others."""
    sharding = jax.typeof(x).sharding
    return sharding if any(axis is not None for axis in sharding.spec) else None


def placed_as(array: jax.Array, like: jax.Array) -> jax.Array:
    """Returns an array with the explicit sharding of another one of the same shape, if it has one.

    From JAX 0.12 on an array that mixes with divided ones is divided in the result, but its
    gradient is not.
    """
    sharding = explicit_sharding(like)
    return array if sharding is None else jnp.asarray(jax.sharding.reshard(array, sharding))


def full_like(x: jax.Array, fill: float, dtype: Any = None) -> jax.Array:
    """Returns an array of the shape and sharding of ``x``, filled with one number.

    From JAX 0.12 on ``jnp.full_like`` forgets an explicit sharding where no mesh is set.

    Args:
      x: the array.
      fill: the number.
      dtype: of the result; that of ``x`` by default.
    """
    return placed_as(jnp.full_like(x, fill, dtype=dtype), x)
