"""Projected gradient descent as a pure function, for use inside ``jit``, ``vmap`` or ``shard_map``.

It is a ``lax.scan``. Around convolutions on a CPU it is several times slower than the Python loop
of ``pgd``; on accelerators it saves the time of launching each step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._arguments import (
    as_array,
    as_number,
    check_broadcasts,
    check_counts,
    check_inputs_form,
    check_key,
    check_labels_form,
    check_size,
)
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._many_labels import needs_scales, scales_of
from steinnorm.attacks._model import (
    LogitsFn,
    as_partial,
    at_least_float32,
    check_logits_shape,
    explained_errors,
    traced_logits,
)
from steinnorm.attacks.losses import check_loss, needs_reference, per_example
from steinnorm.attacks.threat import Threat, check_threat, warn_of_short_reach


def pgd_scan(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 20,
    step_size: Any = None,
    loss: str = "cross_entropy",
    batch_dependent: bool = False,
) -> jax.Array:
    """Returns ``pgd(...).x_adv`` for the same arguments, without checking any values.

    Two things that ``pgd`` finds out from values are left to the caller: whether ``x`` lies in the
    box, and whether logits depend on the batch. ``pgd`` tests the latter and then attacks the batch
    as a whole; here that takes ``batch_dependent=True``.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``, which is not checked.
      y: true labels, integers; as in ``fgsm``, but that they lie in [0, K) is not checked.
      threat: ball and box; its numbers may be traced.
      key: random key of the start; None starts at ``x``.
      steps: gradient steps.
      step_size: absolute step size, in the units of ``x``, or one per channel; it may be traced.
        None means 2.5 * epsilon / steps.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``, except ``kl``.
      batch_dependent: whether an example's logits depend on the rest of the batch, as in a model in
        training mode; inside ``jit`` this cannot be tested.

    Returns:
      The attacked inputs, in the shape and dtype of ``x``; as in ``pgd``, in float32 if ``x`` is
      in half precision, which cannot resolve small steps.

    Raises:
      ValueError: shapes or dtypes of inputs, labels or logits are not as described; steps are below
        1; the step size is negative or not finite; or the loss is not defined for these logits.

    Warns:
      ShortReachWarning: as in ``pgd``, unless radius or step size are traced.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, pgd_scan
      >>> threat = Threat("linf", 0.25)
      >>> attack = jax.jit(functools.partial(pgd_scan, lambda x: 2 * x, threat=threat))
      >>> attack(jnp.array([[0.75, 0.5]]), jnp.array([0]))
      Array([[0.5 , 0.75]], dtype=float32)
    """
    check_threat(threat)
    check_key(key, traced=True)
    check_counts(steps=steps)
    if needs_reference(loss):
        raise ValueError(f"{loss} needs the clean logits; use pgd")
    model = as_partial(logits_fn)
    x, labels, classes = _checked(model, x, y, threat)
    check_loss(loss, classes, labels.ndim - 1, targeted=False)
    size = _step_size(step_size, steps, x, threat)
    scales: tuple[jax.Array | None, jax.Array | None] = None, None
    if needs_scales(loss, labels.ndim - 1, joint=batch_dependent):
        scales = scales_of(loss, traced_logits(model, x), labels, joint=batch_dependent)
    start = x if key is None else threat.random_start(jax.random.fold_in(key, 0), x)

    def step(x_adv: jax.Array, step_fraction: jax.Array) -> tuple[jax.Array, None]:
        criterion = Criterion(labels, None, None, step_fraction, *scales)

        def total(images: jax.Array) -> jax.Array:
            logits = traced_logits(model, images)
            return jnp.sum(per_example(loss, logits, criterion, joint=batch_dependent))

        return threat.step(x_adv, x, jax.grad(total)(x_adv), size), None

    return jax.lax.scan(step, start, jnp.arange(steps, dtype=x.dtype) / steps)[0]


def _checked(
    model: jax.tree_util.Partial, x: Any, y: Any, threat: Threat
) -> tuple[jax.Array, jax.Array, int]:
    """Returns inputs, labels and the number of classes, if shapes and dtypes fit together."""
    x, y = as_array("x", x), as_array("y", y, "an array of integer labels")
    check_inputs_form(x)
    threat.check_shape(x.shape)
    x = at_least_float32(x)
    with explained_errors():
        shape = jax.eval_shape(lambda x: traced_logits(model, x), x).shape
    check_logits_shape(shape, x)
    check_labels_form("y", y, shape)
    return x, y.astype(jnp.int32), shape[-1]


def _step_size(given: Any, steps: int, x: jax.Array, threat: Threat) -> Any:
    """Returns the step size in a form that keeps the dtype of ``x``."""
    if given is None:
        return geometry.as_broadcastable(2.5 * threat.epsilon / steps, x)
    size = as_number("step_size", given)
    check_size("step_size", size)
    check_broadcasts("step_size", size, x.shape[1:], "an example")
    warn_of_short_reach([size] * steps, threat)
    return geometry.as_broadcastable(size, x)
