"""How much a layer shrank: one number for the means and one for the variances."""

from __future__ import annotations

from typing import NamedTuple

import jax

from steinnorm._rules_applied import least_squares_factor
from steinnorm.functional import Normalised
from steinnorm.statistics import Moments

__all__ = ["ShrinkageFactors", "shrinkage_factors"]


class ShrinkageFactors(NamedTuple):
    """How much of the batch's deviation from the target was kept, one number per layer.

    1: the batch's statistics as they are; 0: the target itself.
    """

    mean: jax.Array
    variance: jax.Array


def shrinkage_factors(result: Normalised, running: Moments | None = None) -> ShrinkageFactors:
    """Returns the least-squares factors of the shrunk statistics on the batch's own.

    Both are measured from the target: zero, or ``running`` for a shrinkage towards it. For
    :func:`~steinnorm.stein_mean` and the other rules that multiply, this is the very factor. With
    calibrated test statistics the target is the calibration, and the factors are those of the
    formulas (1: the shift is real, 0: it is noise). With shrunk ones they are of the last step:
    what was kept of the distance of the rule's estimates to the running statistics.

    Args:
      result: what :func:`~steinnorm.stein_batch_norm` returned for a batch.
      running: the running statistics before that call; only a shrinkage towards them needs them.

    Returns:
      The two factors, real scalars.

    Raises:
      ValueError: the result holds no batch statistics.
    """
    if result.factors is not None:
        return ShrinkageFactors(*result.factors)
    if result.batch is None or result.shrinkage is None:
        raise ValueError(
            "expected the result of a call that used batch statistics; this one used running "
            "statistics, so nothing was shrunk."
        )
    toward = result.shrinkage.toward_running and running is not None
    targets = running if toward and running is not None else (None, None)

    return ShrinkageFactors(
        least_squares_factor(result.used.mean, result.batch.mean, targets[0]),
        least_squares_factor(result.used.variance, result.batch.variance, targets[1]),
    )
