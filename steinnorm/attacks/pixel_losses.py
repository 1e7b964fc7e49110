"""Losses for a label per pixel: logits (B, H, W, K) and a ``Criterion`` to (B, H, W).

All of them turn the attack towards the pixels that are still right.  A loss that leaves out pixels
falls when the attack succeeds at one, so that it cannot tell a better point from a worse: such
losses have the gradient of the weighted loss and the value of the plain one, as the authors of SEA
track it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import Criterion, right_labels

_LOG_2 = 0.6931471805599453


def segpgd(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Cross-entropy that turns from the right pixels to all (Gu et al. 2022, arXiv 2207.12391).

    The gradient is weighted by 1 - c at right pixels and by c at wrong ones, c being half of the
    share of the steps that are done (equations 5 and 6 there).
    """
    plain = _cross_entropy(logits, criterion)
    late = 0.5 * criterion.progress
    return _with_value(plain, jnp.where(_right(logits, criterion), 1 - late, late) * plain)


def masked_cross_entropy(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Cross-entropy of the pixels that are still right (Croce et al. 2023, arXiv 2306.12941)."""
    plain = _cross_entropy(logits, criterion)
    return _with_value(plain, jnp.where(_right(logits, criterion), plain, 0))


def masked_spherical(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Minus the right logit of logits of unit length, at right pixels (Croce et al. 2023).

    The length of the logits has no part in it, and so a sure model does not hide its gradient.
    A single logit has no direction but its sign, so that the gradient is zero there.
    """
    squares = jnp.sum(logits**2, axis=-1)
    nonzero = squares > 0
    length = jnp.sqrt(jnp.where(nonzero, squares, 1))
    plain = -_right_one(logits, criterion) / length
    return _with_value(plain, jnp.where(_right(logits, criterion) & nonzero, plain, 0))


def js(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Jensen-Shannon divergence in nats of the prediction and the label (Croce et al. 2023).

    At most log 2: the pull of a pixel fades as it becomes wrong, without a mask.  It hangs on the
    right label's probability p alone: log 2 + (p log p - (1 + p) log(1 + p)) / 2.
    """
    log_p = -_cross_entropy(logits, criterion)
    p = jnp.exp(log_p)
    return _LOG_2 + 0.5 * (p * log_p - (1 + p) * jnp.log1p(p))


LOSSES: dict[str, Callable[[jax.Array, Criterion], jax.Array]] = {
    "segpgd": segpgd,
    "js": js,
    "masked_cross_entropy": masked_cross_entropy,
    "masked_spherical": masked_spherical,
}
"""Name -> loss."""


def _right_one(values: jax.Array, criterion: Criterion) -> jax.Array:
    return jnp.take_along_axis(values, right_labels(criterion.y)[..., None], axis=-1)[..., 0]


def _cross_entropy(logits: jax.Array, criterion: Criterion) -> jax.Array:
    return -_right_one(jax.nn.log_softmax(logits), criterion)


def _right(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Where the prediction is right, bool, which has no gradient; never at void pixels."""
    return jnp.argmax(logits, axis=-1) == criterion.y


def _with_value(value: jax.Array, loss: jax.Array) -> jax.Array:
    """The gradient of ``loss`` and the value of ``value``."""
    return loss + jax.lax.stop_gradient(value - loss)
