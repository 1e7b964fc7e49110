"""The success criterion of an attack, in the form that every loss takes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._explicit_meshes import full_like

VOID = 255
"""The label of unlabelled pixels in label maps."""


class Criterion(NamedTuple):
    """Labels and whatever else a loss needs; a pytree, so that it passes through ``jit``.

    S stands for the spatial axes of a label map, which a class label lacks: (B, *S) is (B,) or
    (B, H, W).

    Attributes:
      y: true labels, (B, *S), integers; ``VOID`` at unlabelled pixels of label maps.
      target: labels that a targeted attack aims for, (B, *S); None for an untargeted attack.
      reference: logits of the clean inputs, (B, *S, K), for losses that measure a change.
      step_fraction: completed steps / all steps, a scalar in [0, 1), for losses that change during
        a run.
      temperature: divisor of the logits in saturating losses, a scalar or (B,); None for 1.
      ceiling: value beyond which losses that do not saturate hardly grow, a scalar or (B,); None
        for no such value.
    """

    y: jax.Array
    target: jax.Array | None = None
    reference: jax.Array | None = None
    step_fraction: jax.Array | float = 0.0
    temperature: jax.Array | None = None
    ceiling: jax.Array | None = None


def has_label(y: jax.Array) -> jax.Array:
    """Returns which labels are not void, (B, *S) bool; class labels never are."""
    return y != VOID if y.ndim > 1 else full_like(y, True, bool)


def index_labels(y: jax.Array) -> jax.Array:
    """Returns labels that are valid as indices: class 0 replaces void."""
    return jnp.where(has_label(y), y, full_like(y, 0))


def succeeded(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns where the attack succeeds, (B, *S) bool: an error, or the target if there is one."""
    prediction = jnp.argmax(logits, axis=-1)
    if criterion.target is not None:
        return (prediction == criterion.target) & has_label(criterion.y)
    return (prediction != criterion.y) & has_label(criterion.y)


def success_share(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns the share of each example's labels on which the attack succeeds, (B,)."""
    return mean_over_labels(succeeded(logits, criterion).astype(logits.dtype), criterion.y)


def mean_over_labels(values: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean of (B, *S) values over each example's labels, (B,); 0 if all are void."""
    if y.ndim == 1:
        return values
    axes = tuple(range(1, y.ndim))
    weights = has_label(y).astype(values.dtype)
    return jnp.sum(values * weights, axis=axes) / jnp.maximum(jnp.sum(weights, axis=axes), 1)


def mean_if_joint(values: jax.Array, joint: bool) -> jax.Array:
    """Returns (B,) values; if ``joint``, every entry is the mean over the batch."""
    # Adding zeros keeps the sharding of values that are divided among devices.
    return full_like(values, 0) + jnp.mean(values) if joint else values
