"""How attacks call a model, so that models of one architecture share one compilation."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import RandomLogitsWarning

LogitsFn = Callable[[jax.Array], jax.Array]
"""Maps a batch (B, ...) to logits: (B, K), or (B, H, W, K) for a label per pixel.

K = 1 stands for two classes and the logit z of class 1, and is read as the two logits (0, z), whose
softmax has the same probabilities. Attacks take an NNX model as well, as it is in evaluation.
"""

# Functions -> what they traced to when they were seen last, for each shape of the inputs.
_DIGESTS: weakref.WeakKeyDictionary[LogitsFn, dict[tuple[int, ...], str]] = (
    weakref.WeakKeyDictionary()
)
# Functions that have changed since they were compiled -> what is compiled now.
_REMADE: weakref.WeakKeyDictionary[LogitsFn, jax.tree_util.Partial] = weakref.WeakKeyDictionary()


def as_argument(logits_fn: LogitsFn) -> jax.tree_util.Partial:
    """Returns ``logits_fn`` as something that a jitted function takes as an argument.

    A ``jax.tree_util.Partial(apply, state)`` is a pytree: ``apply`` is static, the arrays in
    ``state`` are traced, so another state of the same model does not compile again, and nothing of
    it is kept. An NNX model becomes one. A plain function is static as a whole, with the arrays
    that it closes over compiled in as constants; JAX keeps both until ``jax.clear_caches()``.

    Raises:
      ValueError: it cannot be called.
    """
    if isinstance(logits_fn, jax.tree_util.Partial):
        return logits_fn
    nnx = sys.modules.get("flax.nnx")  # this package needs no Flax; a model of it has loaded it
    if nnx is not None and isinstance(logits_fn, nnx.Module):
        return jax.tree_util.Partial(_call_nnx, *nnx.split(logits_fn))
    if not callable(logits_fn):
        raise ValueError(
            f"logits_fn must be a function from inputs to logits; got {type(logits_fn).__name__}"
        )
    with contextlib.suppress(TypeError):
        if logits_fn in _REMADE:
            return _REMADE[logits_fn]
    return jax.tree_util.Partial(logits_fn)


def _call_nnx(graphdef: Any, state: Any, x: jax.Array) -> jax.Array:
    """Calls a copy of an NNX model: what its layers record is dropped with it."""
    return sys.modules["flax.nnx"].merge(graphdef, state, copy=True)(x)


def current(logits_fn: LogitsFn, x: jax.Array) -> tuple[jax.tree_util.Partial, jax.Array]:
    """Returns the model as an argument of compiled functions, and its logits, as it is now.

    A plain function is compiled with the arrays that it closes over.  Where these have changed
    since, its compiled form is another model: the function is called once as it is, and compiled
    anew if the two differ.

    Args:
      logits_fn: maps a batch (B, ...) to logits.
      x: inputs (B, ...).

    Raises:
      ValueError: the logits have another shape.

    Warns:
      RandomLogitsWarning: the function's logits differ between two calls.
    """
    model = as_argument(logits_fn)
    if has_arguments(logits_fn, model):
        return model, predict(model, x)
    logits_shape(model, x)  # refuses what is no such model, in words
    if _has_changed(logits_fn, x):
        model = _remade(logits_fn)
    logits = predict(model, x)
    direct = traced_logits(logits_fn, x)
    if _differ(direct, logits, 1e-4):
        model = _remade(logits_fn)
        logits = predict(model, x)
        if _differ(direct, logits, 1e-2):
            warn(
                "two calls of logits_fn on the same inputs gave other logits: a model that is "
                "random, or holds state, needs an attack on its mean answer: see "
                "expected_over_randomness",
                RandomLogitsWarning,
            )
    return model, logits


def _has_changed(logits_fn: LogitsFn, x: jax.Array) -> bool:
    """Returns whether a function computes something else than when it was seen last.

    By what it traces to, constants included, since what it answers may be the same: with a
    ``stop_gradient`` more or less its logits are.
    """
    traced = jax.make_jaxpr(lambda inputs: logits_fn(inputs))(x)  # noqa: PLW0108
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
    for constant in traced.consts:
        if not jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
            digest.update(np.asarray(constant).tobytes())
    found = digest.hexdigest()
    try:
        of_shapes = _DIGESTS.setdefault(logits_fn, {})
    except TypeError:  # what cannot be referred to weakly is always made anew
        return True
    before = of_shapes.get(x.shape, found)
    of_shapes[x.shape] = found
    return before != found


def has_arguments(logits_fn: LogitsFn, model: jax.tree_util.Partial) -> bool:
    """Returns whether a model's arrays are arguments, so that its compiled form is up to date."""
    return model is logits_fn or model.func is _call_nnx


