"""What an attacker may do, and what an attack hands back."""

import dataclasses
import math
from typing import NamedTuple

import jax

NORMS = ("linf", "l2")


class ShortReachWarning(UserWarning):
    """An attack's steps, laid end to end, are shorter than the radius of its ball."""


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
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {self.norm!r}")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon must be finite and not negative; got {self.epsilon}")
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be (low, high) with low < high; got {self.bounds}")


class AttackResult(NamedTuple):
    """An attacked batch and what can be checked about it.

    Attributes:
      x_adv: the attacked inputs, shape and dtype of ``x``.
      success: (B,) bool, the model errs on this example of ``x_adv`` evaluated as one batch, and
        the example is valid: finite, in the ball and in the box.  It holds for this batch; with
        batch statistics other companions may change it.
      max_norm: the largest distance of an example from its original, in the threat's norm.
      min: the smallest value in ``x_adv``.
      max: the largest value in ``x_adv``.
      nan_count: how many values of ``x_adv`` are not finite.
      zero_gradients: how many examples had an all-zero gradient in the last step, which an attack
        cannot follow: a large number means masked gradients, not robustness.
    """

    x_adv: jax.Array
    success: jax.Array
    max_norm: float
    min: float
    max: float
    nan_count: int
    zero_gradients: int
