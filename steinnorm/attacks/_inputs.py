"""Checks of the arguments and of the results of all attacks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _measurements as measurements
from steinnorm.attacks._arguments import (
    as_array,
    check_inputs_form,
    check_labels_form,
    refuse_traced,
)
from steinnorm.attacks._criterion import VOID, Criterion
from steinnorm.attacks._many_labels import needs_scales
from steinnorm.attacks._model import (
    LogitsFn,
    as_partial,
    at_least_float32,
    has_traced_arrays,
    logits_shape,
    predict,
    up_to_date,
    warn_of_dropout,
)
from steinnorm.attacks._survivors import place_like, placed_back, take_rows
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import NotFiniteError, ProbabilitiesWarning, RadiusWarning
from steinnorm.attacks.losses import needs_reference
from steinnorm.attacks.result import AttackResult, Stage
from steinnorm.attacks.threat import Threat, check_threat, radius_text


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, a batch and a threat that have been checked to fit together.

    Attributes:
      model: function from inputs to logits, as a pytree.
      x: inputs (B, ...), inside the box.
      criterion: labels, and targets if there are any.
      threat: ball and box.
      shape: shape of the logits, (B, *S, K) with K >= 2.
    """

    model: jax.tree_util.Partial
    x: jax.Array
    criterion: Criterion
    threat: Threat
    shape: tuple[int, ...]

    @classmethod
    def of(
        cls,
        logits_fn: LogitsFn,
        x: ArrayLike,
        y: ArrayLike,
        threat: Threat,
        target: ArrayLike | None = None,
    ) -> Problem:
        """Checks the arguments of an attack.

        Raises:
          ValueError: inputs, labels, targets or logits are not as described in ``fgsm``.

        Warns:
          ProbabilitiesWarning: the logits look like probabilities.
          RadiusWarning: the ball contains the whole box.
          RandomLogitsWarning: the logits of the same inputs differ between two calls.
        """
        problem = cls.without_warnings(logits_fn, x, y, threat, target)
        vars(problem)["probabilities"] = True
        warn_of_dropout(logits_fn)
        if threat.holds_box(problem.x.shape):
            warn(radius_text(threat), RadiusWarning)
        if "logits" in vars(problem):
            problem.check_logits(problem.logits)
        return problem

    @classmethod
    def without_warnings(
        cls,
        logits_fn: LogitsFn,
        x: ArrayLike,
        y: ArrayLike,
        threat: Threat,
        target: ArrayLike | None = None,
    ) -> Problem:
        """Does the same without warnings, for parts of a batch that was checked as a whole."""
        refuse_traced(x=x, y=y, threat=threat, target=target)
        x = _inputs(x, threat)
        model, logits = as_partial(logits_fn), None
        refuse_traced(logits_fn=model)
        if not has_traced_arrays(logits_fn, model):
            model, logits = up_to_date(logits_fn, x)
        x = _on_device_of(model, x)
        shape = logits_shape(model, x)
        true_labels = _labels(y, shape, "y", void=True)
        target_on_devices = None
        if target is not None:
            target_labels = _labels(target, shape, "target", void=False)
            _check_target(target_labels, true_labels)
            target_on_devices = place_like(target_labels, x)
        problem = cls(
            model, x, Criterion(place_like(true_labels, x), target_on_devices), threat, shape
        )
        if logits is not None:
            vars(problem)["logits"] = logits  # saves computing them again
        return problem

    @functools.cached_property
    def logits(self) -> jax.Array:
        """Logits of the clean inputs, (B, *S, K); computed at the first access."""
        logits = predict(self.model, self.x)
        self.check_logits(logits)
        return logits

    def success_share(self, *, joint: bool = False) -> jax.Array:
        """Returns the share of each clean input's labels on which the attack succeeds, (B,).

        Args:
          joint: whether examples depend on each other; every entry is then the batch's mean.
        """
        return measurements.success_share(self.logits, self.criterion, joint=joint)

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return self.shape[-1]

    @property
    def label_axes(self) -> int:
        """0 where each example has one label, 2 for label maps."""
        return len(self.shape) - 2

    def criterion_for(self, loss: str, *, joint: bool) -> Criterion:
        """Returns the criterion, with what else a loss needs: the clean logits, their scales.

        Args:
          loss: name of the loss.
          joint: whether examples depend on each other.
        """
        criterion = self.criterion
        if needs_reference(loss):
            criterion = criterion._replace(reference=self.logits)
        if needs_scales(loss, self.label_axes, joint=joint):
            scales = measurements.scales(loss, self.logits, criterion.y, joint=joint)
            criterion = criterion._replace(temperature=scales[0], ceiling=scales[1])
        return criterion

    def take(self, index: np.ndarray) -> Problem:
        """Returns the problem restricted to the examples at these positions."""
        y, target = self.criterion.y, self.criterion.target
        x, y, target = take_rows((self.x, y, target), jnp.asarray(index))
        shape = (len(index), *self.shape[1:])
        return Problem(self.model, x, Criterion(y, target), self.threat, shape)

    def likeliest_wrong_classes(self, count: int) -> np.ndarray:
        """Returns each example's wrong classes (B, n), by decreasing clean logit.

        Args:
          count: number of classes; at most all K - 1.
        """
        logits, y = np.array(self.logits), np.asarray(self.criterion.y)
        logits[np.arange(len(y)), y] = -np.inf
        order = np.argsort(-logits, axis=1, kind="stable")[:, : min(count, self.classes - 1)]
        return order.astype(y.dtype)

    def check_logits(self, logits: jax.Array, which: str = "clean examples") -> None:
        """Refuses logits that are not finite, and warns once if they look like probabilities.

        Raises:
          NotFiniteError: some are NaN or infinite; ``which`` names the inputs in the message.

        Warns:
          ProbabilitiesWarning: the logits look like probabilities.
        """
        values = np.asarray(logits)
        refuse_not_finite(~np.isfinite(values), which)
        if vars(self).pop("probabilities", False):
            _warn_of_probabilities(values)

    def result(
        self,
        x_adv: jax.Array,
        zero_gradients: int = 0,
        stages: tuple[Stage, ...] = (),
        name: str = "the attack",
    ) -> AttackResult:
        """Evaluates and checks the attacked batch that is returned.

        The batch is evaluated again as a whole, because earlier steps may have seen its examples in
        other batches.

        Raises:
          LeftThreatError: an example lies outside the ball or the box.
          NotFiniteError: logits of attacked inputs are NaN or infinite.
        """
        logits = predict(self.model, x_adv)
        success, not_finite_logits, labels, not_finite, *distances = measurements.attacked_batch(
            x_adv, self.x, self.threat, logits, self.criterion
        )
        max_norm, low, high, outside_box, outside_ball = (float(value) for value in distances)
        result = AttackResult(
            x_adv=placed_back(x_adv, self.x),
            success=success,
            max_norm=max_norm,
            min=low,
            max=high,
            nan_count=int(not_finite),
            zero_gradients=zero_gradients,
            stages=stages,
            outside_box=outside_box,
            labels=int(labels),
            outside_ball=outside_ball,
        )
        # An invalid example must count neither as an error of the model nor as robust.
        result.check(self.threat, name)
        check_finite(not_finite_logits, "logits of attacked inputs")
        return result


