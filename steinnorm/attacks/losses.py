"""Losses that an attack increases: logits (B, *S, K) and a ``Criterion`` to (B,).

With a target they grow as the model comes nearer to it. All are defined for K = 2, but for DLR,
which needs three logits, and four with a target; the margin does without.

Cross-entropy and its relatives saturate: where the model is sure, what floating point leaves of
1 - p is rounding of either sign, and its gradient is noise. So their gradients are not those that
automatic differentiation would find. Each saturating loss gives its derivative by the logits as a
direction, computed without cancellation, and the logarithm of a scale. Scales are made relative to
the largest one of the labels that a gradient sums over: of the example's own pixels, or of the
whole batch where an example's logits depend on the others. That is the gradient of the loss but
for one positive factor, which no attack here looks at, and it never vanishes by rounding.

Where a gradient sums over many labels, the weights between them matter, and those of a sure model
are no help: exp(-1000) beside exp(-100), it follows the one label that is least sure. There the
logits are divided by a temperature (after Carlini & Wagner 2016), found once from the clean logits,
at which the median label's lead is 1 nat; where it is less, the temperature is 1.

Values saturate as well: of a model that is sure enough all losses round to 0, and an attack that
compares them learns nothing. So it compares logarithms of mean losses, in which they stay apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import (
    Criterion,
    for_batch,
    known,
    mean_over_labels,
    right_labels,
)

_TINY = 1e-12
_LOG_2 = 0.6931471805599453
_LEAD = 1.0  # nats by which the median label may lead before logits are divided
_LOWEST = -1e30  # logarithm of no loss at all; finite, as infinities mean a broken model


class Saturating(NamedTuple):
    """A loss and its derivative by the logits, exp(log_scale) * direction, kept apart.

    Attributes:
      value: of the loss, (B, *S).
      direction: (B, *S, K), its largest magnitude being about 1.
      log_scale: (B, *S); minus infinity where the label has no part in the gradient.
      log_value: logarithm of a loss that falls to 0 where the model is sure, (B, *S), without
        underflow; None of a loss that does not.
    """

    value: jax.Array
    direction: jax.Array
    log_scale: jax.Array
    log_value: jax.Array | None = None


Loss = Callable[[jax.Array, Criterion], jax.Array | Saturating]
"""Maps logits (B, *S, K) to losses (B, *S)."""


def cross_entropy(logits: jax.Array, criterion: Criterion) -> Saturating:
    """Returns the cross-entropy in nats; with a target, minus that of the target."""
    if criterion.target is None:
        lead, direction = _lead_of_others(logits, right_labels(criterion.y))
        value, log_value = jax.nn.softplus(lead), _log_softplus(lead)
        return Saturating(value, direction, jax.nn.log_sigmoid(lead), log_value)
    lead, direction = _lead_of_others(logits, criterion.target)
    return Saturating(-jax.nn.softplus(lead), -direction, jax.nn.log_sigmoid(lead))


def margin(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns the best wrong logit minus the right one; positive where the model errs.

    It does not saturate (Carlini & Wagner 2017). With a target: its logit minus the best other one.
    """
    if criterion.target is not None:
        return _at(logits, criterion.target) - _best_but(logits, criterion.target)
    y = right_labels(criterion.y)
    return _best_but(logits, y) - _at(logits, y)


