"""What is measured of a batch outside an attack's steps, each compiled as a whole.

Outside of jit, JAX compiles every single operation for every shape, which takes seconds.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from steinnorm.attacks import _criterion
from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks import _rounding as rounding
from steinnorm.attacks._criterion import Criterion, has_label, mean_if_joint, succeeded
from steinnorm.attacks._many_labels import scales_of
from steinnorm.attacks.losses import per_example
from steinnorm.attacks.threat import Threat

scales = jax.jit(scales_of, static_argnames=("name", "joint"))
outside_box = jax.jit(rounding.outside_box)


@functools.partial(jax.jit, static_argnames="joint")
def success_share(logits: jax.Array, criterion: Criterion, *, joint: bool = False) -> jax.Array:
    """Returns the share of each example's labels on which the attack succeeds, (B,).

    If ``joint``, every entry is the mean over the batch.
    """
    return mean_if_joint(_criterion.success_share(logits, criterion), joint)


@functools.partial(jax.jit, static_argnames=("loss", "joint"))
def share_and_loss(
    logits: jax.Array, criterion: Criterion, loss_criterion: Criterion, *, loss: str, joint: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the share of labels on which the attack succeeds, and the loss; both (B,).

    Args:
      logits: logits (B, *S, K).
      criterion: decides where the attack succeeds.
      loss_criterion: criterion of the loss.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``.
      joint: whether examples depend on each other; the loss is then the batch's.
    """
    share = _criterion.success_share(logits, criterion)
    return share, per_example(loss, logits, loss_criterion, joint=joint)


@jax.jit
def attacked_batch(
    x_adv: jax.Array, x: jax.Array, threat: Threat, logits: jax.Array, criterion: Criterion
) -> tuple[jax.Array, ...]:
    """Measures attacked inputs and their logits.

    Returns:
      Where the attack succeeds, where logits are not finite, the number of labels, the number of
      values that are not finite, the largest distance, the extremes, the distances from the box and
      from the ball.
    """
    return (
        succeeded(logits, criterion),
        ~jnp.isfinite(logits),
        jnp.sum(has_label(criterion.y)),
        jnp.sum(~jnp.isfinite(x_adv)),
        jnp.max(threat.distance(x_adv, x)),
        jnp.min(x_adv),
        jnp.max(x_adv),
        rounding.outside_box(x_adv, threat.bounds),
        rounding.outside_ball(x_adv, x, threat.norm, threat.epsilon, threat.bounds),
    )


@jax.jit
def into_box(x: jax.Array, bounds: geometry.Bounds) -> tuple[jax.Array, jax.Array]:
    """Returns the inputs clipped to the box, and by how much a value is outside at most."""
    return geometry.clip_to_box(x, bounds), rounding.outside_box(x, bounds)


def check_finite_inputs(x: jax.Array) -> None:
    """Refuses NaN and infinite inputs.

    The distance from the box does not tell: XLA's largest value of an array may pass over NaN, on
    CPUs of JAX 0.10 in all but small arrays.

    Raises:
      ValueError: a value is not finite.
    """
    if not bool(_all_finite(x)):
        raise ValueError("x must be finite; got NaN or infinite values")


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x))
