"""The settings of the checks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CheckSettings:
    """How the evaluation is tested itself, on one batch (``steinnorm.attacks.checks``).

    A smoke run has few steps and queries, and one direction and difference step.

    Attributes:
      steps: of PGD, each of 2.5 * epsilon / steps; it is also run with twice as many.
      restarts: of PGD, against a single one; with 1 this check is not applicable.
      square_queries: looks of Square at the model; with 0 this check is not applicable.
      tolerance: share of the labels by which one attack may be ahead of another.  A check fails
        where the lower end of a one-sided 95 % interval of the lead is above it.
      zero_gradient_share: largest share of the examples whose gradient may be zero or rounding.
      gradient_error: largest median relative error of the gradient against differences.
      directions: random directions of these differences; there are three fixed ones besides.
      difference_steps: largest changes of an input value, in widths of the box; the most
        favourable one decides, because curvature spoils long steps and rounding short ones.
    """

    steps: int = 20
    restarts: int = 5
    square_queries: int = 1000
    tolerance: float = 0.01
    zero_gradient_share: float = 0.02
    gradient_error: float = 0.05
    directions: int = 4
    difference_steps: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