def dlr(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns the difference of logits ratio (Croce & Hein 2020b, equations 6 and 7).

    No scale of the logits changes it: the margin over z1 - z3, in which z1 >= z2 >= ... are the
    logits in order; with a target, its logit minus the right one, over z1 - (z3 + z4) / 2.
    """
    y = right_labels(criterion.y)
    top = jax.lax.top_k(logits, min(4, logits.shape[-1]))[0]
    if criterion.target is None:
        return margin(logits, criterion) / (top[..., 0] - top[..., 2] + _TINY)
    third = 0.5 * (top[..., 2] + top[..., 3])
    lead = _at(logits, criterion.target) - _at(logits, y)
    return lead / (top[..., 0] - third + _TINY)


def kl(logits: jax.Array, criterion: Criterion) -> Saturating:
    """Returns the Kullback-Leibler divergence in nats of the prediction from the clean one.

    After TRADES (Zhang et al. 2019). It is flat at the clean input itself, so that it needs a
    random start. Where the model is sure, p and q of the clean input's likeliest class c are both
    nearly 1: their logarithms come from the other classes, and of the derivative p - q the entry of
    c is minus the sum of the others.
    """
    assert criterion.reference is not None  # ``check_loss`` and ``Problem`` see to it
    sure = jnp.argmax(criterion.reference, axis=-1)
    at_sure = _is_label(logits, sure)
    lead_p, lead_q = (_lead_of_others(z, sure)[0] for z in (logits, criterion.reference))
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(criterion.reference)
    scale = jnp.minimum(jnp.maximum(lead_p, lead_q), 0)  # 1 - p and 1 - q are at most exp(scale)
    p, q = (jnp.where(at_sure, 0, jnp.exp(log - scale[..., None])) for log in (log_p, log_q))
    kept = jnp.exp(_log_softplus(lead_p) - scale) - jnp.exp(_log_softplus(lead_q) - scale)
    others = jnp.sum(q * jnp.where(at_sure, 0, log_q - log_p), axis=-1)
    relative = jnp.exp(-jax.nn.softplus(lead_q)) * kept + others
    direction = jnp.where(at_sure, -jnp.sum(p - q, axis=-1, keepdims=True), p - q)
    log_value = scale + jnp.log(jnp.maximum(relative, 0))
    return Saturating(jnp.exp(scale) * relative, direction, scale, log_value)


def segpgd(logits: jax.Array, criterion: Criterion) -> Saturating:
    """Returns a cross-entropy that turns from the right pixels to all (Gu et al. 2022).

    arXiv 2207.12391, equations 5 and 6: the gradient is weighted by 1 - c at right pixels and by
    c at wrong ones, c being half of the share of the steps that are done. The value is that of the
    plain cross-entropy: a weighted one falls as pixels become wrong, and cannot tell a better point
    from a worse.
    """
    plain = cross_entropy(logits, criterion)
    late = jnp.asarray(0.5 * criterion.progress, logits.dtype)
    weight = jnp.log(jnp.where(_right(logits, criterion), 1 - late, late))
    return plain._replace(log_scale=plain.log_scale + weight)


def masked_cross_entropy(logits: jax.Array, criterion: Criterion) -> Saturating:
    """Returns the cross-entropy of the pixels that are still right (Croce et al. 2023).

    arXiv 2306.12941; the value is that of all pixels, as the authors track it.
    """
    plain = cross_entropy(logits, criterion)
    right = _right(logits, criterion)
    return plain._replace(log_scale=jnp.where(right, plain.log_scale, -jnp.inf))


def masked_spherical(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns minus the right logit of logits of unit length, at right pixels (Croce et al. 2023).

    The length of the logits has no part in it, and so a sure model does not hide its gradient. A
    single logit has no direction but its sign, so that the gradient is zero there.
    """
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(logits), axis=-1, keepdims=True))
    logits = logits / jnp.where(peak > 0, peak, 1)
    squares = jnp.sum(jnp.square(logits), axis=-1)
    length = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    plain = -_at(logits, right_labels(criterion.y)) / length
    followed = jnp.where(_right(logits, criterion) & (squares > 0), plain, 0)
    return _with_gradient_of(plain, followed)


