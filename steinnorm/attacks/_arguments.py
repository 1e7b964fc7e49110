"""Checks of arguments that attacks, noises and measurements share."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_GENERATORS = {(2,): "threefry2x32", (4,): "rbg"}
"""Generators by the shape of their legacy keys, which do not say of which they are."""


def refuse_traced(**arguments: Any) -> None:
    """Refuses values that are traced, because an attack's loop on the host must read them.

    Args:
      **arguments: arrays, or pytrees of arrays, by the name of the argument.

    Raises:
      ValueError: one of them is traced, which the message names; or the caller is compiled, where
        all that is computed from them is traced.
    """
    for name, value in arguments.items():
        # An iterator is no pytree, which JAX warns of, and must not be used up here.
        leaves = [] if isinstance(value, Iterator) else jax.tree.leaves(value)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            raise ValueError(
                f"attacks cannot be traced; inside jit, vmap or scan use pgd_scan (traced: {name})"
            )
    if isinstance(jax.device_put(np.False_), jax.core.Tracer):
        raise ValueError("attacks cannot be traced; inside jit, vmap or scan use pgd_scan")


def check_key(key: Any, *, required: bool = False, traced: bool = False) -> None:
    """Refuses anything but a single random key or None.

    Args:
      key: the argument.
      required: whether None is refused as well.
      traced: whether the key may be traced.

    Raises:
      ValueError: ``key`` is something else, or a legacy key of another generator than JAX's default
        one, of which JAX takes legacy keys to be.
    """
    if not traced:
        refuse_traced(key=key)
    if key is None and not required:
        return
    got = type(key).__name__
    hint = "; write jax.random.key(0)" if key is None else ""
    is_legacy = hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.shape in _GENERATORS
    is_usable = is_legacy and key.shape == _legacy_shape()
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if (typed and not key.ndim) or is_usable:
            return
        got = f"an array of shape {key.shape} and dtype {key.dtype}"
    elif isinstance(key, int | np.integer):
        hint = f"; write jax.random.key({key})"
    elif isinstance(key, np.ndarray) and is_usable:
        hint = "; write jnp.asarray(key)"
    if is_legacy and not is_usable:
        hint = (
            ", which is no legacy key of JAX's default generator: write "
            f"jax.random.key(seed, impl={_GENERATORS[key.shape]!r})"
        )
    raise ValueError(f"key must be a jax.random.key; got {got}{hint}")


def _legacy_shape() -> tuple[int, ...]:
    """Returns the shape of legacy keys of the generator that is JAX's default here and now."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def as_integer(name: str, value: Any, minimum: int | None = None) -> int:
    """Returns a Python integer.

    Args:
      name: name of the argument in error messages.
      value: an integer of Python, NumPy or JAX.
      minimum: smallest valid value; None for no limit.

    Raises:
      ValueError: ``value`` is something else, or below the minimum.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError("True is 1 to Python")
        number = operator.index(value)
    except TypeError as error:  # which the error about a traced integer is, too
        raise ValueError(f"{name} must be an integer; got {value!r}") from error
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {number}")
    return number


def check_counts(**counts: Any) -> None:
    """Refuses anything but integers of at least 1.

    Args:
      **counts: by the name of the argument.

    Raises:
      ValueError: one is something else; the message names it.
    """
    for name, value in counts.items():
        as_integer(name, value, 1)


def as_number(name: str, value: Any) -> Any:
    """Returns a Python float or an array; Python floats do not change the dtype of the inputs.

    Traced values are returned unchanged.

    Raises:
      ValueError: ``value`` is not a real number or an array of such numbers.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, bool | str) or not isinstance(
        value, int | float | np.number | np.ndarray | jax.Array
    ):
        raise ValueError(f"{name} must be a number or an array of numbers; got {value!r}")
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, jnp.floating)):
        raise ValueError(f"{name} must be real; got dtype {array.dtype}")
    return float(array) if array.ndim == 0 else array.astype(np.float64)


def check_size(name: str, value: Any) -> None:
    """Refuses negative, infinite and NaN numbers, unless they are traced.

    Raises:
      ValueError: ``value`` has such a number.
    """
    if isinstance(value, jax.core.Tracer):
        return
    if not (np.all(np.isfinite(value)) and np.all(np.asarray(value) >= 0)):
        raise ValueError(f"{name} must be finite and not negative; got {value}")


def check_broadcasts(name: str, value: Any, shape: tuple[int, ...], what: str) -> None:
    """Refuses a value that does not broadcast to a shape; ``what`` names what has that shape.

    Raises:
      ValueError: it does not.
    """
    try:
        fits = np.broadcast_shapes(np.shape(value), shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must be a number or broadcast to {what} of shape {shape}; "
            f"got shape {np.shape(value)}"
        )


def as_array(name: str, value: Any, what: str = "an array") -> jax.Array:
    """Returns a JAX array.

    Args:
      name: name of the argument in error messages.
      value: anything.
      what: what it must be, in the message.

    Raises:
      ValueError: JAX makes no array of it, as of text or of Python objects.
    """
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        dtype = getattr(value, "dtype", None)
        got = type(value).__name__ if dtype is None else f"an array of dtype {dtype}"
        raise ValueError(f"{name} must be {what}; got {got}") from error


def check_floating(name: str, dtype: Any) -> None:
    """Refuses dtypes of inputs that are not floating.

    Raises:
      ValueError: it is not; for whole numbers, as images come from files, with the way out.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be floating; got dtype {dtype}{_way_to_floating(dtype)}")


def _way_to_floating(dtype: Any) -> str:
    whole = any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer))
    return ". Scale images to [0, 1] first" if whole else ""


def check_inputs_form(x: Any) -> None:
    """Refuses an array that is not a batch of inputs, by its shape and dtype.

    Raises:
      ValueError: it is empty, has no axis besides that of the batch, or is not floating.
    """
    if x.ndim < 2 or x.shape[0] == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be a non-empty floating batch (B, ...); got shape {x.shape}, dtype {x.dtype}"
            + _way_to_floating(x.dtype)
        )


def check_labels_form(name: str, y: Any, shape: tuple[int, ...]) -> None:
    """Refuses labels whose shape or dtype does not fit logits of a shape.

    Args:
      name: name of the labels in the message.
      y: an array.
      shape: shape of the logits, (B, *S, K).

    Raises:
      ValueError: they do not fit; where the way out is known, the message names it.
    """
    if y.shape == shape[:-1] and jnp.issubdtype(y.dtype, jnp.integer):
        return
    hint = ""
    if y.shape == shape:
        hint = "; soft and one-hot labels are not supported, use jnp.argmax"
    elif y.shape in {shape[:-1], (*shape[:-1], 1)}:
        hint = _way_to_labels(name, y.dtype, ".squeeze(-1)" if y.shape != shape[:-1] else "")
    expected = f"integer labels of shape {shape[:-1]}"
    raise ValueError(f"{name} must be {expected}; got shape {y.shape}, dtype {y.dtype}{hint}")


def _way_to_labels(name: str, dtype: Any, squeezed: str) -> str:
    if jnp.issubdtype(dtype, jnp.integer):
        return f"; use {name}{squeezed}"
    if any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.floating)):
        return f"; use {name}{squeezed}.astype(int)"
    # Text and objects may be names of classes, which nothing here can number.
    return "; labels are the numbers of the classes, from 0, of an integer dtype such as int32"
