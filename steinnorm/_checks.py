"""Checks of what users pass in: every message says what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm._numerics import promote_types

Axes = int | Iterable[int]
Where = str | Iterable[str] | Callable[[str], bool] | None
"""Which layers of a model: all, those at or under a path, or those that a function says."""


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


def channel_or_scalar(name: str, value: ArrayLike, like: jax.Array) -> jax.Array:
    """Returns a number, or one a channel, in the dtype of ``like``.

    Raises:
      TypeError: ``value`` is not of a real floating dtype.
      ValueError: it is neither a scalar nor of the shape of ``like``.
    """
    array = floating_array(name, value)
    if array.shape not in ((), like.shape):
        raise ValueError(
            f"{name} must be a scalar or have shape {like.shape}; got shape {array.shape}."
        )
    return array.astype(like.dtype)


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
      TypeError: the strength is no real number.
      ValueError: the strength is negative (seen only where its value is known) or not scalar.
    """
    _real_scalar("strength", value)
    if _is_known(value) and not float(value) >= 0:  # type: ignore[arg-type]
        raise ValueError(f"strength must be at least 0; got {value}.")
    # A NumPy scalar would carry its own dtype into the result; a Python number does not.
    return float(value) if _is_known(value) else value  # type: ignore[arg-type]


def fraction(value: ArrayLike) -> ArrayLike:
    """Returns the share of the largest dominating constant.

    Raises:
      TypeError: the fraction is no real number.
      ValueError: the fraction is outside (0, 1] (seen only where its value is known) or not scalar.
    """
    _real_scalar("fraction", value)
    if _is_known(value) and not 0 < float(value) <= 1:  # type: ignore[arg-type]
        raise ValueError(
            f"fraction must be in (0, 1], a share of the largest constant for which dominance "
            f"is proved; got {value}."
        )
    return float(value) if _is_known(value) else value  # type: ignore[arg-type]


def effective_dimension(value: ArrayLike | None, channels: int, *, fixed: bool) -> jax.Array | None:
    """Returns the trace of a covariance over its largest eigenvalue, a scalar; None stays.

    Args:
      value: may be traced.
      channels: C, the largest there can be.
      fixed: whether the target is fixed, not the estimates' own average.

    Raises:
      ValueError: not a scalar, outside [1, C] by more than rounding (seen only where its value is
        known), or given where the target is not fixed.
    """
    if value is None:
        return None
    if not fixed:
        raise ValueError('effective_dimension needs a fixed target; got target="mean".')
    if jnp.shape(value):
        raise ValueError(f"effective_dimension must be a scalar; got shape {jnp.shape(value)}.")
    if _is_known(value) and not 0.999 <= float(value) <= 1.001 * channels:  # type: ignore[arg-type]
        raise ValueError(
            f"effective_dimension must be in [1, {channels}], trace over largest eigenvalue of "
            f"the covariance of {channels} channels; got {value}."
        )
    return jnp.asarray(value, float)


def momentum(value: float) -> float:
    """Returns the share of the running value that an update keeps; as a float, where it is known.

    A NumPy number would make the running value, which it is multiplied with, one of its own dtype.

    Raises:
      TypeError: the momentum is no real number.
      ValueError: the momentum is outside [0, 1] or not scalar.
    """
    _real_scalar("momentum", value)
    if _is_known(value) and not 0 <= float(value) <= 1:
        raise ValueError(
            f"momentum must be in [0, 1], the share of the running value that is kept "
            f"(Flax's convention; PyTorch's momentum is 1 minus this); got {value}."
        )
    return float(value) if _is_known(value) else value


