"""Attacks that follow the gradient: the fast gradient method and projected gradient descent.

One jitted step serves them all; the loop around it runs on the host, because a ``lax`` loop around
convolutions is several times slower on a CPU.  Radius and step size are traced, so a curve over
many of them compiles once.
"""

import dataclasses
import functools
import math
import warnings
from typing import Self

import jax
import jax.numpy as jnp

from experiments.attacks import geometry
from experiments.attacks.logits import LogitsFn, as_argument, logits_shape, predict
from experiments.attacks.losses import LOSSES
from experiments.attacks.threat import AttackResult, ShortReachWarning, Threat

# Room for the rounding of x + delta and back, relative to the size of the box.
_ROUNDING = 1e-6


def fgsm(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    loss: str = "cross_entropy",
) -> AttackResult:
    """One step of the whole radius along the gradient (Goodfellow, Shlens & Szegedy 2015).

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K).  A ``jax.tree_util.Partial(apply, state)``
        compiles once for all states of a model; see ``experiments.attacks.logits``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels (B,), integers in [0, K).
      threat: the ball and the box.
      key: not used; every attack takes one.
      loss: ``"cross_entropy"`` or ``"margin"``.

    Raises:
      ValueError: inputs, labels, logits or the loss's name are not as described.
    """
    del key
    x, y = _check_batch(logits_fn, x, y, threat, loss)
    settings = _Settings.of(threat, threat.epsilon)
    x_adv, vanished = _step(as_argument(logits_fn), x_adv=x, x=x, y=y, at=settings, loss=loss)
    return _result(logits_fn, x_adv, (x, y), threat, vanished)


def pgd(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 20,
    step_size: float | None = None,
    random_start: bool | None = None,
    restarts: int = 1,
    loss: str = "cross_entropy",
) -> AttackResult:
    """Repeated steps, each projected into ball and box (Madry et al. 2018).

    With several restarts each example keeps the run in which the model errs, and among those the
    one of the largest loss.  ``success`` is measured afterwards on the batch put together so,
    because with batch statistics it need not be what the single runs reported.

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K); as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels (B,), integers in [0, K).
      threat: the ball and the box.
      key: randomness of the starts.
      steps: gradient steps per run.
      step_size: absolute size of a step, in the units of ``x`` and the threat's norm; None means
        2.5 * epsilon / steps.
      random_start: start at a uniform draw from the ball; None means yes if there is a key.
      restarts: number of runs; more than one needs a random start.
      loss: ``"cross_entropy"`` or ``"margin"``.

    Raises:
      ValueError: as in ``fgsm``, or a random start without a key, or steps, step size or restarts
        out of range.

    Warns:
      ShortReachWarning: steps * step_size < epsilon, so that the ball's edge is out of reach.
    """
    random_start = key is not None if random_start is None else random_start
    step_size = 2.5 * threat.epsilon / max(steps, 1) if step_size is None else step_size
    if random_start and key is None:
        raise ValueError("a random start needs a key: pass key=jax.random.key(seed)")
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts from the same point are one; pass a key")
    _check_schedule(threat, steps, step_size, restarts)
    x, y = _check_batch(logits_fn, x, y, threat, loss)
    model = as_argument(logits_fn)
    settings = _Settings.of(threat, step_size)

    best = None
    for restart in range(restarts):
        x_adv = x
        if random_start and key is not None:
            x_adv = _start(jax.random.fold_in(key, restart), x, threat)
        for _ in range(steps):
            x_adv, vanished = _step(model, x_adv=x_adv, x=x, y=y, at=settings, loss=loss)
        best = x_adv if best is None else _keep_worse(logits_fn, best, x_adv, y, loss)
    assert best is not None  # restarts >= 1
    return _result(logits_fn, best, (x, y), threat, vanished)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["epsilon", "step_size", "bounds"],
    meta_fields=["norm"],
)
@dataclasses.dataclass(frozen=True)
class _Settings:
    """The numbers of a step; traced, all but the norm.

    They are Python floats, whose weak type leaves the dtype of ``x`` alone.
    """

    epsilon: float
    step_size: float
    bounds: tuple[float, float]
    norm: str

    @classmethod
    def of(cls, threat: Threat, step_size: float) -> Self:
        low, high = threat.bounds
        return cls(float(threat.epsilon), float(step_size), (float(low), float(high)), threat.norm)


