"""Records what the norm layers of a network are given."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.norms import in_evaluation
from steinnorm.shrinkage import RunningStatistics


@dataclasses.dataclass(frozen=True)
class NormLayer:
    """What one norm layer saw.

    Attributes:
      name: its path in the network.
      inputs: (N, H, W, C) float32, one entry per image of the population.
      running: the layer's stored statistics.
    """

    name: str
    inputs: np.ndarray
    running: RunningStatistics


class _Recorded(nnx.Module):
    """A norm layer that keeps what it is given."""

    def __init__(self, norm: nnx.Module):
        self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        self.sow(nnx.Intermediate, "inputs", x)
        return self.norm(x)


def norm_layers(model: nnx.Module, images: np.ndarray) -> list[NormLayer]:
    """Records the inputs of every batch norm in evaluation mode, with running statistics.

    Args:
      model: a trained network whose norms are ``SteinBatchNorm``; left as it is.
      images: (N, H, W, C), the population.
    """
    running = {}

    def wrap(path: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, nnx.BatchNorm):
            return node
        running["/".join(map(str, path))] = RunningStatistics(node.mean[...], node.var[...])
        return _Recorded(node)

    recorded = nnx.recursive_map(wrap, in_evaluation(model, "running"))
    _, sown = nnx.capture(recorded, nnx.Intermediate)(jnp.asarray(images))
    inputs = {
        "/".join(map(str, path[:-1])): variable.get_value()[-1]
        for path, variable in nnx.to_flat_state(sown)
    }
    return [NormLayer(name, np.asarray(inputs[name]), running[name]) for name in running]
