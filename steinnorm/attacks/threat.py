"""What an attacker may do, and what an attack hands back."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

NORMS = ("linf", "l2")


class ShortReachWarning(UserWarning):
    """An attack's steps, laid end to end, are shorter than the radius of its ball."""


class BatchDependenceWarning(UserWarning):
    """An example's logits change with the other examples of its batch."""


class ProbabilitiesWarning(UserWarning):
    """A model seems to return probabilities where logits are wanted."""


class RandomLogitsWarning(UserWarning):
    """A model's logits for the same inputs differ between two calls."""


class NotFiniteError(ValueError):
    """A model's logits or gradients are NaN or infinite where an attack needs them."""


class LeftThreatError(AssertionError):
    """An attack's result lies outside of what its threat allows: a fault of the attack."""


@dataclasses.dataclass(frozen=True)
class Threat:
    """A ball around each input, cut by the box of valid inputs.

    Attributes:
      norm: ``"linf"`` (largest change of any value) or ``"l2"`` (Euclidean length of the change
        of one example, over all its values).
      epsilon: the ball's radius, in the units of the inputs.
      bounds: the smallest and the largest valid value of an input.

    Raises:
      ValueError: an unknown norm, a negative or non-finite epsilon, or bounds not in order.
    """

    norm: str
    epsilon: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        numbers = (self.epsilon, *self.bounds)
        if not all(isinstance(number, int | float | np.number) for number in numbers):
            raise ValueError(
                f"epsilon and bounds must be numbers; got {self.epsilon!r} and {self.bounds!r}"
            )
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {self.norm!r}")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon must be finite and not negative; got {self.epsilon}")
        if len(self.bounds) != 2 or not -math.inf < self.bounds[0] < self.bounds[1] < math.inf:
            raise ValueError(
                f"bounds must be finite, (low, high) with low < high; got {self.bounds}"
            )

    @property
    def tolerance(self) -> float:
        """By how much rounding may take an example out.

        1e-6, or four times the distance of float32 numbers where inputs are so large that it is
        more.
        """
        largest = np.float32(max(map(abs, (self.epsilon, *self.bounds))))
        return max(1e-6, 4 * float(np.spacing(largest)))


def warn_of_short_reach(sizes: Sequence[float], threat: Threat) -> None:
    """Warns where steps of these sizes cannot cross the ball; none at all are no steps of ours.

    Warns:
      ShortReachWarning: saying so.
    """
    reach = math.fsum(sizes)
    if sizes and reach < threat.epsilon * (1 - 1e-6):
        warnings.warn(
            f"{len(sizes)} steps of {reach / len(sizes):g} cannot cross a ball of radius "
            f"{threat.epsilon:g}: the attack is weaker than its radius says",
            ShortReachWarning,
            stacklevel=4,
        )


class AttackResult(NamedTuple):
    """An attacked batch and what can be checked about it.

    Attributes:
      x_adv: the attacked inputs, shape and dtype of ``x``, but at least float32.
      success: bool, of the shape of ``y``: the attack has what it wants of this label (an error,
        or the target), for ``x_adv`` evaluated as one batch.  False for void pixels.  With batch
        statistics other companions may change it.
      max_norm: the largest distance of an example from its original, in the threat's norm.
      min: the smallest value in ``x_adv``.
      max: the largest value in ``x_adv``.
      nan_count: how many values of ``x_adv`` are not finite.
      zero_gradients: how many examples had an all-zero gradient in the last step, which an attack
        cannot follow: a large number means masked gradients, not robustness.  0 for attacks that
        take no gradient.
      stages: of an ensemble, its attacks in order; empty for a single attack.
    """

    x_adv: jax.Array
    success: jax.Array
    max_norm: float
    min: float
    max: float
    nan_count: int
    zero_gradients: int
    stages: tuple["Stage", ...] = ()

    def check(self, threat: Threat, name: str = "the attack") -> None:
        """Fails loudly where the attack did what the threat does not allow.

        Args:
          threat: of the attack.
          name: what the message calls it.

        Raises:
          LeftThreatError: an example is outside ball or box by more than ``threat.tolerance``,
            or not finite.
        """
        (low, high), slack = threat.bounds, threat.tolerance
        inside = low - slack <= self.min and self.max <= high + slack
        if self.nan_count or not inside or not self.max_norm <= threat.epsilon + slack:
            raise LeftThreatError(
                f"{name} left its ball or box, so its result is void: largest change "
                f"{self.max_norm:.9g} ({threat.norm}, allowed {threat.epsilon:.9g}), values in "
                f"[{self.min:.9g}, {self.max:.9g}] (allowed {threat.bounds}), {self.nan_count} "
                "not finite"
            )


class Stage(NamedTuple):
    """One attack of an ensemble.

    Attributes:
      name: of the attack.
      attacked: how many examples it was given: those that still stood.
      broken: how many of these it broke.
      seconds: wall-clock time, compilation included.
    """

    name: str
    attacked: int
    broken: int
    seconds: float
