"""Loss, gradient and success of an attack at a batch of points."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import Criterion, mean_if_joint, success_share
from steinnorm.attacks._geometry import all_in_example
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks.losses import per_example


class LossAndGradient(NamedTuple):
    """Loss, success and gradient at a batch of points.

    Attributes:
      loss: the loss that the attack increases, (B,).
      share: share of each example's labels on which the attack succeeds, (B,).
      gradient: gradient of the batch's summed loss, (B, ...); for saturating losses up to a
        positive factor (``steinnorm.attacks.losses``).
    """

    loss: jax.Array
    share: jax.Array
    gradient: jax.Array

    def not_finite(self) -> jax.Array:
        """Returns which examples have a NaN or infinite loss or gradient, (B,) bool."""
        return ~(all_in_example(jnp.isfinite(self.gradient)) & jnp.isfinite(self.loss))

    def zero_gradients(self) -> jax.Array:
        """Returns which examples have an all-zero gradient, (B,) bool."""
        return all_in_example(self.gradient == 0)


@functools.partial(jax.jit, static_argnames=("loss", "joint"))
def loss_and_gradient(
    model: jax.tree_util.Partial,
    x: jax.Array,
    criterion: Criterion,
    loss_criterion: Criterion,
    *,
    loss: str,
    joint: bool = False,
) -> tuple[LossAndGradient, jax.Array]:
    """Runs one forward and one backward pass, compiled once for all attacks.

    Args:
      model: function from inputs to logits, as a pytree.
      x: points (B, ...).
      criterion: decides where the attack succeeds.
      loss_criterion: criterion of the loss; it may differ, as in runs towards several targets.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``.
      joint: whether examples depend on each other; each then gets the batch's mean loss and share.

    Returns:
      Loss, success and gradient, and the logits (B, *S, K).
    """

    def total(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        logits = traced_logits(model, images)
        losses = per_example(loss, logits, loss_criterion, joint=joint)
        return jnp.sum(losses), (losses, success_share(logits, criterion), logits)

    gradient, (losses, share, logits) = jax.grad(total, has_aux=True)(x)
    evaluation = LossAndGradient(
        mean_if_joint(losses, joint), mean_if_joint(share, joint), gradient
    )
    return evaluation, logits
