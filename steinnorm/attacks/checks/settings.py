"""The settings of the checks."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ChecksConfig:
    """How the evaluation is tested itself, on one batch (``steinnorm.attacks.checks``).

    A smoke run has a few examples, steps and queries, and one direction and difference step.

    Attributes:
      examples: of the test part, attacked as one batch; no more than a test batch has.
      norm: of the ball, ``linf`` or ``l2``.
      epsilon: radius of the ball, in units of the inputs.
      steps: of PGD, each of 2.5 * epsilon / steps; it is also run with twice as many.
      restarts: of PGD, against a single one; with 1 this check is not applicable.
      square_queries: looks of Square at the model; with 0 this check is not applicable.
      tolerance: share of the labels by which accuracies may differ.  The attack has converged
        where more steps or restarts change it by less than that: with 100 examples and one point,
        not at all.
      zero_gradient_share: largest share of the examples whose gradient may be all zero.
      gradient_error: largest median relative error of the gradient against differences.
      directions: random directions of these differences; there are three fixed ones besides.
      difference_steps: largest changes of an input value, in widths of the box; the most
        favourable one decides, because curvature spoils long steps and rounding short ones.
    """

    examples: int = 128
    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = 8 / 255
    steps: int = 20
    restarts: int = 5
    square_queries: int = 1000
    tolerance: float = 0.01
    zero_gradient_share: float = 0.02
    gradient_error: float = 0.05
    directions: int = 4
    difference_steps: tuple[float, ...] = (1e-2, 1e-3, 1e-4)


SMOKE_CHECKS = ChecksConfig(
    examples=25,
    steps=2,
    restarts=2,
    square_queries=4,
    directions=1,
    difference_steps=(1e-3,),
)
"""Shows that all checks run; says nothing."""