def js(logits: jax.Array, criterion: Criterion) -> Saturating:
    """Returns the Jensen-Shannon divergence in nats of prediction and label (Croce et al. 2023).

    At most log 2: the pull of a pixel fades as it becomes wrong, without a mask. It depends on the
    right label's probability p alone: log 2 + (p log p - (1 + p) log(1 + p)) / 2.
    """
    lead, direction = _lead_of_others(logits, right_labels(criterion.y))
    log_p, log_rest = -jax.nn.softplus(lead), jax.nn.log_sigmoid(lead)
    p, rest = jnp.exp(log_p), jnp.exp(log_rest)
    far = 0.5 * (p * log_p - (1 + p) * jnp.log1p(p)) + _LOG_2
    # Near p = 1 it is 0.5 log(2) (1 - p) + (1 - p)^2 / 8 + ..., which the sum above cannot show.
    near = 0.5 * _LOG_2 + rest / 8
    value = jnp.where(rest < 1e-3, near * rest, far)
    log_value = jnp.where(rest < 1e-3, log_rest + jnp.log(near), jnp.log(far))
    # By log p it falls with p (log(1 + p) - log p) / 2, and log p by the lead with 1 - p.
    slope = jnp.log(0.5 * (jnp.log1p(p) - log_p))
    return Saturating(value, direction, log_p + slope + log_rest, log_value)


_PER_PIXEL: dict[str, Loss] = {
    "segpgd": segpgd,
    "js": js,
    "masked_cross_entropy": masked_cross_entropy,
    "masked_spherical": masked_spherical,
}
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "kl": kl,
    **_PER_PIXEL,
}
"""Name -> loss."""

_WITH_TARGET = ("cross_entropy", "margin", "dlr")
_WITH_REFERENCE = ("kl",)
_SATURATING = ("cross_entropy", "kl", "segpgd", "masked_cross_entropy", "js")


def per_label(
    name: str, logits: jax.Array, criterion: Criterion, *, joint: bool = False
) -> jax.Array:
    """Returns the loss of that name for each label, (B, *S), with a gradient that can be followed.

    Args:
      name: of the loss.
      logits: (B, *S, K).
      criterion: what the attack is after.
      joint: whether examples depend on each other, so that one gradient sums over all of them.
    """
    logits, criterion = _tempered(name, logits, criterion)
    loss = LOSSES[name](logits, criterion)
    if not isinstance(loss, Saturating):
        return loss
    return _with_gradient_of(loss.value, _followed(loss, logits, criterion, joint))


def per_example(
    name: str, logits: jax.Array, criterion: Criterion, *, joint: bool = False
) -> jax.Array:
    """Returns a number for each example, (B,), that grows with its mean loss over known labels.

    For comparisons: of losses that fall to 0 it is the logarithm. The gradient is that of
    ``per_label``.

    Args:
      name: of the loss.
      logits: (B, *S, K).
      criterion: what the attack is after.
      joint: whether examples depend on each other; every one then gets the number of the batch.
    """
    logits, criterion = _tempered(name, logits, criterion)
    loss, y = LOSSES[name](logits, criterion), criterion.y
    if not isinstance(loss, Saturating):
        return for_batch(mean_over_labels(loss, y), joint)
    followed = mean_over_labels(_followed(loss, logits, criterion, joint), y)
    if loss.log_value is None:
        value = for_batch(mean_over_labels(loss.value, y), joint)
    else:
        value = _log_mean(loss.log_value, y, joint)
    return _with_gradient_of(value, followed)


def temperature_of(logits: jax.Array, y: jax.Array, *, joint: bool) -> jax.Array:
    """Returns the temperature of each example, or of the batch, at least 1.

    Args:
      logits: of the clean inputs, (B, *S, K).
      y: right labels, (B, *S).
      joint: one temperature for the whole batch, whose examples depend on each other.
    """
    lead, _ = _lead_of_others(logits, right_labels(y))
    size = jnp.where(known(y), jnp.abs(lead), jnp.nan)
    placed = jax.typeof(size).sharding
    if any(axis is not None for axis in placed.spec):  # on an explicit mesh no split axis is sorted
        size = jax.sharding.reshard(size, placed.update(spec=(None,) * size.ndim))
    axes = None if joint else tuple(range(1, y.ndim))
    median = jnp.nanmedian(size, axis=axes)
    return jnp.maximum(jnp.where(jnp.isfinite(median), median, 0) / _LEAD, 1)


