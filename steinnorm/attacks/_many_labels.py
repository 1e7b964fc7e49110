"""What losses need where one gradient sums over many labels.

These are the pixels of a label map, or the examples of a batch whose logits depend on each other.
Their relative weights then matter, and those of two kinds of losses are useless:

- Cross-entropy and others that saturate: with weights such as exp(-1000) and exp(-100) only the
  least confident label counts. The logits are divided by a temperature (after Carlini & Wagner
  2016), so that the median label's lead is 1 nat; it is at least 1.
- The margin and DLR, which go on growing once a label is wrong: labels that are wrong already are
  pushed further, at the cost of those that are still right. Beyond a ceiling (kappa of Carlini &
  Wagner 2017), the size of the median label's loss on clean inputs, they hardly grow. Lower ones
  are stronger where steps are small, but leave wrong labels so near the boundary that coarse steps
  lose them again.

Both are computed once, from the clean logits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import Criterion, has_label, index_labels
from steinnorm.attacks._explicit_meshes import explicit_sharding
from steinnorm.attacks.losses import grows_without_end, lead_of_others, per_label, saturates

_LEAD = 1.0  # largest lead of the median label, in nats, for which the temperature is 1


def scales_of(
    name: str, logits: jax.Array, y: jax.Array, *, joint: bool
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns the temperature and the ceiling that a loss needs, as a ``Criterion`` has them.

    Args:
      name: name of the loss.
      logits: logits of the clean inputs, (B, *S, K).
      y: true labels, (B, *S).
      joint: whether examples depend on each other; the whole batch then has one scale.
    """
    if not needs_scales(name, y.ndim - 1, joint=joint):
        return None, None
    if saturates(name):
        return temperature_of(logits, y, joint=joint), None
    return None, _ceiling_of(name, logits, y, joint=joint)


def needs_scales(name: str, label_axes: int, *, joint: bool) -> bool:
    """Returns whether a loss has scales: whether it is of such a kind, and there are many labels.

    Args:
      name: name of the loss.
      label_axes: 0 where each example has one label, 2 for label maps.
      joint: whether examples depend on each other.
    """
    return (joint or label_axes > 0) and (saturates(name) or grows_without_end(name))


def temperature_of(logits: jax.Array, y: jax.Array, *, joint: bool) -> jax.Array:
    """Returns the temperature of each example, or of the batch, at least 1.

    Args:
      logits: logits of the clean inputs, (B, *S, K).
      y: true labels, (B, *S).
      joint: whether the whole batch gets one temperature, because its examples depend on each
        other.
    """
    lead, _ = lead_of_others(logits, index_labels(y))
    median = _median(jnp.abs(lead), y, joint)
    return jnp.maximum(jnp.where(jnp.isfinite(median), median, 0) / _LEAD, 1)


def _ceiling_of(name: str, logits: jax.Array, y: jax.Array, *, joint: bool) -> jax.Array:
    """Returns the ceiling of each example, or of the batch; infinite if no label has a loss."""
    loss = per_label(name.removeprefix("targeted_"), logits, Criterion(y))
    median = _median(jnp.abs(loss), y, joint)
    return jnp.where(jnp.isfinite(median), median, jnp.inf)


def _median(size: jax.Array, y: jax.Array, joint: bool) -> jax.Array:
    """Returns the median over the labels of each example, (B,), or of the batch, a scalar."""
    size = jnp.where(has_label(y), size, jnp.nan)
    placed = explicit_sharding(size)
    if placed is not None:  # JAX cannot sort along a sharded axis of an explicit mesh
        size = jax.sharding.reshard(size, placed.update(spec=(None,) * size.ndim))
    return jnp.nanmedian(size, axis=None if joint else tuple(range(1, y.ndim)))
