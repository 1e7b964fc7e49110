"""Losses that an attack increases: logits (B, *S, K) and a ``Criterion`` to (B, *S).

With a target they grow as the model comes nearer to it.  All are defined for K = 2, but for DLR,
which needs three logits, and four with a target; the margin does without.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from steinnorm.attacks import pixel_losses
from steinnorm.attacks._criterion import Criterion, mean_over_labels, right_labels

Loss = Callable[[jax.Array, Criterion], jax.Array]

_TINY = 1e-12


def cross_entropy(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Cross-entropy in nats."""
    if criterion.target is None:
        return -_at(jax.nn.log_softmax(logits), right_labels(criterion.y))
    return _at(jax.nn.log_softmax(logits), criterion.target)


def margin(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """The best wrong logit minus the right one; positive where the model errs.

    Unlike the cross-entropy its gradient does not vanish where the model is very sure (Carlini &
    Wagner 2017).  With a target: its logit minus the best other one.
    """
    if criterion.target is not None:
        return _at(logits, criterion.target) - _best_but(logits, criterion.target)
    y = right_labels(criterion.y)
    return _best_but(logits, y) - _at(logits, y)


def dlr(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Difference of logits ratio (Croce & Hein 2020, equations 6 and 7): no scale changes it.

    The margin over z1 - z3, in which z1 >= z2 >= ... are the logits in order; with a target, its
    logit minus the right one, over z1 - (z3 + z4) / 2.
    """
    y = right_labels(criterion.y)
    top = jax.lax.top_k(logits, min(4, logits.shape[-1]))[0]
    if criterion.target is None:
        return margin(logits, criterion) / (top[..., 0] - top[..., 2] + _TINY)
    third = 0.5 * (top[..., 2] + top[..., 3])
    return (_at(logits, criterion.target) - _at(logits, y)) / (top[..., 0] - third + _TINY)


def kl(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Kullback-Leibler divergence in nats of the prediction from that of the clean input.

    After TRADES (Zhang et al. 2019).  It is flat at the clean input itself, so that it needs a
    random start.
    """
    assert criterion.reference is not None  # ``check_loss`` and ``Criterion`` see to it
    clean = jax.nn.log_softmax(criterion.reference)
    return jnp.sum(jnp.exp(clean) * (clean - jax.nn.log_softmax(logits)), axis=-1)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "kl": kl,
    **pixel_losses.LOSSES,
}
"""Name -> loss."""

_WITH_TARGET = ("cross_entropy", "margin", "dlr")
_WITH_REFERENCE = ("kl",)


def per_example(name: str, logits: jax.Array, criterion: Criterion) -> jax.Array:
    """The loss of that name, mean over an example's known labels, (B,)."""
    return mean_over_labels(LOSSES[name](logits, criterion), criterion.y)


def needs_reference(name: str) -> bool:
    """Whether the loss measures the change from the clean logits."""
    return name in _WITH_REFERENCE


def check_loss(name: str, classes: int, label_axes: int, *, targeted: bool) -> None:
    """Refuses a loss that is not defined for what is attacked.

    Args:
      name: of the loss.
      classes: K.
      label_axes: 0 for class labels, 2 for label maps.
      targeted: whether the attack has a target.

    Raises:
      ValueError: saying what to take instead.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {name!r}")
    needed = 4 if targeted else 3
    if name == "dlr" and classes < needed:
        kind = "targeted dlr" if targeted else "dlr"
        raise ValueError(f"{kind} needs {needed} logits, got {classes}; take the margin instead")
    if targeted and name not in _WITH_TARGET:
        raise ValueError(f"{name} has no target; with one, take {', '.join(_WITH_TARGET)}")
    if name in pixel_losses.LOSSES and not label_axes:
        raise ValueError(f"{name} is for a label per pixel; got one per example")


def _at(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def _best_but(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The largest logit but that of the label."""
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    is_label = jnp.expand_dims(classes, tuple(range(labels.ndim))) == labels[..., None]
    return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
