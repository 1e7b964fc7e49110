"""What every attack is given, checked once, and what it hands back."""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._criterion import VOID, Criterion, known, reached
from steinnorm.attacks._model import LogitsFn, at_least_single, current, predict
from steinnorm.attacks.losses import needs_reference
from steinnorm.attacks.threat import (
    AttackResult,
    BatchDependenceWarning,
    NotFiniteError,
    ProbabilitiesWarning,
    Stage,
    Threat,
)


class Problem(NamedTuple):
    """A model, a batch and a threat that fit together.

    Attributes:
      model: the function from inputs to logits, as an argument of compiled functions.
      x: inputs (B, ...), inside the box.
      criterion: labels, and targets if there are any.
      threat: the ball and the box.
      logits: of the clean inputs, (B, *S, K) with K >= 2.
    """

    model: jax.tree_util.Partial
    x: jax.Array
    criterion: Criterion
    threat: Threat
    logits: jax.Array

    @classmethod
    def of(
        cls,
        logits_fn: LogitsFn,
        x: jax.Array,
        y: ArrayLike,
        threat: Threat,
        target: ArrayLike | None = None,
    ) -> "Problem":
        """Checks the arguments of an attack.

        Raises:
          ValueError: inputs, labels, targets or logits are not as described in ``fgsm``.

        Warns:
          ProbabilitiesWarning: the logits look like probabilities.
        """
        x = _inputs(x, threat)
        model, logits = current(logits_fn, x)
        shape = logits.shape
        y = _labels(y, shape, "y", void=True)
        if target is not None:
            target = _labels(target, shape, "target", void=False)
            _check_target(target, y)
        _check_logits(logits)
        return cls(model, x, Criterion(y, target), threat, logits)

    @property
    def classes(self) -> int:
        """K."""
        return self.logits.shape[-1]

    @property
    def label_axes(self) -> int:
        """0 where each example has one label, 2 for label maps."""
        return self.criterion.y.ndim - 1

    def criterion_for(self, loss: str) -> Criterion:
        """The criterion with the clean logits, where a loss needs them."""
        return (
            self.criterion._replace(reference=self.logits)
            if needs_reference(loss)
            else self.criterion
        )

    def take(self, index: np.ndarray) -> "Problem":
        """The problem of the examples at these positions alone; for models without batches."""
        y, target, _, progress = self.criterion
        chosen = Criterion(y[index], None if target is None else target[index], None, progress)
        return self._replace(x=self.x[index], criterion=chosen, logits=self.logits[index])

    def likeliest_wrong(self, count: int) -> jax.Array:
        """Classes (B, n) but the right one, those of the largest clean logits first.

        Args:
          count: how many; all K - 1 where there are fewer.
        """
        logits, y = np.array(self.logits), np.asarray(self.criterion.y)
        logits[np.arange(len(y)), y] = -np.inf
        order = np.argsort(-logits, axis=1, kind="stable")[:, : min(count, self.classes - 1)]
        return jnp.asarray(order, self.criterion.y.dtype)

    def result(
        self, x_adv: jax.Array, zero_gradients: int = 0, stages: tuple[Stage, ...] = ()
    ) -> AttackResult:
        """Judges the attacked batch as it is handed back, not as some earlier step saw it.

        Raises:
          LeftThreatError: an example is not what the threat allows.
          NotFiniteError: its logits are NaN or infinite.
        """
        flat = x_adv.reshape(x_adv.shape[0], -1)
        logits = predict(self.model, x_adv)
        result = AttackResult(
            x_adv=x_adv,
            success=reached(logits, self.criterion),
            max_norm=float(jnp.max(geometry.distance(x_adv, self.x, self.threat.norm))),
            min=float(jnp.min(flat)),
            max=float(jnp.max(flat)),
            nan_count=int(jnp.sum(~jnp.isfinite(flat))),
            zero_gradients=zero_gradients,
            stages=stages,
        )
        # What lies outside must neither pass as an error of the model nor, dropped, as robust.
        result.check(self.threat)
        check_finite(~jnp.isfinite(logits), "logits of attacked inputs")
        return result


def check_finite(broken: jax.Array | np.ndarray, what: str) -> None:
    """Refuses what an attack cannot follow and would otherwise take for robustness.

    Args:
      broken: (B, ...) bool, where a value is not finite.
      what: the values, in words.

    Raises:
      NotFiniteError: there are any.
    """
    flat = np.asarray(broken)
    count = int(flat.reshape(len(flat), -1).any(axis=1).sum())
    if count:
        raise NotFiniteError(
            f"{what} are NaN or infinite for {count} of {len(flat)} examples: the attack cannot "
            "follow them, and its result would look like robustness.  Mend the model (a square "
            "root at zero, an overflow of exp, ...)"
        )


def _inputs(x: jax.Array, threat: Threat) -> jax.Array:
    if isinstance(x, jax.core.Tracer):
        raise ValueError("attacks loop on the host; inside jit, vmap or scan use pgd_scan")
    x = jnp.asarray(x)
    if x.ndim < 2 or x.shape[0] == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        expected = "a non-empty floating batch (B, ...)"
        raise ValueError(f"x must be {expected}; got shape {x.shape}, dtype {x.dtype}")
    low, high = threat.bounds
    smallest, largest = float(jnp.min(x)), float(jnp.max(x))
    slack = threat.tolerance  # the round-off of undoing a mean/std normalisation
    if not (smallest >= low - slack and largest <= high + slack):
        raise ValueError(
            f"x must lie in {threat.bounds}; got values in [{smallest}, {largest}].  Give raw "
            "inputs and normalise inside logits_fn, or set the threat's bounds"
        )
    # In half precision a step could not be told from the ball's radius.
    return jnp.clip(at_least_single(x), low, high)


