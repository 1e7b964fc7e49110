"""The rules that are compared: where a norm takes its statistics from at test time."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.examples import Examples
from experiments.evaluation.measure import as_logits_fn
from experiments.models.norms import in_evaluation
from steinnorm import Shrinkage
from steinnorm.nnx import SteinBatchNorm, calibrate
from steinnorm.statistics import BatchStatistics, Moments

RUNNING, BATCH, MIXED = "running", "batch", "N/(N+n)"


class Sources:
    """A trained network, and what the rules make of it when they are asked for.

    Args:
      model: in training mode.
      train: its training part, for rules that need it.
      calibration_batch: training examples per batch of the pass over them.
    """

    def __init__(self, model: nnx.Module, train: Examples, calibration_batch: int = 250):
        self.model, self._train, self._batch = model, train, calibration_batch

    @functools.cached_property
    def calibrated(self) -> nnx.Module:
        """The network with what its clean training inputs look like to each layer."""
        return calibrate(self.model, self.batches())

    def batches(self) -> Iterator[jax.Array]:
        """Yields the training inputs once, without augmentation, in [0, 1]."""
        for start in range(0, len(self._train), self._batch):
            yield to_unit(self._train.inputs[start : start + self._batch])


def to_unit(inputs: np.ndarray) -> jax.Array:
    """Returns inputs in [0, 1] as float32; bytes stand for value / 255."""
    values = jnp.asarray(inputs, jnp.float32)
    return values / 255 if inputs.dtype == np.uint8 else values


def _view(model: nnx.Module, source: str) -> nnx.Module:
    return nnx.view(model, use_running_average=True, test_statistics=source)


RULES: Mapping[str, Callable[[Sources], nnx.Module]] = {
    RUNNING: lambda sources: in_evaluation(sources.model, "running"),
    BATCH: lambda sources: in_evaluation(sources.model, "batch"),
    "shrunk": lambda sources: in_evaluation(sources.model, "shrunk"),
    "calibrated": lambda sources: _view(sources.calibrated, "calibrated"),
    "calibrated_streams": lambda sources: _view(sources.calibrated, "calibrated_streams"),
}
"""Name -> the network ready for evaluation.  ``N/(N+n)`` is made by ``mixed``, for any n."""


def mixed_name(n: int) -> str:
    """Returns what the rule is called for one n."""
    return f"N/(N+{n})"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _MixedMean:
    weight: jax.Array

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        return running.mean + self.weight * (batch.mean - running.mean)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class _MixedVariance:
    weight: jax.Array

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        return running.variance + self.weight * (batch.variance - running.variance)


def mixed(model: nnx.Module, batch_size: int, n: int) -> jax.tree_util.Partial:
    """Returns a network whose statistics are a fixed mixture (Schneider et al. 2020).

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
    rule = Shrinkage(MIXED, _MixedMean(weight), _MixedVariance(weight))
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, SteinBatchNorm):
            layer.shrinkage = nnx.data(rule)
    return model(x)


def logits_fn(sources: Sources, rule: str, batch_size: int) -> jax.tree_util.Partial:
    """Returns a network under a rule, as a pure function of one batch of inputs.

    Args:
      sources: of the network.
      rule: one of ``RULES``, or ``mixed_name(n)``.
      batch_size: examples per batch.
    """
    if rule in RULES:
        return as_logits_fn(RULES[rule](sources))
    return mixed(sources.model, batch_size, int(rule.removeprefix("N/(N+").removesuffix(")")))
