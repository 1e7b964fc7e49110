"""What older versions of JAX do otherwise; the oldest that is tested is in ``pyproject.toml``."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

__all__ = ["cache_context", "psum", "reshard", "varying_axes", "zeros_like"]


def varying_axes(x: jax.Array) -> tuple[str, ...]:
    """Returns the mapped axes along which the type of ``x`` says that devices differ."""
    kind: Any = jax.typeof(x)
    # Before JAX 0.10 the attribute was named vma.
    return tuple(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma)


def zeros_like(x: jax.Array) -> jax.Array:
    """Returns zeros of the type of ``x``: before JAX 0.8 ``jnp.zeros_like`` forgot mapped axes."""
    zeros = jnp.zeros_like(x)
    missing = tuple(set(varying_axes(x)) - set(varying_axes(zeros)))
    lax: Any = jax.lax  # which has no pvary any more
    return lax.pvary(zeros, missing) if missing else zeros


def psum(x: jax.Array, axis_name: Any, groups: Any) -> jax.Array:
    """Does what ``jax.lax.psum`` does, and says what JAX does not: where it has no groups.

    Raises:
      NotImplementedError: there are groups, in shard_map, which checks how devices differ.
    """
    try:
        return jax.lax.psum(x, axis_name, axis_index_groups=groups)
    except NotImplementedError as error:
        if groups is None:
            raise
        raise NotImplementedError(
            f"axis_index_groups={groups} of axis {axis_name!r}: JAX has groups in jax.pmap and in "
            "jax.shard_map(..., check_vma=False) only."
        ) from error


def reshard(x: jax.Array, sharding: NamedSharding) -> Any:
    """Does what ``jax.reshard`` does, which lay in two other modules before JAX 0.10."""
    for module in ("jax", "jax.sharding"):
        move = getattr(importlib.import_module(module), "reshard", None)
        if move is not None:
            return move(x, sharding)
    return importlib.import_module("jax.experimental.shard").reshard(x, sharding)


def cache_context() -> Any:
    """Returns a context whose value JAX's caches of traces and of programs count in.

    What is traced with one value is not used with another. Called with a hashable value it is a
    context manager; ``value`` is the value in this thread, None outside of all. None for versions
    of JAX without ``jax.make_user_context``, as 0.6.2.
    """
    make: Any = getattr(jax, "make_user_context", None)
    return None if make is None else make(None)
