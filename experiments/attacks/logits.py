"""How attacks call a model, so that models of one architecture share one compilation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LogitsFn = Callable[[jax.Array], jax.Array]
"""Maps a batch (B, ...) to logits (B, K)."""


def as_argument(logits_fn: LogitsFn) -> jax.tree_util.Partial:
    """Makes ``logits_fn`` something that a jitted function takes as an argument.

    A ``jax.tree_util.Partial(apply, state)`` is a pytree: ``apply`` is static, the arrays in
    ``state`` are traced, so another state of the same model does not compile again.  A plain
    function is static as a whole, with the arrays that it closes over compiled in as constants.
    """
    if isinstance(logits_fn, jax.tree_util.Partial):
        return logits_fn
    if not callable(logits_fn):
        raise ValueError(f"logits_fn must be callable; got {type(logits_fn).__name__}")
    return jax.tree_util.Partial(logits_fn)


@jax.jit
def _logits(logits_fn: LogitsFn, x: jax.Array) -> jax.Array:
    logits = logits_fn(x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def predict(logits_fn: LogitsFn, x: jax.Array) -> jax.Array:
    """The logits (B, K) of a batch, in float32 or wider, from one compiled forward pass.

    Args:
      logits_fn: maps (B, ...) to (B, K); best a ``jax.tree_util.Partial`` over the model's state.
      x: inputs (B, ...).

    Raises:
      ValueError: the result is not (B, K) with K >= 2.
    """
    logits_shape(logits_fn, x)
    return _logits(as_argument(logits_fn), x)


def logits_shape(logits_fn: LogitsFn, x: jax.Array) -> tuple[int, int]:
    """The shape (B, K) of the logits, found without computing them.

    Raises:
      ValueError: the shape is not (B, K) with K >= 2.
    """
    # eval_shape of the jitted function reuses its trace, so repeated calls cost nothing.
    shape = _logits.eval_shape(as_argument(logits_fn), x).shape
    if len(shape) != 2 or shape[0] != x.shape[0] or shape[1] < 2:
        expected = f"({x.shape[0]}, K) with K >= 2"
        raise ValueError(f"logits_fn must return logits of shape {expected}; got {shape}")
    return shape
