"""What a model says at a point: loss, gradient, and whether the attack has what it wants."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import Criterion, for_batch, share_reached
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks.losses import per_example


class Look(NamedTuple):
    """At a batch of points.

    Attributes:
      loss: (B,), of which the attack wants more.
      share: share of each example's labels where the attack has what it wants, (B,).
      gradient: of the batch's summed loss, (B, ...).
    """

    loss: jax.Array
    share: jax.Array
    gradient: jax.Array

    def not_finite(self) -> jax.Array:
        """Which examples have a loss or a gradient that cannot be followed, (B,) bool."""
        flat = self.gradient.reshape(self.gradient.shape[0], -1)
        return ~(jnp.all(jnp.isfinite(flat), axis=1) & jnp.isfinite(self.loss))

    def vanished(self) -> jax.Array:
        """Which examples have an all-zero gradient, (B,) bool."""
        return jnp.all(self.gradient.reshape(self.gradient.shape[0], -1) == 0, axis=1)


def look(
    model: jax.tree_util.Partial,
    x: jax.Array,
    criterion: Criterion,
    aim: Criterion | None = None,
    *,
    loss: str,
    joint: bool = False,
) -> Look:
    """One forward and one backward pass, compiled once for all attacks.

    Args:
      model: as an argument.
      x: points (B, ...).
      criterion: what the attack wants.
      aim: that of the loss, where it is another one.
      loss: a name of ``steinnorm.attacks.losses.LOSSES``.
      joint: give every example the mean loss and share of the batch.
    """
    return _look(model, x, criterion, criterion if aim is None else aim, loss=loss, joint=joint)


@functools.partial(jax.jit, static_argnames=("loss", "joint"))
def _look(
    model: jax.tree_util.Partial,
    x: jax.Array,
    criterion: Criterion,
    aim: Criterion,
    *,
    loss: str,
    joint: bool,
) -> Look:
    def total(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = traced_logits(model, images)
        losses = per_example(loss, logits, aim)
        return jnp.sum(losses), (losses, share_reached(logits, criterion))

    gradient, (losses, share) = jax.grad(total, has_aux=True)(x)
    return Look(for_batch(losses, joint), for_batch(share, joint), gradient)
