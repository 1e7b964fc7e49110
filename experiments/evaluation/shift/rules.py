"""The rules that are compared: where a norm takes its statistics from at test time."""

import dataclasses
import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.configs.schema import Statistics
from experiments.evaluation.attack_batch import as_logits_fn
from experiments.evaluation.calibration import Calibrating
from experiments.evaluation.shift.recalibrated import recalibrated
from experiments.models.norms import in_evaluation
from steinnorm import Shrinkage
from steinnorm.nnx import SteinBatchNorm
from steinnorm.shrinkage import resolve
from steinnorm.statistics import BatchStatistics, Moments

RUNNING: Final = "running"
RECALIBRATED: Final = "recalibrated"
BATCH: Final = "batch"
MIXED = "N/(N+n)"


RULES: tuple[Statistics, ...] = (RUNNING, BATCH, "shrunk", "calibrated", "calibrated_streams")
"""Sources of statistics.  ``N/(N+n)`` is made by ``mixed``, for any n."""

FIXED = (RUNNING, RECALIBRATED)
"""Rules whose answers do not depend on the batch."""


def mixed_name(n: int) -> str:
    """Returns what the rule is called for one n."""
    return f"N/(N+{n})"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["own", "weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _MixedMean:
    own: Any
    weight: jax.Array

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        return running.mean + self.weight * (self.own(batch, running) - running.mean)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["own", "weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _MixedVariance:
    own: Any
    weight: jax.Array

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        return running.variance + self.weight * (self.own(batch, running) - running.variance)


def mixed(model: nnx.Module, batch_size: int, n: int) -> jax.tree_util.Partial:
    """Returns a network whose statistics are a fixed mixture (Schneider et al. 2020).

    The test batch's are those of the rule that the network was trained with, as the running ones.
    Means and variances are N/(N+n) times those of the test batch, of N examples, and n/(N+n) times
    the running ones (arXiv 2006.16971, whose letters are exchanged: its N counts the source).

    Args:
      model: the trained network, in training mode.
      batch_size: N.
      n: how many examples the running statistics count as.

    Returns:
      A pure function of inputs, which is compiled once for all n.
    """
    graphdef, state = nnx.split(in_evaluation(model, "batch"))
    weight = jnp.float32(batch_size / (batch_size + n))
    return jax.tree_util.Partial(_apply_mixed, graphdef, state, weight)


def _apply_mixed(
    graphdef: nnx.GraphDef, state: nnx.State, weight: jax.Array, x: jax.Array
) -> jax.Array:
    model = nnx.merge(graphdef, state, copy=True)
    # Set here, where the weight is traced: as an attribute of the model it would be a constant,
    # and every n a compilation.
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, SteinBatchNorm):
            own = resolve(layer.shrinkage)
            if own.toward_running:  # it records the batch's own
                own = resolve("none")
            mean, variance = _MixedMean(own.mean, weight), _MixedVariance(own.variance, weight)
            layer.shrinkage = nnx.data(Shrinkage(MIXED, mean, variance, own.needs_noise))
    return model(x)


@functools.lru_cache(maxsize=8)  # of networks that are measured side by side
def _recalibrated(calibrating: Calibrating) -> nnx.Module:
    return recalibrated(calibrating.model(RUNNING), calibrating.batches())


def logits_fn(calibrating: Calibrating, rule: str, batch_size: int) -> jax.tree_util.Partial:
    """Returns a network under a rule, as a pure function of one batch of inputs.

    Args:
      calibrating: the network, calibrated where the rule needs it.
      rule: one of ``RULES`` or ``FIXED``, or ``mixed_name(n)``.
      batch_size: examples per batch.
    """
    if rule == RECALIBRATED:
        model = _recalibrated(calibrating)
        return as_logits_fn(in_evaluation(model, RUNNING))
    for source in RULES:
        if source == rule:
            return as_logits_fn(in_evaluation(calibrating.model(source), source))
    n = int(rule.removeprefix("N/(N+").removesuffix(")"))
    return mixed(calibrating.model(BATCH), batch_size, n)
