"""What an attack is after, in the form that every loss takes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

VOID = 255
"""The label of pixels in label maps that have none."""


class Criterion(NamedTuple):
    """The labels and what else a loss may need; a pytree, so that it passes through ``jit``.

    Below, S stands for the axes that a label map has and a class label has not: (B, *S) is (B,)
    or (B, H, W).

    Attributes:
      y: right labels, (B, *S), integers; in label maps ``VOID`` where there is none.
      target: wanted labels of a targeted attack, (B, *S); None where any wrong one will do.
      reference: logits of the clean inputs, (B, *S, K), for losses that measure a change.
      progress: share of the steps that are done, a scalar in [0, 1), for losses that change on
        the way.
      temperature: by which saturating losses divide the logits, a scalar or (B,); None for 1.
    """

    y: jax.Array
    target: jax.Array | None = None
    reference: jax.Array | None = None
    progress: jax.Array | float = 0.0
    temperature: jax.Array | None = None


def known(y: jax.Array) -> jax.Array:
    """Returns where there is a label, (B, *S) bool; not at void pixels of label maps."""
    return y != VOID if y.ndim > 1 else jnp.ones_like(y, dtype=bool)


def right_labels(y: jax.Array) -> jax.Array:
    """Returns labels that may be used as an index: class 0 where there is none."""
    return jnp.where(known(y), y, jnp.zeros_like(y))


def reached(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns where the attack has what it wants, (B, *S) bool: an error, or the target's label."""
    prediction = jnp.argmax(logits, axis=-1)
    if criterion.target is not None:
        return (prediction == criterion.target) & known(criterion.y)
    return (prediction != criterion.y) & known(criterion.y)


def share_reached(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns the share of each example's labels where the attack has what it wants, (B,)."""
    return mean_over_labels(reached(logits, criterion).astype(logits.dtype), criterion.y)


def mean_over_labels(values: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean of (B, *S) values over an example's known labels, (B,), else 0."""
    if y.ndim == 1:
        return values
    axes = tuple(range(1, y.ndim))
    weights = known(y).astype(values.dtype)
    return jnp.sum(values * weights, axis=axes) / jnp.maximum(jnp.sum(weights, axis=axes), 1)


def for_batch(values: jax.Array, joint: bool) -> jax.Array:
    """Returns the (B,) values, or for each their mean where the batch counts as a whole."""
    # A sum with zeros keeps the placement of values that are split over devices.
    return jnp.zeros_like(values) + jnp.mean(values) if joint else values
