"""Projected gradient descent as a pure function, for use inside ``jit``, ``vmap`` or ``shard_map``.

It is a ``lax.scan``. Around convolutions on a CPU it is several times slower than the Python loop
of ``pgd``; on accelerators it saves the time of launching each step.
"""

import jax
import jax.numpy as jnp

from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._model import LogitsFn, traced_logits
from steinnorm.attacks.losses import (
    check_loss,
    needs_reference,
    per_example,
    saturates,
    temperature_of,
)
from steinnorm.attacks.threat import Threat, check_threat, warn_of_short_reach


def pgd_scan(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 20,
    step_size: float | None = None,
    loss: str = "cross_entropy",
    batch_dependent: bool = False,
) -> jax.Array:
    """Returns ``pgd(...).x_adv`` for the same arguments, without checking any values.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``, which is not checked.
      y: true labels, integers; as in ``fgsm``.
      threat: ball and box.
      key: random key of the start; None starts at ``x``.
      steps: gradient steps.
      step_size: absolute step size, in the units of ``x``; None means 2.5 * epsilon / steps.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``, except ``kl``.
      batch_dependent: whether an example's logits depend on the rest of the batch, as in a model in
        training mode; inside ``jit`` this cannot be tested.

    Returns:
      The attacked inputs, shape and dtype of ``x``.

    Raises:
      ValueError: steps are below 1, the step size is negative, the labels are not integers, or the
        loss is not defined for these logits.

    Warns:
      ShortReachWarning: as in ``pgd``.

    Example:
      >>> import functools, jax, jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, pgd_scan
      >>> threat = Threat("linf", 0.25)
      >>> attack = jax.jit(functools.partial(pgd_scan, lambda x: 2 * x, threat=threat))
      >>> attack(jnp.array([[0.75, 0.5]]), jnp.array([0]))
      Array([[0.5 , 0.75]], dtype=float32)
    """
    check_threat(threat)
    if steps < 1 or (step_size is not None and not step_size >= 0):
        raise ValueError(
            f"steps must be at least 1 and step_size not negative; got {steps} and {step_size}"
        )
    if needs_reference(loss):
        raise ValueError(f"{loss} needs the clean logits; use pgd")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y must be integer labels; got dtype {y.dtype}")
    classes = jax.eval_shape(lambda x: traced_logits(logits_fn, x), x).shape[-1]
    check_loss(loss, classes, y.ndim - 1, targeted=False)
    warn_of_short_reach([step_size] * steps if step_size is not None else [], threat)
    size = 2.5 * threat.epsilon / steps if step_size is None else step_size
    temperature = None
    if saturates(loss) and (batch_dependent or y.ndim > 1):
        temperature = temperature_of(traced_logits(logits_fn, x), y, joint=batch_dependent)
    start = x if key is None else threat.random_start(jax.random.fold_in(key, 0), x)

    def step(x_adv: jax.Array, step_fraction: jax.Array) -> tuple[jax.Array, None]:
        labels = y.astype(jnp.int32)
        criterion = Criterion(labels, step_fraction=step_fraction, temperature=temperature)

        def total(images: jax.Array) -> jax.Array:
            logits = traced_logits(logits_fn, images)
            return jnp.sum(per_example(loss, logits, criterion, joint=batch_dependent))

        return threat.step(x_adv, x, jax.grad(total)(x_adv), size), None

    return jax.lax.scan(step, start, jnp.arange(steps, dtype=x.dtype) / steps)[0]
