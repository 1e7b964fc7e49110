"""Checks of what users pass in: every message says what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm._numerics import promote_types

Axes = int | Iterable[int]


def channel_array(name: str, value: ArrayLike) -> jax.Array:
    """Returns ``value`` as a (C,) array of at least float32, or says why it is not one.

    Args:
      name: the argument's name, for the message.
      value: a one-dimensional array of a floating dtype (jnp or NumPy).

    Raises:
      TypeError: ``value`` is not of a real floating dtype.
      ValueError: ``value`` is not one-dimensional.
    """
    array = floating_array(name, value)
    if array.ndim != 1:
        raise ValueError(
            f"{name} must have shape (C,), one value per channel; got shape {array.shape}. "
            "Use jax.vmap for a batch of such vectors, .reshape(-1) for several feature axes."
        )
    return array


def floating_array(name: str, value: ArrayLike) -> jax.Array:
    """Returns ``value`` as a jax array of at least float32; float64 stays.

    Raises:
      TypeError: ``value`` is not of a real floating dtype.
    """
    # A Python float has no dtype of its own, so asking for the type first keeps it weakly typed.
    dtype = jnp.result_type(value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name} must be of a real floating dtype (float16, bfloat16, float32, float64); "
            f"got {dtype}. Convert it first, e.g. {name}.astype(jnp.float32)."
        )
    return jnp.asarray(value, promote_types(dtype, jnp.float32))


def count_like(name: str, value: ArrayLike, like: jax.Array) -> jax.Array:
    """Returns a number of observations, scalar or (C,), in the dtype of ``like``.

    Raises:
      TypeError: ``value`` is complex or boolean.
      ValueError: ``value`` is neither scalar nor of the shape of ``like``, or is negative (seen
        only where the value is known, i.e. outside jit).
    """
    dtype = jnp.result_type(value)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number or array of them; got dtype {dtype}.")
    if jnp.shape(value) not in ((), like.shape):
        raise ValueError(
            f"{name} must be a scalar or have shape {like.shape}, one per channel; "
            f"got shape {jnp.shape(value)}."
        )
    if _is_known(value) and np.any(np.asarray(value) < 0):
        raise ValueError(f"{name} must not be negative; got {value}.")
    return jnp.asarray(value).astype(like.dtype)


def strength(value: ArrayLike) -> ArrayLike:
    """Returns a penalty's strength.

    Raises:
      ValueError: the strength is negative (seen only where its value is known) or not scalar.
    """
    if jnp.ndim(value) != 0:
        raise ValueError(f"strength must be a scalar; got shape {jnp.shape(value)}.")
    if _is_known(value) and not float(value) >= 0:  # type: ignore[arg-type]
        raise ValueError(f"strength must be at least 0; got {value}.")
    # A NumPy scalar would carry its own dtype into the result; a Python number does not.
    return float(value) if _is_known(value) else value  # type: ignore[arg-type]


def fraction(value: float) -> float:
    """Returns the share of the largest dominating constant.

    Raises:
      ValueError: the fraction is outside (0, 1] (seen only where its value is known).
    """
    if _is_known(value) and not 0 < float(value) <= 1:
        raise ValueError(
            f"fraction must be in (0, 1], a share of the largest constant for which dominance "
            f"is proved; got {value}."
        )
    return float(value) if _is_known(value) else value


def momentum(value: float) -> None:
    """Checks the share of the running value that an update keeps.

    Raises:
      ValueError: the momentum is outside [0, 1].
    """
    if _is_known(value) and not 0 <= float(value) <= 1:
        raise ValueError(
            f"momentum must be in [0, 1], the share of the running value that is kept "
            f"(Flax's convention; PyTorch's momentum is 1 minus this); got {value}."
        )


def epsilon(value: float) -> None:
    """Checks the number added to a variance.

    Raises:
      ValueError: epsilon is negative or not finite.
    """
    if _is_known(value) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"epsilon must be finite and at least 0; got {value}.")


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Checks that ``value`` is one of ``choices``.

    Raises:
      ValueError: it is not; the message lists the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def inexact_input(x: Any) -> jax.Array:
    """Returns a layer's input as an array; integers become float32, as in Flax.

    Raises:
      TypeError: ``x`` is not numeric.
    """
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(x)
    if jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_:
        return jnp.asarray(x, jnp.float32)
    raise TypeError(f"x must be a numeric array; got dtype {dtype}.")


def feature_axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """Returns the feature axes, non-negative, sorted, each once.

    Args:
      axis: one axis or several, negative ones counted from the end.
      ndim: rank of the input.

    Raises:
      TypeError: an axis is not an integer.
      ValueError: an axis is out of range.
    """
    axes = tuple(axis) if isinstance(axis, Iterable) else (axis,)
    for a in axes:
        if isinstance(a, bool) or not isinstance(a, int | np.integer):
            raise TypeError(f"axis must be an integer or several; got {a!r}.")
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of range for an input of rank {ndim}.")
    return tuple(sorted({int(a) % ndim for a in axes}))


def mask_array(mask: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Returns a boolean mask of the input's rank, each axis of size 1 or the input's size.

    Raises:
      ValueError: the mask cannot be broadcast to ``shape``.
    """
    array = jnp.asarray(mask, dtype=bool)
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"mask must be broadcastable to the input's shape {shape}; got shape {array.shape}. "
            "To mask whole examples of a rank-4 input give it shape (batch, 1, 1, 1)."
        )
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def _is_known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)