def epsilon(value: ArrayLike, shape: tuple[int, ...] = ()) -> ArrayLike:
    """Returns the number, or one a channel, that is added to a variance.

    Args:
      value: a scalar, or an array in the shape of the features; may be traced.
      shape: the shape of the features.

    Raises:
      TypeError: epsilon is no real number, nor an array of them.
      ValueError: epsilon is negative or not finite (seen only where its value is known), or of
        another shape.
    """
    _real("epsilon", value)
    if jnp.shape(value) not in ((), shape):
        raise ValueError(
            f"epsilon must be a scalar or have the shape of the features, {shape}; "
            f"got shape {jnp.shape(value)}."
        )
    if _is_known(value) and not np.all(np.isfinite(value) & (np.asarray(value) >= 0)):
        raise ValueError(f"epsilon must be finite and at least 0; got {value}.")
    return value


def feature_shape(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> None:
    """Checks that per-channel values have the shape of the features.

    Raises:
      ValueError: they do not.
    """
    if value is not None and np.shape(value) != shape:
        raise ValueError(
            f"{name} must have the shape of the features, {shape}; got {np.shape(value)}."
        )


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Checks that ``value`` is one of ``choices``.

    Raises:
      ValueError: it is not; the message lists the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def feature_axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """Returns the feature axes, non-negative, sorted, each once.

    Args:
      axis: one axis or several, negative ones counted from the end.
      ndim: rank of the input.

    Raises:
      TypeError: an axis is not an integer.
      ValueError: an axis is out of range, or there is none.
    """
    axes = tuple(axis) if isinstance(axis, Iterable) else (axis,)
    if not axes:
        raise ValueError("axis must name at least one feature axis; got none: ().")
    for a in axes:
        if isinstance(a, bool) or not isinstance(a, int | np.integer):
            raise TypeError(f"axis must be an integer or several; got {a!r}.")
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of range for an input of rank {ndim}.")
    return tuple(sorted({int(a) % ndim for a in axes}))


def _real(name: str, value: Any) -> None:
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(f"{name} must be a real number; got {value!r}.")


def _real_scalar(name: str, value: Any) -> None:
    _real(name, value)
    if np.shape(value):
        raise ValueError(f"{name} must be a scalar; got shape {np.shape(value)}.")


def _is_known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct)


class Paths:
    """Which layers of a model are meant; remembers those that it was asked about.

    Args:
      where: None for all; a path, or several, for the layers at and under them; or a function from
        a path, names with slashes between them, to a bool.
    """

    def __init__(self, where: Where):
        self._where = (where,) if isinstance(where, str) else where
        if not (self._where is None or callable(self._where)):
            self._where = tuple(path.strip("/") for path in self._where)
        self._held: dict[str, bool] = {}  # whether it is meant, by path

    @property
    def names(self) -> tuple[str, ...]:
        """The paths that were given; none where all layers are meant, or a function says which."""
        return self._where if isinstance(self._where, tuple) else ()

    def holds(self, path: str) -> bool:
        """Returns whether the layer at ``path`` is meant."""
        if self._where is None:
            held = True
        elif callable(self._where):
            held = bool(self._where(path))
        else:
            held = any(_is_under(path, name) for name in self._where)
        self._held[path] = held
        return held

    def check(self, kind: str, *, remedy: str = "") -> None:
        """Checks that a layer was found, and by each path one, unless none was asked for.

        Args:
          kind: what the layers are.
          remedy: what to do about a model that has none of them.

        Raises:
          ValueError: none was, or a path names none; the message lists those that there are.
        """
        held = dict(self._held)  # other threads may ask meanwhile
        missed = [name for name in self.names if not any(_is_under(path, name) for path in held)]
        found = any(held.values())
        if self._where == () or (found and not missed):
            return
        there = ", ".join(map(repr, held)) or "none"
        which = f" by {', '.join(map(repr, missed))}" if found else ""
        hint = f" {remedy}" if remedy and not held else ""
        raise ValueError(
            f"where={self._where!r} names no {kind}{which}; the model has: {there}.{hint}"
        )


def _is_under(path: str, name: str) -> bool:
    return f"{path}/".startswith(f"{name}/")
