"""Builds the norms that are compared, by name.

All but ``group`` are one class, so that a comparison differs in the shrinkage and nothing else.
"""

import functools
import math
from typing import Any, Protocol

from flax import nnx

from experiments.configs.schema import Statistics
from experiments.models.small_batch_norms import BatchRenorm, LearntNoise
from steinnorm.nnx import SteinBatchNorm, convert, revert
from steinnorm.shrinkage import Shrinkage, resolve


class NormFactory(Protocol):
    """Builds a norm layer for a last axis of ``num_features`` channels."""

    def __call__(self, num_features: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the layer, in training mode."""


# The experiments' name -> the library's name of the shrinkage.
_SHRINKAGES = {
    "batch": "none",
    "stein": "stein",
    "stein_mean_only": "stein_mean_only",
    "jsnorm": "jsnorm",
    "ridge": "ridge",
    "lasso": "lasso",
    "toward_running": "toward_running",
}
_SMALL_BATCH = ("batch_renorm", "learnt_noise")
NORMS = (*_SHRINKAGES, *_SMALL_BATCH, "group")
"""The names, the reference first and the control without batch statistics last."""

DEMO_NORMS = (*_SHRINKAGES, "group")
"""Those that the demo compares: its batches are large."""


def norm_factory(
    name: str,
    *,
    statistics_momentum: float = 0.9,
    dtype: Any = None,
    total_steps: int | None = None,
) -> NormFactory:
    """Returns the norm of that name, as something that a network calls once per layer.

    Args:
      name: one of ``NORMS``.
      statistics_momentum: share of the running statistics that a training step keeps; ``group``
        has none and ignores it.
      total_steps: of the training; ``batch_renorm`` needs it.
      dtype: of the layers' results; None is that of input and parameters together.  Parameters
        and statistics are float32 in any case.

    Raises:
      ValueError: an unknown name; the message lists the known ones.
    """
    if name == "group":
        return functools.partial(_group, dtype=dtype)
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; expected one of {', '.join(NORMS)}")
    if name == "batch_renorm":
        if total_steps is None:
            raise ValueError("batch_renorm widens its limits in the training: give total_steps")
        return functools.partial(
            BatchRenorm, total_steps=total_steps, momentum=statistics_momentum, dtype=dtype
        )
    if name == "learnt_noise":
        return functools.partial(LearntNoise, momentum=statistics_momentum, dtype=dtype)
    return functools.partial(
        SteinBatchNorm, shrinkage=_SHRINKAGES[name], momentum=statistics_momentum, dtype=dtype
    )


def _group(num_features: int, *, dtype: Any, rngs: nnx.Rngs) -> nnx.Module:
    # Four groups where the channels allow it: at these widths Flax's 32 would be one per channel.
    groups = math.gcd(num_features, 4)
    return nnx.GroupNorm(num_features, num_groups=groups, dtype=dtype, rngs=rngs)


def shrinkage(name: str) -> Shrinkage | None:
    """Returns the shrinkage of that norm; None for one that has none, or not the same each step."""
    return resolve(_SHRINKAGES[name]) if name in _SHRINKAGES else None


def sources(name: str, wanted: tuple[Statistics, ...]) -> tuple[Statistics, ...]:
    """Returns the sources of statistics under which the norm can be evaluated."""
    return ("none",) if name == "group" else wanted


def in_evaluation(model: nnx.Module, statistics: Statistics) -> nnx.Module:
    """Returns ``model`` made ready for evaluation, with statistics from the given source.

    The given model stays as it is, and no source records anything. Calibrated statistics need a
    calibrated model (``experiments.evaluation.calibration``).
    """
    if statistics == "none":
        return model
    if statistics == "running":
        # Shrinkage acts when statistics are taken; with stored ones all these norms are plain
        # batch norm.  As that one, all norms share one compilation of each attack.  Our layer's
        # plain form, because Flax's rounds the statistics to the computation's dtype.
        return nnx.view(convert(revert(model), "none"), use_running_average=True)
    return nnx.view(model, use_running_average=True, test_statistics=statistics)
