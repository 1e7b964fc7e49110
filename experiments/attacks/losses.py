"""Losses that an attack increases: (B, K) logits and (B,) labels to (B,)."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy in nats, (B,)."""
    scores = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(scores, y[:, None], axis=-1)[:, 0]


def margin(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The best wrong logit minus the right one, (B,); positive where the model errs.

    Unlike the cross-entropy its gradient does not vanish where the model is very sure.
    """
    right = jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]
    is_label = jnp.arange(logits.shape[-1])[None, :] == y[:, None]
    return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1) - right


LOSSES = {"cross_entropy": cross_entropy, "margin": margin}