def _check_target(target: jax.Array, y: jax.Array) -> None:
    """Refuses the right label as a target: the attack would count right answers as its own."""
    right = int(jnp.sum((target == y) & known(y)))
    if right:
        raise ValueError(
            f"target must differ from y; {right} of {y.size} targets are the right label"
        )


def _labels(given: ArrayLike, shape: tuple[int, ...], name: str, *, void: bool) -> jax.Array:
    """Labels that fit logits of that shape, as int32."""
    # Not as a JAX array: that would wrap what does not fit into 32 bits, before anyone looks.
    y = np.asarray(given)
    if y.shape != shape[:-1] or not np.issubdtype(y.dtype, np.integer):
        expected = f"integer labels of shape {shape[:-1]}"
        soft = "; soft and one-hot labels are not taken, use jnp.argmax" if y.shape == shape else ""
        raise ValueError(f"{name} must be {expected}; got shape {y.shape}, dtype {y.dtype}{soft}")
    classes = shape[-1]
    if void and y.ndim > 1 and classes > VOID:
        raise ValueError(f"label {VOID} is void, so there are at most {VOID} classes per pixel")
    labels = y[y != VOID] if void and y.ndim > 1 else y
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        or_void = f" or {VOID} (void)" if void and y.ndim > 1 else ""
        got = f"[{labels.min()}, {labels.max()}]"
        raise ValueError(f"{name} must lie in [0, {classes}){or_void}; got labels in {got}")
    return jnp.asarray(y.astype(np.int32))


def _check_logits(logits: jax.Array) -> None:
    values = np.asarray(logits)
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise NotFiniteError(
            f"logits_fn returned NaN or infinite logits for {bad.sum()} of {len(values)} clean "
            "examples; an attack on them would say nothing"
        )
    between = values.min() >= 0 and values.max() <= 1
    softmax = np.abs(values.sum(axis=-1) - 1).max() < 0.02  # as bfloat16 rounds
    sigmoid = values.shape[-1] == 2 and not values[..., 0].any() and values[..., 1].all()
    if between and (softmax or sigmoid):
        warnings.warn(
            "logits_fn seems to return probabilities: its values lie in [0, 1]"
            + (" and sum to 1" if softmax else "")
            + ".  Attacks want logits; a softmax or sigmoid before them hides gradients"
            + ("" if softmax else ", and 0 is the threshold of a single logit"),
            ProbabilitiesWarning,
            stacklevel=4,
        )


def depends_on_batch(problem: Problem) -> bool:
    """Whether an example's logits change with its companions, of which half become others.

    One more forward pass of the same shape, so that nothing compiles anew.  A batch of one has no
    companions: False.  So is what changes logits by less than 1 % of the largest, which bfloat16
    may do by itself; ``batch_dependence`` measures smaller changes.
    """
    count = len(problem.x)
    half = count // 2
    if not half:
        return False
    # Negatives: unlike other images of the batch, they cannot have its statistics by chance.
    low, high = problem.threat.bounds
    others = jnp.concatenate([problem.x[: count - half], low + high - problem.x[:half]])
    there = np.asarray(predict(problem.model, others))[: count - half]
    here = np.asarray(problem.logits)[: count - half]
    # Rounding may differ with the place in the batch, in bfloat16 by 0.4 %.
    scale = max(float(np.abs(here).max()), 1e-6)
    return not bool(np.abs(there - here).max() <= 0.01 * scale)


def resolve_batch_dependence(problem: Problem, given: bool | None, *, warn: bool = True) -> bool:
    """``given``, or what ``depends_on_batch`` finds where that is None.

    Warns:
      BatchDependenceWarning: the model's logits change with the batch, and nobody said so.
    """
    if given is not None:
        return given
    found = depends_on_batch(problem)
    if found and warn:
        warnings.warn(
            "an example's logits change with its companions (a model in training mode, or with "
            "statistics of the test batch): the whole batch is attacked at once and kept as a "
            "whole.  Pass batch_dependent=True if that is what you want; "
            "steinnorm.attacks.batch_threats has the other threat models",
            BatchDependenceWarning,
            stacklevel=3,
        )
    return found


@functools.partial(jax.jit, static_argnames="joint")
def keep_worse(
    a: tuple[jax.Array, jax.Array, jax.Array],
    b: tuple[jax.Array, jax.Array, jax.Array],
    *,
    joint: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Per example, or for the batch as a whole, the one of ``a`` and ``b`` that is worse for it.

    Args:
      a: inputs (B, ...), share of the labels that are reached (B,), loss (B,).
      b: the same of another attack.
      joint: the batch is kept as a whole, because its examples hang together.
    """
    share_a, loss_a, share_b, loss_b = a[1], a[2], b[1], b[2]
    if joint:
        share_a, loss_a, share_b, loss_b = (
            jnp.broadcast_to(jnp.mean(v), v.shape) for v in (share_a, loss_a, share_b, loss_b)
        )
    take_b = (share_b > share_a) | ((share_b == share_a) & (loss_b > loss_a))
    pick = lambda p, q: jnp.where(geometry.per_example(take_b, p), q, p)  # noqa: E731
    return pick(a[0], b[0]), pick(a[1], b[1]), pick(a[2], b[2])