def saturates(name: str) -> bool:
    """Returns whether the loss of that name does."""
    return name in _SATURATING


def needs_reference(name: str) -> bool:
    """Returns whether the loss measures the change from the clean logits."""
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
    if name in _PER_PIXEL and not label_axes:
        raise ValueError(f"{name} is for a label per pixel; got one per example")


def _tempered(name: str, logits: jax.Array, criterion: Criterion) -> tuple[jax.Array, Criterion]:
    """Divides the logits, and those of the clean inputs, by the temperature."""
    if criterion.temperature is None or not saturates(name):
        return logits, criterion
    divisor = criterion.temperature.astype(logits.dtype)
    if divisor.ndim:
        divisor = divisor.reshape(divisor.shape + (1,) * (logits.ndim - 1))
    reference = criterion.reference
    if reference is not None:
        reference = reference / divisor
    return logits / divisor, criterion._replace(reference=reference)


def _followed(loss: Saturating, logits: jax.Array, criterion: Criterion, joint: bool) -> jax.Array:
    """Returns what has the loss's derivative but for a factor, (B, *S)."""
    summed_over = tuple(range(0 if joint else 1, loss.value.ndim))
    scale = jnp.where(known(criterion.y), loss.log_scale, -jnp.inf)
    largest = jnp.max(scale, axis=summed_over, keepdims=True) if summed_over else scale
    weight = jnp.where(scale == -jnp.inf, 0, jnp.exp(scale - largest))
    slopes = jax.lax.stop_gradient(weight[..., None] * loss.direction)
    return jnp.sum(slopes * logits, axis=-1)


def _log_mean(log_values: jax.Array, y: jax.Array, joint: bool) -> jax.Array:
    """Returns the logarithm of each example's, or the batch's, mean over known labels, (B,)."""
    some = known(y)
    axes = tuple(range(0 if joint else 1, y.ndim))
    floor = jnp.asarray(_LOWEST, log_values.dtype)
    kept = jnp.where(some, jnp.maximum(log_values, floor), -jnp.inf)
    if axes:
        count = jnp.maximum(jnp.sum(some, axis=axes), 1).astype(log_values.dtype)
        kept = jnp.maximum(jax.nn.logsumexp(kept, axis=axes) - jnp.log(count), floor)
    labels = tuple(range(1, y.ndim))
    return jnp.zeros_like(jnp.max(log_values, axis=labels) if labels else log_values) + kept


def _log_softplus(lead: jax.Array) -> jax.Array:
    """Returns log(log(1 + exp(lead))), which for small leads is the lead itself."""
    small = lead < -15
    return jnp.where(small, lead, jnp.log(jax.nn.softplus(jnp.where(small, 0, lead))))


def _lead_of_others(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns by how much all other logits together lead over the label's, and the derivative.

    Together: the logarithm of the sum of their exponentials. So 1 - p = sigmoid(lead), without
    cancellation.

    Returns:
      The lead (B, *S) and its derivative by the logits (B, *S, K).
    """
    is_label = _is_label(logits, labels)
    others = jnp.where(is_label, -jnp.inf, logits)
    lead = jax.nn.logsumexp(others, axis=-1) - _at(logits, labels)
    return lead, jnp.where(is_label, -1, jax.nn.softmax(others, axis=-1))


def _with_gradient_of(value: jax.Array, followed: jax.Array) -> jax.Array:
    """Returns ``value`` with the gradient of ``followed``; the difference is exactly zero."""
    return jax.lax.stop_gradient(value) + (followed - jax.lax.stop_gradient(followed))


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns where a logit is that of the label, (B, *S, K) bool."""
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    return jnp.expand_dims(classes, tuple(range(labels.ndim))) == labels[..., None]


def _at(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def _best_but(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the largest logit but that of the label."""
    return jnp.max(jnp.where(_is_label(logits, labels), -jnp.inf, logits), axis=-1)


def _right(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns where the prediction is right, bool, without a gradient; never at void pixels."""
    return jnp.argmax(logits, axis=-1) == criterion.y
