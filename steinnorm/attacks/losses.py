"""Losses that an attack increases: functions of logits (B, *S, K) and a ``Criterion`` to (B,).

With a target they increase as the prediction approaches it. All are defined for K = 2 except DLR,
which needs three logits, or four with a target; the margin can replace it.

Cross-entropy and similar losses saturate: for a confident model 1 - p consists of rounding errors,
and so does the gradient that automatic differentiation finds. Therefore each saturating loss
defines its derivative with respect to the logits itself, as a direction that is computed without
cancellation and the logarithm of a scale. Scales are taken relative to the largest scale of all
labels that the gradient sums over: those of one example, or of the whole batch if an example's
logits depend on the others. The result is the gradient of the loss up to one positive factor,
which no attack here uses, and rounding never makes it vanish.

If a gradient sums over many labels, their relative weights matter: ``_many_labels``.

Values saturate as well: for a confident model all losses round to 0 and cannot be compared.
Therefore attacks compare logarithms of mean losses, which stay distinguishable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import (
    Criterion,
    has_label,
    index_labels,
    mean_if_joint,
    mean_over_labels,
)
from steinnorm.attacks._explicit_meshes import full_like

_TINY = 1e-12
_LOG_2 = 0.6931471805599453
_BEYOND = 0.01  # slope beyond the ceiling; not 0, so that no gradient vanishes
_LOWEST = -1e30  # logarithm of a loss of zero; finite, because infinities indicate a broken model


class SaturatingLoss(NamedTuple):
    """A loss and its derivative with respect to the logits, exp(log_scale) * direction.

    Attributes:
      value: value of the loss, (B, *S).
      direction: (B, *S, K), with a largest magnitude of about 1.
      log_scale: (B, *S); minus infinity for labels that do not contribute to the gradient.
      log_value: logarithm of the loss without underflow, (B, *S), for losses that approach 0 if the
        model is confident; None for other losses.
    """

    value: jax.Array
    direction: jax.Array
    log_scale: jax.Array
    log_value: jax.Array | None = None


Loss = Callable[[jax.Array, Criterion], jax.Array | SaturatingLoss]
"""Maps logits (B, *S, K) to losses (B, *S)."""


def cross_entropy(logits: jax.Array, criterion: Criterion) -> SaturatingLoss:
    """Returns the cross-entropy in nats; with a target, minus the cross-entropy of the target."""
    if criterion.target is None:
        lead, direction = lead_of_others(logits, index_labels(criterion.y))
        value, log_value = jax.nn.softplus(lead), _log_softplus(lead)
        return SaturatingLoss(value, direction, jax.nn.log_sigmoid(lead), log_value)
    lead, direction = lead_of_others(logits, criterion.target)
    return SaturatingLoss(-jax.nn.softplus(lead), -direction, jax.nn.log_sigmoid(lead))


def margin(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns the largest wrong logit minus the true one; positive if the model errs.

    It does not saturate (Carlini & Wagner 2017). With a target, it is the target's logit minus the
    largest other one.
    """
    if criterion.target is not None:
        return _logit_of(logits, criterion.target) - _best_other_logit(logits, criterion.target)
    y = index_labels(criterion.y)
    return _best_other_logit(logits, y) - _logit_of(logits, y)