@functools.partial(jax.jit, static_argnames="loss")
def _step(
    logits_fn: LogitsFn,
    *,
    x_adv: jax.Array,
    x: jax.Array,
    y: jax.Array,
    at: _Settings,
    loss: str,
) -> tuple[jax.Array, jax.Array]:
    """One step and its projection around ``x``; also (B,) whether the gradient was all zero."""

    def total(images: jax.Array) -> jax.Array:
        logits = logits_fn(images)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jnp.sum(LOSSES[loss](logits, y))

    gradient = jax.grad(total)(x_adv)
    moved = x_adv + at.step_size * geometry.ascent(gradient, at.norm)
    vanished = jnp.all(gradient.reshape(gradient.shape[0], -1) == 0, axis=1)
    return geometry.project(moved, x, at.norm, at.epsilon, at.bounds), vanished


def _start(key: jax.Array, x: jax.Array, threat: Threat) -> jax.Array:
    noise = geometry.random_in_ball(key, x, threat.norm, threat.epsilon)
    return geometry.project(x + noise, x, threat.norm, threat.epsilon, threat.bounds)


def _keep_worse(
    logits_fn: LogitsFn, a: jax.Array, b: jax.Array, y: jax.Array, loss: str
) -> jax.Array:
    """Per example the one of ``a`` and ``b`` that fools the model, else that of larger loss."""
    logits_a, logits_b = predict(logits_fn, a), predict(logits_fn, b)
    fooled_a = jnp.argmax(logits_a, axis=-1) != y
    fooled_b = jnp.argmax(logits_b, axis=-1) != y
    larger = LOSSES[loss](logits_b, y) > LOSSES[loss](logits_a, y)
    take_b = (fooled_b & ~fooled_a) | ((fooled_b == fooled_a) & larger)
    return jnp.where(take_b.reshape(take_b.shape + (1,) * (a.ndim - 1)), b, a)


def _result(
    logits_fn: LogitsFn,
    x_adv: jax.Array,
    batch: tuple[jax.Array, jax.Array],
    threat: Threat,
    vanished: jax.Array,
) -> AttackResult:
    """Judges the attacked batch as it is handed back, not as some earlier step saw it."""
    x, y = batch
    low, high = threat.bounds
    slack = _ROUNDING * (high - low) + _ROUNDING * threat.epsilon
    flat = x_adv.reshape(x_adv.shape[0], -1)
    distance = geometry.distance(x_adv, x, threat.norm)
    finite = jnp.all(jnp.isfinite(flat), axis=1)
    boxed = (jnp.min(flat, axis=1) >= low - slack) & (jnp.max(flat, axis=1) <= high + slack)
    valid = finite & boxed & (distance <= threat.epsilon + slack)
    wrong = jnp.argmax(predict(logits_fn, x_adv), axis=-1) != y
    return AttackResult(
        x_adv=x_adv,
        success=wrong & valid,
        max_norm=float(jnp.max(distance)),
        min=float(jnp.min(flat)),
        max=float(jnp.max(flat)),
        nan_count=int(jnp.sum(~jnp.isfinite(flat))),
        zero_gradients=int(jnp.sum(vanished)),
    )


def _check_batch(
    logits_fn: LogitsFn, x: jax.Array, y: jax.Array, threat: Threat, loss: str
) -> tuple[jax.Array, jax.Array]:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim < 2 or x.shape[0] == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        expected = "a non-empty floating batch (B, ...)"
        raise ValueError(f"x must be {expected}; got shape {x.shape}, dtype {x.dtype}")
    low, high = threat.bounds
    smallest, largest = float(jnp.min(x)), float(jnp.max(x))
    slack = _ROUNDING * (high - low)  # the round-off of undoing a mean/std normalisation
    if not (smallest >= low - slack and largest <= high + slack):
        raise ValueError(f"x must lie in {threat.bounds}; got values in [{smallest}, {largest}]")
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        expected = f"integer labels of shape {x.shape[:1]}"
        raise ValueError(f"y must be {expected}; got shape {y.shape}, dtype {y.dtype}")
    classes = logits_shape(logits_fn, x)[1]
    first, last = int(jnp.min(y)), int(jnp.max(y))
    if first < 0 or last >= classes:
        raise ValueError(f"y must lie in [0, {classes}); got labels in [{first}, {last}]")
    return jnp.clip(x, low, high), y


def _check_schedule(threat: Threat, steps: int, step_size: float, restarts: int) -> None:
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1; got {steps} and {restarts}")
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size must be finite and not negative; got {step_size}")
    if steps * step_size < threat.epsilon * (1 - _ROUNDING):
        warnings.warn(
            f"{steps} steps of {step_size:g} cannot cross a ball of radius {threat.epsilon:g}",
            ShortReachWarning,
            stacklevel=3,
        )
