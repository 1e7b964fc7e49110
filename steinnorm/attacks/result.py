"""The result of an attack."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from steinnorm.attacks.errors import LeftThreatError
from steinnorm.attacks.threat import Threat


class Stage(NamedTuple):
    """One attack of an ensemble.

    Attributes:
      name: name of the attack.
      attacked: number of examples that it attacked: those that no earlier attack had broken.
      broken: number of these examples that it broke.
      seconds: wall-clock time, compilation included.
    """

    name: str
    attacked: int
    broken: int
    seconds: float


class AttackResult(NamedTuple):
    """An attacked batch, with its success and with measurements that show whether it is valid.

    Attributes:
      x_adv: the attacked inputs, shape and dtype of ``x``, but at least float32.
      success: whether the attack succeeds on each label, bool, shape of ``y``: an error, or the
        target if there is one, for ``x_adv`` evaluated as one batch. False for void pixels. With
        batch statistics it may differ among other companions.
      max_norm: the largest distance of an example from its original, in the threat's norm; with a
        radius per channel, in multiples of the radius.
      min: the smallest value in ``x_adv``.
      max: the largest value in ``x_adv``.
      nan_count: number of values of ``x_adv`` that are not finite.
      zero_gradients: number of examples with an all-zero gradient in the last step, which an attack
        cannot follow: a large number means masked gradients, not robustness. 0 for attacks that
        use no gradient.
      stages: the attacks of an ensemble, in order; empty for a single attack.
      outside_box: largest distance of a value from the box; 0 without bounds, or where rounding
        explains all of it.
      labels: number of attacked labels, without void pixels.
      outside_ball: by how much a value (in L2 an example) is outside the ball at most; 0 where
        rounding explains all of it.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, fgsm
      >>> x, y = jnp.array([[0.75, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
      >>> fgsm(lambda x: 4 * x, x, y, threat=Threat("linf", 0.25))
      AttackResult(x_adv=float32[2, 2], 50.00 % of 2 examples left, max_norm=0.25, zero_gradients=0)
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
    outside_ball: float = 0.0

    @property
    def robust_accuracy(self) -> float:
        """Share of the labels on which the attack fails; NaN if there are no labels."""
        labels = np.size(self.success) if self.labels is None else self.labels
        return 1.0 - int(np.sum(np.asarray(self.success))) / labels if labels else float("nan")

    def __repr__(self) -> str:
        """Returns one line, which shows shapes but no pixels."""
        stages = f", stages={[stage.name for stage in self.stages]}" if self.stages else ""
        kind = "examples" if np.ndim(self.success) == 1 else "pixels"
        labels = np.size(self.success) if self.labels is None else self.labels
        return (
            f"AttackResult(x_adv={self.x_adv.dtype}{list(self.x_adv.shape)}, "
            f"{100 * self.robust_accuracy:.2f} % of {labels} {kind} left, "
            f"max_norm={self.max_norm:.6g}, zero_gradients={self.zero_gradients}{stages})"
        )

    def check(self, threat: Threat, name: str = "the attack") -> None:
        """Checks that all examples lie in ball and box.

        Args:
          threat: threat of the attack.
          name: name of the attack in the message.

        Raises:
          LeftThreatError: an example is not finite, or outside ball or box by more than rounding
            explains; or ``max_norm`` is above the radius of this threat, which may be another one.
        """
        values = int(np.prod(self.x_adv.shape[1:]))
        largest = max(abs(self.min), abs(self.max)) if not self.nan_count else 0.0
        slack = threat.ball_tolerance(largest, values)
        outside = self.outside_box > 0 or self.outside_ball > 0
        if self.nan_count or outside or not self.max_norm <= threat.radius + slack:
            raise LeftThreatError(
                f"{name} left its ball or box, so its result is void: largest change "
                f"{self.max_norm:.9g} ({threat.norm}, allowed {threat.radius:.9g}; outside the "
                f"ball by {self.outside_ball:.3g}), values in "
                f"[{self.min:.9g}, {self.max:.9g}] (allowed {threat.bounds}, left by "
                f"{self.outside_box:.3g}), {self.nan_count} not finite"
            )
