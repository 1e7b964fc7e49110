"""Calls of a model, arranged so that models of one architecture share one compilation."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._arguments import refuse_traced
from steinnorm.attacks._competing import without_unreachable
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import RandomLogitsWarning

LogitsFn = Callable[[jax.Array], jax.Array]
"""Maps a batch (B, ...) to logits: (B, K), or (B, H, W, K) for a label per pixel.

K = 1 means two classes and the logit z of class 1. It is read as the two logits (0, z), whose
softmax has the same probabilities. Attacks also take an NNX model in evaluation mode.
"""

# Functions -> for each shape of the inputs, a hash of what the last call traced to.
_DIGESTS: weakref.WeakKeyDictionary[LogitsFn, dict[tuple[int, ...], str]] = (
    weakref.WeakKeyDictionary()
)
# Functions that have changed since they were compiled -> a new object, which JAX compiles again.
_RECOMPILED: weakref.WeakKeyDictionary[LogitsFn, jax.tree_util.Partial] = (
    weakref.WeakKeyDictionary()
)

# What errors of Flax mean, by the names of their classes, because Flax need not be installed.
_FLAX_ERRORS = {
    "TraceContextError": (
        "logits_fn calls an NNX model in training mode, which records statistics. Call "
        "model.eval() first, or pass the model itself instead of a function around it"
    ),
    "ModifyScopeVariableError": (
        "logits_fn calls a Linen model in training mode, which records statistics. Pass "
        "lambda x: model.apply(variables, x, ...) with the arguments of evaluation mode "
        "(use_running_average=True, often train=False); to attack it in training mode, give apply "
        "mutable=['batch_stats'] and return the first of its two results"
    ),
    "CallCompactUnboundModuleError": (
        "logits_fn calls a Linen module without its variables: pass "
        "lambda x: model.apply(variables, x)"
    ),
    "InvalidRngError": (
        "logits_fn calls a Linen model whose dropout is on, without a key. Pass lambda x: "
        "model.apply(variables, x, ...) with the arguments of evaluation mode "
        "(deterministic=True, often train=False), or see expected_over_randomness"
    ),
}


def as_partial(logits_fn: LogitsFn) -> jax.tree_util.Partial:
    """Returns ``logits_fn`` as a pytree, which jitted functions take as an argument.

    A ``jax.tree_util.Partial(apply, state)`` is such a pytree: ``apply`` is static and the arrays
    in ``state`` are traced, so that another state of the same model is not compiled again, and no
    state stays in memory. An NNX model is converted to one. A plain function is static as a whole,
    and the arrays that it closes over are compiled as constants; JAX keeps both until
    ``jax.clear_caches()``.

    Raises:
      ValueError: ``logits_fn`` is not callable, or a Linen module.
    """
    if isinstance(logits_fn, jax.tree_util.Partial):
        return logits_fn
    # Loaded only if the caller uses Flax, which attacks do not need.
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if linen is not None and isinstance(logits_fn, linen.Module):
        raise ValueError(
            "logits_fn is a Linen module, which does not hold its variables as NNX models do, and "
            "cannot be compiled where they are bound to it. Pass lambda x: model.apply(variables, "
            "x, ...) with the arguments of evaluation mode (often train=False)"
        )
    if nnx is not None and isinstance(logits_fn, nnx.Module):
        return jax.tree_util.Partial(_call_nnx, *nnx.split(logits_fn))
    if not callable(logits_fn):
        raise ValueError(
            f"logits_fn must be a function from inputs to logits; got {type(logits_fn).__name__}"
        )
    with contextlib.suppress(TypeError):
        if logits_fn in _RECOMPILED:
            return _RECOMPILED[logits_fn]
    return jax.tree_util.Partial(logits_fn)


def _call_nnx(graphdef: Any, state: Any, x: jax.Array) -> jax.Array:
    """Calls a copy of an NNX model, so that nothing its layers record reaches the original."""
    merge = sys.modules["flax.nnx"].merge
    # Before Flax 0.11 it always made a copy, and had no such argument.
    copy = {"copy": True} if "copy" in inspect.signature(merge).parameters else {}
    return merge(graphdef, state, **copy)(x)


def up_to_date(logits_fn: LogitsFn, x: jax.Array) -> tuple[jax.tree_util.Partial, jax.Array]:
    """Returns the model as a pytree, and its logits, both in the model's present state.

    A plain function is compiled with the arrays that it closes over. If these change afterwards,
    the compiled form is an outdated model. So the function is also called without compilation, and
    compiled again if the two results differ.

    Args:
      logits_fn: maps a batch (B, ...) to logits.
      x: inputs (B, ...).

    Raises:
      ValueError: the logits do not have the shape (B, K) or (B, H, W, K).

    Warns:
      RandomLogitsWarning: the function's logits differ between two calls.
    """
    model = as_partial(logits_fn)
    if has_traced_arrays(logits_fn, model):
        return model, predict(model, x)
    logits_shape(model, x)  # raises an error with an explanation if this is not such a model
    if _has_changed(logits_fn, x):
        model = _uncompiled(logits_fn)
    logits = predict(model, x)
    direct = traced_logits(logits_fn, x)
    if _differ(direct, logits, 1e-4):
        model = _uncompiled(logits_fn)
        logits = predict(model, x)
        if _differ(direct, logits, 1e-2):
            warn(
                "two calls of logits_fn on the same inputs gave different logits: a model that is "
                "random or changes its state needs an attack on its mean answer; see "
                "expected_over_randomness",
                RandomLogitsWarning,
            )
    return model, logits


def _has_changed(logits_fn: LogitsFn, x: jax.Array) -> bool:
    """Returns whether a function traces to something else than at the last call.

    Traces and their constants are compared rather than logits, because an added ``stop_gradient``
    changes the gradients but not the logits.
    """
    traced = jax.make_jaxpr(lambda inputs: logits_fn(inputs))(x)  # noqa: PLW0108
    refuse_traced(**{"an array that logits_fn closes over": traced.consts})
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
    for constant in traced.consts:
        if not jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
            digest.update(np.asarray(constant).tobytes())
    current_digest = digest.hexdigest()
    try:
        digest_of_shape = _DIGESTS.setdefault(logits_fn, {})
    except TypeError:  # without a weak reference, always treated as changed
        return True
    previous_digest = digest_of_shape.get(x.shape, current_digest)
    digest_of_shape[x.shape] = current_digest
    return previous_digest != current_digest


def has_traced_arrays(logits_fn: LogitsFn, model: jax.tree_util.Partial) -> bool:
    """Returns whether a model's arrays are traced, so that its compiled form is up to date."""
    return model is logits_fn or model.func is _call_nnx