def merged(parts: Sequence[AttackResult], stages: tuple[Stage, ...], like: Any) -> AttackResult:
    """Merges the results of consecutive parts of a batch.

    Args:
      parts: at least one result.
      stages: stages of the whole.
      like: the inputs; the merged arrays are placed on their devices.
    """
    return AttackResult(
        x_adv=place_like(np.concatenate([part.x_adv for part in parts]), like),
        success=place_like(np.concatenate([part.success for part in parts]), like),
        max_norm=max(part.max_norm for part in parts),
        min=min(part.min for part in parts),
        max=max(part.max for part in parts),
        nan_count=sum(part.nan_count for part in parts),
        zero_gradients=sum(part.zero_gradients for part in parts),
        stages=stages,
        outside_box=max(part.outside_box for part in parts),
        labels=sum(part.labels or 0 for part in parts),
        outside_ball=max(part.outside_ball for part in parts),
    )


def check_finite(not_finite: jax.Array | np.ndarray, what: str) -> None:
    """Refuses NaN and infinite values, which an attack would otherwise mistake for robustness.

    Args:
      not_finite: where a value is not finite, (B, ...) bool.
      what: name of the values in the error message.

    Raises:
      NotFiniteError: any value is not finite.
    """
    count = _examples_with(not_finite)
    if count:
        raise NotFiniteError(
            f"{what} are NaN or infinite for {count} of {len(not_finite)} examples: the attack "
            "cannot follow them, and its result would look like robustness. Correct the model (a "
            "square root at zero, an overflow of exp, ...)"
        )


