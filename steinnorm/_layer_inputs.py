"""Checks of a layer's arrays: its input, its mask, its values per channel, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm import _checks
from steinnorm._numerics import promote_types


def array_or_number(name: str, value: Any) -> None:
    """Checks that something is an array, or a number; lists and tuples are neither.

    Raises:
      TypeError: it is not; or it holds text or objects.
    """
    dtype = getattr(value, "dtype", None)
    is_number = isinstance(value, int | float | complex)
    if dtype is None and not (is_number or hasattr(value, "__jax_array__")):
        raise TypeError(f"{name} must be an array; got {_kind(value)}.")
    if isinstance(dtype, np.dtype) and dtype.kind in "OSUMm":
        raise TypeError(f"{name} must be a numeric array; got dtype {dtype}.")


def inexact_input(x: Any) -> jax.Array:
    """Returns a layer's input as an array; integers become float32, as in Flax.

    Raises:
      TypeError: ``x`` is not numeric.
    """
    array_or_number("x", x)
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(x)
    if jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_:
        return jnp.asarray(x, jnp.float32)
    raise TypeError(f"x must be a numeric array; got dtype {dtype}.")


def inexact_dtype(dtype: Any) -> None:
    """Checks the dtype that a layer is to return; None leaves it open.

    Raises:
      TypeError: it is one of integers or booleans, to which results would be cut off.
    """
    if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"dtype must be of a floating or complex kind, such as jnp.bfloat16; got "
            f"{jnp.dtype(dtype).name}. Round or compare the result of the layer instead."
        )


def out_dtype(dtype: Any, *arrays: Any) -> Any:
    """Returns the dtype of what is computed from arrays (or None): ``dtype``, if that is given.

    Raises:
      TypeError: the dtype is of integers or booleans, or is real where an array is complex.
    """
    inexact_dtype(dtype)
    natural = promote_types(*(jnp.result_type(a) for a in arrays if a is not None))
    if dtype is None:
        return natural
    is_complex = jnp.issubdtype(natural, jnp.complexfloating)
    if is_complex and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"dtype={jnp.dtype(dtype).name} would drop the imaginary part of a result of dtype "
            f"{natural}: give a complex dtype, or take .real of the result."
        )
    return dtype


def mask_shape(mask: ArrayLike, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a mask's shape, which NumPy's rules broadcast to the input's.

    Raises:
      TypeError: the mask is not of booleans or numbers.
      ValueError: the mask cannot be broadcast to ``shape``.
    """
    dtype = getattr(mask, "dtype", jnp.bool_)
    kinds = (jnp.bool_, jnp.integer, jnp.floating)
    if isinstance(mask, str) or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        came = type(mask).__name__ if isinstance(mask, str) else f"dtype {dtype}"
        raise TypeError(f"mask must be a boolean array, True where a value counts; got {came}.")
    given = np.shape(mask) if hasattr(mask, "dtype") else jnp.asarray(mask, bool).shape
    sizes = zip(reversed(given), reversed(shape), strict=False)  # may be symbols (jax.export)
    if len(given) <= len(shape) and all(m in (1, size) for m, size in sizes):
        return given
    hint = "To mask whole examples of a rank-4 input give it shape (batch, 1, 1, 1)."
    if 0 < len(given) < len(shape):
        missing = len(shape) - len(given)
        if all(m in (1, size) for m, size in zip(given, shape, strict=False)):
            widened = ", ".join(map(str, (*given, *(1,) * missing)))
            how = "mask[..., None]" if missing == 1 else f"mask.reshape({widened})"
            hint = f"Axes count from the last one, as in NumPy, so give it those it lacks: {how}."
    raise ValueError(
        f"mask must be broadcastable to the input's shape {shape}; got shape {given}. {hint}"
    )


def mask_array(mask: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Returns a boolean mask of the input's rank, each axis of size 1 or the input's size.

    Raises:
      TypeError: the mask is not of booleans or numbers.
      ValueError: the mask cannot be broadcast to ``shape``.
    """
    given = mask_shape(mask, shape)
    return jnp.asarray(mask, dtype=bool).reshape((1,) * (len(shape) - len(given)) + given)


def feature_array(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Checks that per-channel values are an array in the shape of the features, or None.

    Raises:
      TypeError: they are no array.
      ValueError: they have another shape.
    """
    if value is not None and not hasattr(value, "dtype"):
        raise TypeError(
            f"{name} must be an array of the features' shape {shape}; got {type(value).__name__}. "
            "Make it one with jnp.asarray."
        )
    _checks.feature_shape(name, value, shape)


def fields_of(name: str, value: Any, kind: type, public: str) -> list[tuple[str, Any]]:
    """Returns the names and values of what is held by a tuple of a certain kind, or by None.

    Args:
      name: the argument's name, for the messages.
      value: the argument.
      kind: the named tuple that it has to be.
      public: what users call this kind.

    Raises:
      TypeError: it is of another kind.
    """
    if value is None:
        return []
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    if not isinstance(value, kind):
        call = ", ".join(f"{field}=..." for field in fields)
        raise TypeError(f"{name} must be a steinnorm.{public}({call}); got {_kind(value)}.")
    return [(f"{name}.{field}", getattr(value, field)) for field in fields]


def batches(value: Any) -> Any:
    """Returns an iterable of batches, which is not a batch itself.

    Raises:
      TypeError: it is an array, which would be taken apart into its examples, or a dictionary, or
        nothing that can be iterated over.
    """
    is_array = hasattr(value, "dtype") and hasattr(value, "shape")
    if is_array or isinstance(value, Mapping) or not isinstance(value, Iterable):
        came = f"an array of shape {value.shape}" if is_array else f"a {type(value).__name__}"
        raise TypeError(
            f"batches must be an iterable of batches, such as a list or a data loader; got {came}. "
            "If that is one batch, pass a list of it: [x]."
        )
    return value


def called(call: Callable[..., Any], batch: Any, *, by_default: bool, remedy: str) -> Any:
    """Calls a function; where it cannot take a batch of several parts, says what to do.

    Args:
      call: a function without arguments.
      batch: what it evaluates a model with.
      by_default: whether it gives the model all of the batch as its one argument.
      remedy: how users say what the model is to be given.

    Raises:
      TypeError: the call failed, and ``batch`` is a list, tuple or dictionary.
    """
    try:
        return call()
    except Exception as error:
        if not (by_default and isinstance(batch, list | tuple | Mapping)):
            raise
        raise TypeError(
            f"the model cannot take a batch, {_kind(batch)}, as its one argument (it raised the "
            f"{type(error).__name__} above). {remedy} Or let batches yield the inputs alone: "
            "(x for x, *_ in loader)."
        ) from error


def _kind(value: Any) -> str:
    """Returns what something is, in a few words; of a list or tuple, of how many."""
    name = type(value).__name__
    return f"a {name} of {len(value)}" if isinstance(value, list | tuple) else name