def warn_of_dropout(logits_fn: LogitsFn) -> None:
    """Warns of an NNX model whose dropout is on; a copy of it draws the same mask at every call.

    Warns:
      RandomLogitsWarning: saying so.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(logits_fn, nnx.Module):
        return
    if any(
        getattr(module, "deterministic", None) is False for _, module in nnx.iter_modules(logits_fn)
    ):
        warn(
            "the model's dropout is on: every call draws the same mask, and the result is that of "
            "this one. Call model.eval() first",
            RandomLogitsWarning,
        )


def _remade(logits_fn: LogitsFn) -> jax.tree_util.Partial:
    """Returns another object, which JAX has not compiled yet."""
    try:
        refer = weakref.ref(logits_fn)  # a strong one would keep the key alive
        model = jax.tree_util.Partial(lambda x: refer()(x))  # type: ignore[misc]  # noqa: PLW0108
        _REMADE[logits_fn] = model
    except TypeError:  # what cannot be referred to weakly is made every time
        model = jax.tree_util.Partial(lambda x: logits_fn(x))  # noqa: PLW0108
    return model


def _differ(a: jax.Array, b: jax.Array, share: float) -> bool:
    there, here = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(there)
    if not np.array_equal(finite, np.isfinite(here)):
        return True
    there, here = there[finite], here[finite]
    if not there.size:
        return False
    return not bool(np.abs(there - here).max() <= share * max(np.abs(there).max(), 1e-6))


def at_least_single(values: jax.Array) -> jax.Array:
    """Returns half precision as float32, all else as it is."""
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def traced_logits(logits_fn: LogitsFn, x: jax.Array) -> jax.Array:
    """Returns the logits with K >= 2, in float32 or wider; for use inside a compiled function."""
    logits = logits_fn(x)
    if not isinstance(logits, jax.Array):
        got = type(logits).__name__
        raise ValueError(f"logits_fn must return one array of logits; got {got}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits_fn must return real floating logits; got dtype {logits.dtype}")
    logits = at_least_single(logits)
    if logits.ndim > 1 and logits.shape[-1] == 1:
        return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    return logits


_compiled_logits = jax.jit(traced_logits)


def predict(logits_fn: LogitsFn, x: jax.Array) -> jax.Array:
    """Returns the logits (B, K) or (B, H, W, K) of a batch, from one compiled forward pass.

    Args:
      logits_fn: maps (B, ...) to logits; best a ``jax.tree_util.Partial`` over the model's state.
      x: inputs (B, ...).

    Raises:
      ValueError: the logits have another shape, or an NNX model inside a function is in training
        mode.
    """
    model = as_argument(logits_fn)
    logits_shape(model, x)
    return _compiled_logits(model, x)


def logits_shape(logits_fn: LogitsFn, x: jax.Array) -> tuple[int, ...]:
    """Returns the shape of the logits, found without computing them; K is at least 2.

    Raises:
      ValueError: the shape is neither (B, K) nor (B, H, W, K), or an NNX model inside a function
        is in training mode.
    """
    try:
        # eval_shape of the jitted function reuses its trace, so repeated calls cost nothing.
        shape = _compiled_logits.eval_shape(as_argument(logits_fn), x).shape
    except Exception as error:
        if isinstance(error, jax.errors.TracerArrayConversionError):
            raise ValueError(
                "logits_fn must be made of JAX functions; it turns its input into a NumPy array. "
                "For attacks without gradients (square) wrap it in jax.pure_callback"
            ) from error
        if type(error).__name__ != "TraceContextError":  # Flax's, which need not be installed
            raise
        raise ValueError(
            "logits_fn calls an NNX model that records what it sees: it is in training mode. Call "
            "model.eval() first, or pass the model itself instead of a function around it"
        ) from error
    if len(shape) < 2 or shape[0] != x.shape[0] or shape[-1] < 1:
        expected = f"({x.shape[0]}, K), or ({x.shape[0]}, H, W, K) for a label per pixel"
        raise ValueError(f"logits_fn must return logits of shape {expected}; got {shape}")
    return shape