def refuse_not_finite(not_finite: np.ndarray, which: str) -> None:
    """Refuses logits that are NaN or infinite, of which ``argmax`` would make a prediction.

    Args:
      not_finite: where a logit is not finite, (B, ...) bool.
      which: name of the inputs in the error message.

    Raises:
      NotFiniteError: any logit is not finite.
    """
    count = _examples_with(not_finite)
    if count:
        raise NotFiniteError(
            f"logits_fn returned NaN or infinite logits for {count} of {len(not_finite)} {which}, "
            "from which no prediction can be read. Correct the model (a square root below zero, "
            "an overflow of exp, ...)"
        )


def _examples_with(condition: jax.Array | np.ndarray) -> int:
    """Returns for how many examples a condition (B, ...) holds somewhere."""
    flat = np.asarray(condition)
    return int(flat.reshape(len(flat), -1).any(axis=1).sum())


def _inputs(x: ArrayLike, threat: Threat) -> jax.Array:
    check_threat(threat)
    x = as_array("x", x)
    check_inputs_form(x)
    threat.check_shape(x.shape)
    x = at_least_float32(x)  # half precision cannot resolve small steps
    measurements.check_finite_inputs(x)
    if threat.bounds is None:
        return x
    clipped, outside = measurements.into_box(x, threat.bounds)
    if float(outside) > 0:
        raise ValueError(
            f"x must lie in {threat.bounds}; got values in [{float(jnp.min(x))}, "
            f"{float(jnp.max(x))}]. Give raw inputs and normalise inside logits_fn, or set the "
            "threat's bounds (None if every value is valid)"
        )
    return clipped


def _on_device_of(model: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
    """Returns the inputs bound to the device that the model's arrays are bound to, if they are.

    Whatever is computed with such arrays is bound to their device.  Inputs that are not would
    compile every function twice: for the inputs as they are, and as they were attacked.
    """
    leaves = [leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)]
    bound = {d for leaf in leaves if _is_bound(leaf) for d in leaf.devices()}
    if len(bound) != 1 or _is_bound(x) or isinstance(x, jax.core.Tracer):
        return x
    return jax.device_put(x, bound.pop())


def _is_bound(array: jax.Array) -> bool:
    return not isinstance(array, jax.core.Tracer) and array.committed


def _check_target(target: np.ndarray, y: np.ndarray) -> None:
    """Refuses the true label as a target: correct predictions would count as successes."""
    count = int(np.sum((target == y) & ((y != VOID) | (y.ndim == 1))))
    if count:
        raise ValueError(
            f"target must differ from y; {count} of {y.size} targets are the true label"
        )


def _labels(given: ArrayLike, shape: tuple[int, ...], name: str, *, void: bool) -> np.ndarray:
    """Returns labels as int32, checked against logits of that shape.

    ``void`` says whether label maps may contain ``VOID``.
    """
    # Not as a JAX array, which would wrap numbers beyond 32 bits before they can be checked.
    y = np.asarray(given)
    check_labels_form(name, y, shape)
    classes = shape[-1]
    if void and y.ndim > 1 and classes > VOID:
        raise ValueError(
            f"label {VOID} means void, so there are at most {VOID} classes per pixel; got {classes}"
        )
    labels = y[y != VOID] if void and y.ndim > 1 else y
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        or_void = f" or {VOID} (void)" if void and y.ndim > 1 else ""
        got = f"[{labels.min()}, {labels.max()}]"
        raise ValueError(f"{name} must lie in [0, {classes}){or_void}; got labels in {got}")
    return y.astype(np.int32)


def _warn_of_probabilities(values: np.ndarray) -> None:
    between = values.min() >= 0 and values.max() <= 1
    softmax = np.abs(values.sum(axis=-1) - 1).max() < 0.02  # allows for bfloat16
    sigmoid = values.shape[-1] == 2 and not values[..., 0].any() and values[..., 1].all()
    if between and (softmax or sigmoid):
        warn(
            "logits_fn seems to return probabilities: all values lie in [0, 1]"
            + (" and sum to 1" if softmax else "")
            + ". Attacks need logits; a softmax or sigmoid after them hides gradients"
            + ("" if softmax else ", and 0 is the threshold of a single logit"),
            ProbabilitiesWarning,
        )
