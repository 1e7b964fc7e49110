"""What a model says at a point: loss, gradient, and whether the attack has what it wants."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import Criterion, for_batch, share_reached
from steinnorm.attacks._geometry import all_in_example
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks.losses import per_example


class LossAndGradient(NamedTuple):
    """At a batch of points.

    Attributes:
      loss: (B,), of which the attack wants more.
      share: share of each example's labels where the attack has what it wants, (B,).
      gradient: of the batch's summed loss, (B, ...); of a saturating loss but for a positive
        factor (``steinnorm.attacks.losses``).
    """

    loss: jax.Array
    share: jax.Array
    gradient: jax.Array

    def not_finite(self) -> jax.Array:
        """Returns which examples have a loss or a gradient that cannot be followed, (B,) bool."""
        return ~(all_in_example(jnp.isfinite(self.gradient)) & jnp.isfinite(self.loss))

    def vanished(self) -> jax.Array:
        """Returns which examples have an all-zero gradient, (B,) bool."""
        return all_in_example(self.gradient == 0)


@functools.partial(jax.jit, static_argnames=("loss", "joint"))
def loss_and_gradient(
    model: jax.tree_util.Partial,
    x: jax.Array,
    criterion: Criterion,
    aim: Criterion,
    *,
    loss: str,
    joint: bool = False,
) -> tuple[LossAndGradient, jax.Array]:
    """Returns one forward and one backward pass, compiled once for all attacks; and the logits.

    Args:
      model: as an argument.
      x: points (B, ...).
      criterion: what the attack wants.
      aim: that of the loss, which may be another one.
      loss: a name of ``steinnorm.attacks.losses.LOSSES``.
      joint: examples depend on each other: every one gets the batch's mean loss and share.
    """

    def total(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        logits = traced_logits(model, images)
        losses = per_example(loss, logits, aim, joint=joint)
        return jnp.sum(losses), (losses, share_reached(logits, criterion), logits)

    gradient, (losses, share, logits) = jax.grad(total, has_aux=True)(x)
    seen = LossAndGradient(for_batch(losses, joint), for_batch(share, joint), gradient)
    return seen, logits
