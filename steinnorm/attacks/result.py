"""What an attack hands back."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from steinnorm.attacks.errors import LeftThreatError
from steinnorm.attacks.threat import Threat


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


class AttackResult(NamedTuple):
    """An attacked batch and what can be checked about it.

    Attributes:
      x_adv: the attacked inputs, shape and dtype of ``x``, but at least float32.
      success: bool, of the shape of ``y``: the attack has what it wants of this label (an error,
        or the target), for ``x_adv`` evaluated as one batch. False for void pixels. With batch
        statistics other companions may change it.
      max_norm: the largest distance of an example from its original, in the threat's norm; with a
        radius per channel, in multiples of the radius.
      min: the smallest value in ``x_adv``.
      max: the largest value in ``x_adv``.
      nan_count: how many values of ``x_adv`` are not finite.
      zero_gradients: how many examples had an all-zero gradient in the last step, which an attack
        cannot follow: a large number means masked gradients, not robustness. 0 for attacks that
        take no gradient.
      stages: of an ensemble, its attacks in order; empty for a single attack.
      outside_box: by how much a value lies outside the box, at most; 0 without bounds.
      labels: how many labels there are to get, void pixels left out.
    """

    x_adv: jax.Array
    success: jax.Array
    max_norm: float
    min: float
    max: float
    nan_count: int
    zero_gradients: int
    stages: tuple[Stage, ...] = ()
    outside_box: float = 0.0
    labels: int | None = None

    @property
    def robust_accuracy(self) -> float:
        """Share of the labels that the attack did not get; NaN where there is none."""
        labels = np.size(self.success) if self.labels is None else self.labels
        return 1.0 - int(np.sum(np.asarray(self.success))) / labels if labels else float("nan")

    def __repr__(self) -> str:
        """Returns a line without pixels."""
        stages = f", stages={[stage.name for stage in self.stages]}" if self.stages else ""
        kind = "examples" if np.ndim(self.success) == 1 else "pixels"
        labels = np.size(self.success) if self.labels is None else self.labels
        return (
            f"AttackResult(x_adv={self.x_adv.dtype}{list(self.x_adv.shape)}, "
            f"{100 * self.robust_accuracy:.2f} % of {labels} {kind} left, "
            f"max_norm={self.max_norm:.6g}, zero_gradients={self.zero_gradients}{stages})"
        )

    def check(self, threat: Threat, name: str = "the attack") -> None:
        """Fails loudly where the attack did what the threat does not allow.

        Args:
          threat: of the attack.
          name: what the message calls it.

        Raises:
          LeftThreatError: an example is outside ball or box by more than rounding explains
            (``Threat.ball_tolerance``, ``Threat.box_tolerance``), or not finite.
        """
        values = int(np.prod(self.x_adv.shape[1:]))
        largest = max(abs(self.min), abs(self.max)) if not self.nan_count else 0.0
        inside = self.outside_box <= threat.box_tolerance()
        slack = threat.ball_tolerance(largest, values)
        if self.nan_count or not inside or not self.max_norm <= threat.radius + slack:
            raise LeftThreatError(
                f"{name} left its ball or box, so its result is void: largest change "
                f"{self.max_norm:.9g} ({threat.norm}, allowed {threat.radius:.9g}), values in "
                f"[{self.min:.9g}, {self.max:.9g}] (allowed {threat.bounds}, left by "
                f"{self.outside_box:.3g}), {self.nan_count} not finite"
            )
