"""Replaces the running statistics of a network by those of un-augmented training examples.

The usual recalibration (PreciseBN, Wu & Johnson 2021, arXiv 2105.07576): batches of training
examples go through the network in training mode, and each layer keeps the mean of their statistics
instead of a moving average from training.  It is measured beside the rules that look at the test
batch, because it might explain what they gain.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.data.examples import as_inputs
from steinnorm.nnx import SteinBatchNorm


def recalibrated(model: nnx.Module, batches: Iterable[jax.Array]) -> nnx.Module:
    """Returns the network with the statistics of these batches, in training mode.

    Args:
      model: the trained network; left as it is.
      batches: inputs, of which batches count by their numbers of examples.
    """
    model = nnx.clone(model)
    layers = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, SteinBatchNorm)]
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0  # each call leaves the statistics of its batch
    total, sums = 0, [np.zeros((3, layer.num_features)) for layer in layers]
    for inputs in batches:
        _call(model, inputs)
        total += len(inputs)
        for layer, added in zip(layers, sums, strict=True):
            mean = np.asarray(layer.mean[...], np.float64)
            variance = np.asarray(layer.var[...], np.float64)
            added += len(inputs) * np.stack([mean, np.square(mean), variance])  # noqa: PLW2901
    for layer, own, added in zip(layers, momentum, sums, strict=True):
        mean, square, within = added / total
        variance = within + np.maximum(square - np.square(mean), 0)
        layer.momentum = own
        layer.mean[...] = mean.astype(layer.mean[...].dtype)
        layer.var[...] = variance.astype(layer.var[...].dtype)
    return model


@nnx.jit
def _call(model: Any, inputs: jax.Array) -> None:
    model(as_inputs(inputs))