def dlr(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns the difference of logits ratio (Croce & Hein 2020b, equations 6 and 7).

    It is the margin / (z1 - z3), where z1 >= z2 >= ... are the sorted logits, and does not depend
    on their scale. With a target, the divisor is z1 - (z3 + z4) / 2; the margin remains that to all
    other classes, because an attack that aims for a target has to pass them all.
    """
    top = jax.lax.top_k(logits, min(4, logits.shape[-1]))[0]
    third = top[..., 2] if criterion.target is None else 0.5 * (top[..., 2] + top[..., 3])
    return margin(logits, criterion) / (top[..., 0] - third + _TINY)


def targeted_dlr(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns (target's logit - true logit) / (z1 - (z3 + z4) / 2) (Croce & Hein 2020b, eq. 7).

    It leads from the true class towards another one, where any wrong class counts.
    """
    assert criterion.target is not None
    top = jax.lax.top_k(logits, 4)[0]
    lead = _logit_of(logits, criterion.target) - _logit_of(logits, index_labels(criterion.y))
    return lead / (top[..., 0] - 0.5 * (top[..., 2] + top[..., 3]) + _TINY)


def kl(logits: jax.Array, criterion: Criterion) -> SaturatingLoss:
    """Returns the Kullback-Leibler divergence in nats of the prediction from the clean one.

    It is the loss of TRADES (Zhang et al. 2019). Its gradient is zero at the clean input, so that
    it needs a random start. If the model is confident, p and q of the clean input's likeliest class
    c are both nearly 1; therefore their logarithms are computed from the other classes, and the
    entry of c in the derivative p - q as minus the sum of the others.
    """
    assert criterion.reference is not None  # guaranteed by ``criterion_for``
    likeliest = jnp.argmax(criterion.reference, axis=-1)
    is_likeliest = _is_label(logits, likeliest)
    lead_p, lead_q = (lead_of_others(z, likeliest)[0] for z in (logits, criterion.reference))
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(criterion.reference)
    scale = jnp.minimum(jnp.maximum(lead_p, lead_q), 0)  # 1 - p and 1 - q are at most exp(scale)
    p, q = (jnp.where(is_likeliest, 0, jnp.exp(log - scale[..., None])) for log in (log_p, log_q))
    kept = jnp.exp(_log_softplus(lead_p) - scale) - jnp.exp(_log_softplus(lead_q) - scale)
    others = jnp.sum(q * jnp.where(is_likeliest, 0, log_q - log_p), axis=-1)
    relative = jnp.exp(-jax.nn.softplus(lead_q)) * kept + others
    direction = jnp.where(is_likeliest, -jnp.sum(p - q, axis=-1, keepdims=True), p - q)
    log_value = scale + jnp.log(jnp.maximum(relative, 0))
    return SaturatingLoss(jnp.exp(scale) * relative, direction, scale, log_value)


def segpgd(logits: jax.Array, criterion: Criterion) -> SaturatingLoss:
    """Returns a cross-entropy whose weight moves from right pixels to all pixels (Gu et al. 2022).

    arXiv 2207.12391, equations 5 and 6: the gradient has weight 1 - c at right pixels and c at
    wrong ones, where c is half of completed steps / all steps. The value is that of the unweighted
    cross-entropy, because a weighted one decreases as pixels become wrong, and so cannot rank
    points.
    """
    plain = cross_entropy(logits, criterion)
    wrong_weight = jnp.asarray(0.5 * criterion.step_fraction, logits.dtype)
    weight = jnp.log(jnp.where(_is_right(logits, criterion), 1 - wrong_weight, wrong_weight))
    return plain._replace(log_scale=plain.log_scale + weight)


def masked_cross_entropy(logits: jax.Array, criterion: Criterion) -> SaturatingLoss:
    """Returns the cross-entropy of the pixels that are still right (Croce et al. 2023).

    arXiv 2306.12941; the value is that of all pixels, as in the authors' code.
    """
    plain = cross_entropy(logits, criterion)
    right = _is_right(logits, criterion)
    return plain._replace(log_scale=jnp.where(right, plain.log_scale, -jnp.inf))


def masked_spherical(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns minus the true logit after scaling the logits to unit length (Croce et al. 2023).

    The gradient is that of right pixels only. It does not depend on the length of the logits, so
    that a confident model cannot hide it. For a single logit, whose direction is just its sign, the
    gradient is zero.
    """
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(logits), axis=-1, keepdims=True))
    logits = logits / jnp.where(peak > 0, peak, 1)
    squares = jnp.sum(jnp.square(logits), axis=-1)
    length = jnp.sqrt(jnp.where(squares > 0, squares, 1))
    plain = -_logit_of(logits, index_labels(criterion.y)) / length
    surrogate = jnp.where(_is_right(logits, criterion) & (squares > 0), plain, 0)
    return _with_gradient_of(plain, surrogate)


def js(logits: jax.Array, criterion: Criterion) -> SaturatingLoss:
    """Returns the Jensen-Shannon divergence in nats of prediction and label (Croce et al. 2023).

    It is at most log 2, so that a pixel's gradient fades as it becomes wrong, without a mask. It
    depends only on the true label's probability p: log 2 + (p log p - (1 + p) log(1 + p)) / 2.
    """
    lead, direction = lead_of_others(logits, index_labels(criterion.y))
    log_p, log_rest = -jax.nn.softplus(lead), jax.nn.log_sigmoid(lead)
    p, rest = jnp.exp(log_p), jnp.exp(log_rest)
    far = 0.5 * (p * log_p - (1 + p) * jnp.log1p(p)) + _LOG_2
    # Near p = 1 the sum above cancels; the series is 0.5 log(2) (1 - p) + (1 - p)^2 / 8 + ...
    near = 0.5 * _LOG_2 + rest / 8
    value = jnp.where(rest < 1e-3, near * rest, far)
    log_value = jnp.where(rest < 1e-3, log_rest + jnp.log(near), jnp.log(far))
    # d/d(log p) = -p (log(1 + p) - log p) / 2, and d(log p)/d(lead) = -(1 - p).
    slope = jnp.log(0.5 * (jnp.log1p(p) - log_p))
    return SaturatingLoss(value, direction, log_p + slope + log_rest, log_value)


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
"""Losses by name."""
TOWARDS_CLASSES: dict[str, Loss] = {"targeted_dlr": targeted_dlr, "targeted_margin": margin}
"""Losses of runs towards one class each, the criterion's target, where any wrong class counts."""
_ALL = {**LOSSES, **TOWARDS_CLASSES}

_WITH_TARGET = ("cross_entropy", "margin", "dlr")
_WITH_REFERENCE = ("kl",)
_SATURATING = ("cross_entropy", "kl", "segpgd", "masked_cross_entropy", "js")


def per_label(
    name: str, logits: jax.Array, criterion: Criterion, *, joint: bool = False
) -> jax.Array:
    """Returns the loss for each label, (B, *S), with a gradient that does not vanish by rounding.

    Args:
      name: name of the loss.
      logits: (B, *S, K).
      criterion: labels and what else the loss needs.
      joint: whether examples depend on each other, so that one gradient sums over all of them.
    """
    logits, criterion = _divided_by_temperature(name, logits, criterion)
    loss = _ALL[name](logits, criterion)
    if not isinstance(loss, SaturatingLoss):
        return _below_ceiling(loss, criterion)
    return _with_gradient_of(loss.value, _surrogate(loss, logits, criterion, joint))


def per_example(
    name: str, logits: jax.Array, criterion: Criterion, *, joint: bool = False
) -> jax.Array:
    """Returns a value for each example, (B,), that increases with its mean loss over its labels.

    It serves comparisons. For losses that approach 0 it is the logarithm of the mean. The gradient
    is that of the mean of ``per_label``, up to a positive factor.

    Args:
      name: name of the loss.
      logits: (B, *S, K).
      criterion: labels and what else the loss needs.
      joint: whether examples depend on each other; each then gets the value of the batch.
    """
    logits, criterion = _divided_by_temperature(name, logits, criterion)
    loss, y = _ALL[name](logits, criterion), criterion.y
    if not isinstance(loss, SaturatingLoss):
        return mean_if_joint(mean_over_labels(_below_ceiling(loss, criterion), y), joint)
    surrogate = mean_over_labels(_surrogate(loss, logits, criterion, joint), y)
    if loss.log_value is None:
        value = mean_if_joint(mean_over_labels(loss.value, y), joint)
    else:
        value = _log_mean(loss.log_value, y, joint)
    return _with_gradient_of(value, surrogate)


def grows_without_end(name: str) -> bool:
    """Returns whether the loss of a label goes on growing once the label is wrong."""
    return name.removeprefix("targeted_") in ("margin", "dlr")


def saturates(name: str) -> bool:
    """Returns whether the loss saturates if the model is confident."""
    return name in _SATURATING


def needs_reference(name: str) -> bool:
    """Returns whether the loss measures the change from the clean logits."""
    return name in _WITH_REFERENCE


def check_loss(name: str, classes: int, label_axes: int, *, targeted: bool) -> None:
    """Refuses a loss that is not defined for these logits and labels.

    Args:
      name: name of the loss.
      classes: number of classes, K.
      label_axes: 0 for class labels, 2 for label maps.
      targeted: whether the attack has a target.

    Raises:
      ValueError: it is not defined; the message says what to use instead.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {name!r}")
    needed = 4 if targeted else 3
    if name == "dlr" and classes < needed:
        kind = "targeted dlr" if targeted else "dlr"
        raise ValueError(f"{kind} needs {needed} logits, got {classes}; take the margin instead")
    if targeted and name not in _WITH_TARGET:
        raise ValueError(f"{name} cannot be targeted; with a target use {', '.join(_WITH_TARGET)}")
    if name in _PER_PIXEL and not label_axes:
        raise ValueError(f"{name} is for a label per pixel; got one per example")


def _divided_by_temperature(
    name: str, logits: jax.Array, criterion: Criterion
) -> tuple[jax.Array, Criterion]:
    """Divides the logits, and those of the clean inputs, by the temperature if there is one."""
    if criterion.temperature is None or not saturates(name):
        return logits, criterion
    divisor = criterion.temperature.astype(logits.dtype)
    if divisor.ndim:
        divisor = divisor.reshape(divisor.shape + (1,) * (logits.ndim - 1))
    reference = criterion.reference
    if reference is not None:
        reference = reference / divisor
    return logits / divisor, criterion._replace(reference=reference)


def _below_ceiling(loss: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns losses (B, *S) that hardly grow beyond the ceiling, if there is one."""
    if criterion.ceiling is None:
        return loss
    ceiling = criterion.ceiling.astype(loss.dtype)
    ceiling = ceiling.reshape(ceiling.shape + (1,) * (loss.ndim - ceiling.ndim))
    return jnp.minimum(loss, ceiling) + _BEYOND * jnp.maximum(loss - ceiling, 0)


def _surrogate(
    loss: SaturatingLoss, logits: jax.Array, criterion: Criterion, joint: bool
) -> jax.Array:
    """Returns values (B, *S) whose gradient is the loss's, up to a positive factor."""
    summed_over = tuple(range(0 if joint else 1, loss.value.ndim))
    scale = jnp.where(has_label(criterion.y), loss.log_scale, -jnp.inf)
    largest = jnp.max(scale, axis=summed_over, keepdims=True) if summed_over else scale
    weight = jnp.where(scale == -jnp.inf, 0, jnp.exp(scale - largest))
    slopes = jax.lax.stop_gradient(weight[..., None] * loss.direction)
    return jnp.sum(slopes * logits, axis=-1)


def _log_mean(log_values: jax.Array, y: jax.Array, joint: bool) -> jax.Array:
    """Returns the logarithm of the mean over each example's labels, or the batch's, (B,)."""
    labelled = has_label(y)
    axes = tuple(range(0 if joint else 1, y.ndim))
    floor = jnp.asarray(_LOWEST, log_values.dtype)
    kept = jnp.where(labelled, jnp.maximum(log_values, floor), -jnp.inf)
    if axes:
        count = jnp.maximum(jnp.sum(labelled, axis=axes), 1).astype(log_values.dtype)
        kept = jnp.maximum(jax.nn.logsumexp(kept, axis=axes) - jnp.log(count), floor)
    labels = tuple(range(1, y.ndim))
    return full_like(jnp.max(log_values, axis=labels) if labels else log_values, 0) + kept


def _log_softplus(lead: jax.Array) -> jax.Array:
    """Returns log(log(1 + exp(lead))), which equals the lead if that is very negative."""
    small = lead < -15
    return jnp.where(small, lead, jnp.log(jax.nn.softplus(jnp.where(small, 0, lead))))


def lead_of_others(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the log-sum-exp of all other logits minus the label's logit, and its derivative.

    With this lead, 1 - p = sigmoid(lead) without cancellation.

    Returns:
      The lead (B, *S) and its derivative by the logits (B, *S, K).
    """
    is_label = _is_label(logits, labels)
    others = jnp.where(is_label, -jnp.inf, logits)
    lead = jax.nn.logsumexp(others, axis=-1) - _logit_of(logits, labels)
    return lead, jnp.where(is_label, -1, jax.nn.softmax(others, axis=-1))


def _with_gradient_of(value: jax.Array, surrogate: jax.Array) -> jax.Array:
    """Returns ``value`` exactly, with the gradient of ``surrogate``."""
    return jax.lax.stop_gradient(value) + (surrogate - jax.lax.stop_gradient(surrogate))


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns which logits are those of the labels, (B, *S, K) bool."""
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    return jnp.expand_dims(classes, tuple(range(labels.ndim))) == labels[..., None]


def _logit_of(values: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]


def _best_other_logit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the largest logit except that of the label."""
    return jnp.max(jnp.where(_is_label(logits, labels), -jnp.inf, logits), axis=-1)


def _is_right(logits: jax.Array, criterion: Criterion) -> jax.Array:
    """Returns where the prediction is right, (B, *S) bool; False at void pixels."""
    return jnp.argmax(logits, axis=-1) == criterion.y