def warn_of_dropout(logits_fn: LogitsFn) -> None:
    """Warns of active dropout in an NNX model: attacks call copies, which all draw the same mask.

    Warns:
      RandomLogitsWarning: a module of the model has ``deterministic=False``.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(logits_fn, nnx.Module):
        return
    parts = nnx.iter_graph(logits_fn)  # not iter_modules, which Flax 0.11 brought
    if any(getattr(part, "deterministic", None) is False for _, part in parts):
        warn(
            "the model's dropout is on: every call draws the same mask, and the result holds for "
            "that mask only. Call model.eval() first",
            RandomLogitsWarning,
        )


def _uncompiled(logits_fn: LogitsFn) -> jax.tree_util.Partial:
    """Returns the function as a new object, which JAX has not compiled yet."""
    try:
        refer = weakref.ref(logits_fn)  # a strong reference would keep the dictionary's key alive
        model = jax.tree_util.Partial(lambda x: refer()(x))  # type: ignore[misc]  # noqa: PLW0108
        _RECOMPILED[logits_fn] = model
    except TypeError:  # no weak references to this object
        model = jax.tree_util.Partial(lambda x: logits_fn(x))  # noqa: PLW0108
    return model


def _differ(a: jax.Array, b: jax.Array, share: float) -> bool:
    first, second = (without_unreachable(np.asarray(z), like=np.asarray(a)) for z in (a, b))
    finite = np.isfinite(first)
    if not np.array_equal(finite, np.isfinite(second)):
        return True
    first, second = first[finite], second[finite]
    if not first.size:
        return False
    return not bool(np.abs(first - second).max() <= share * max(np.abs(first).max(), 1e-6))


def at_least_float32(values: jax.Array) -> jax.Array:
    """Converts half precision to float32 and returns anything wider unchanged."""
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def traced_logits(logits_fn: LogitsFn, x: jax.Array) -> jax.Array:
    """Returns the logits with K >= 2, in float32 or wider; may be called inside ``jit``.

    Raises:
      ValueError: ``logits_fn`` does not return one array of real floating numbers.
    """
    logits = logits_fn(x)
    if not isinstance(logits, jax.Array):
        got = type(logits).__name__
        raise ValueError(f"logits_fn must return one array of logits; got {got}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits_fn must return real floating logits; got dtype {logits.dtype}")
    logits = at_least_float32(logits)
    if logits.ndim > 1 and logits.shape[-1] == 1:
        return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    return logits


_compiled_logits = jax.jit(traced_logits)


def predict(logits_fn: LogitsFn, x: jax.Array) -> jax.Array:
    """Returns the logits (B, K) or (B, H, W, K) of a batch, from one compiled forward pass.

    Args:
      logits_fn: maps (B, ...) to logits, (B, K) or (B, H, W, K). A ``jax.tree_util.Partial`` over
        the model's state is compiled once for all states.
      x: inputs (B, ...).

    Raises:
      ValueError: the logits have another shape, or ``logits_fn`` calls an NNX model in training
        mode.

    Example:
      >>> import jax.numpy as jnp
      >>> predict(lambda x: 2 * x, jnp.array([[0.75], [0.5]]))  # a single logit becomes two
      Array([[0. , 1.5],
             [0. , 1. ]], dtype=float32)
    """
    model = as_partial(logits_fn)
    logits_shape(model, x)
    return _compiled_logits(model, x)


def logits_shape(logits_fn: LogitsFn, x: jax.Array) -> tuple[int, ...]:
    """Returns the shape of the logits without computing them; K is at least 2.

    Raises:
      ValueError: the shape is neither (B, K) nor (B, H, W, K), or ``logits_fn`` calls an NNX model
        in training mode.
    """
    with explained_errors():
        # eval_shape of the jitted function reuses its trace, so repeated calls cost nothing.
        shape = _compiled_logits.eval_shape(as_partial(logits_fn), x).shape
    check_logits_shape(shape, x)
    return shape


def check_logits_shape(shape: tuple[int, ...], x: jax.Array) -> None:
    """Refuses logits of another shape than (B, K) or (B, H, W, K).

    Raises:
      ValueError: ``shape`` is another one.
    """
    if len(shape) < 2 or shape[0] != x.shape[0] or shape[-1] < 1:
        expected = f"({x.shape[0]}, K), or ({x.shape[0]}, H, W, K) for a label per pixel"
        raise ValueError(f"logits_fn must return logits of shape {expected}; got {shape}")


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Turns errors that tracing a model raises into errors that say what to do.

    Raises:
      ValueError: instead of an error of JAX or Flax whose reason is known.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, jax.errors.TracerArrayConversionError):
            raise ValueError(
                "logits_fn must consist of JAX functions, but converts its input to a NumPy array. "
                "For attacks without gradients (square), wrap it in jax.pure_callback"
            ) from error
        if type(error).__name__ not in _FLAX_ERRORS:
            raise
        raise ValueError(_FLAX_ERRORS[type(error).__name__]) from error
