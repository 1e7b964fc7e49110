"""The settings of the checks."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class CheckSettings:
    """Settings of the checks of an evaluation (``steinnorm.attacks.checks``).

    For a quick test use few steps and queries, one direction and one difference step.

    Attributes:
      steps: steps of PGD, of size 2.5 * epsilon / steps; PGD is also run with twice as many.
      restarts: restarts of PGD, compared with a single run; with 1 the check is not applicable.
      square_queries: forward passes of Square; with 0 the check is not applicable.
      tolerance: share of the labels by which one attack may be ahead of another. A check fails if
        the lower end of a one-sided 95 % interval of the lead is above it.
      zero_gradient_share: allowed share of examples whose gradient is zero or rounding.
      gradient_error: allowed median relative error of the gradient against finite differences.
      directions: number of random directions of these differences, besides three fixed ones.
      difference_steps: step sizes of the differences, as the largest change of a value in widths of
        the box. The best one decides, because curvature affects long steps and rounding short ones.
        In a batch that counts as a whole the kinks of all examples add up: a trained network's
        gradient seemed 5.7 % off at 1e-4 and 0.5 % at 1e-5.
      losses: losses that the evaluation's attacks increase, besides the cross-entropy: names in
        ``steinnorm.attacks.losses.LOSSES``. ``evaluate_robustness`` adds those of its attacks.
        PGD on each of them counts as an attack of the evaluation; if the margin or DLR is among
        them, PGD on the margin is no other attack and the check of it is not applicable.
    """

    steps: int = 20
    restarts: int = 5
    square_queries: int = 1000
    tolerance: float = 0.01
    zero_gradient_share: float = 0.02
    gradient_error: float = 0.05
    directions: int = 4
    difference_steps: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    losses: tuple[str, ...] = ()

    def with_losses(self, losses: Iterable[str]) -> "CheckSettings":
        """Returns the settings with more losses of the evaluation's attacks.

        Args:
          losses: their names; the cross-entropy and those that are there already add nothing.
        """
        added = {*self.losses, *losses} - {"cross_entropy"}
        return dataclasses.replace(self, losses=tuple(sorted(added)))
