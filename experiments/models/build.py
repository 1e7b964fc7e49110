"""Builds a configuration's network, untrained."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.configs.schema import Cnn3dModel, HRNetModel, ModelConfig, TrainConfig
from experiments.data.examples import Examples
from experiments.errors import ConfigError
from experiments.models.cnn3d import Cnn3d
from experiments.models.hrnet import HRNet
from experiments.models.inputs import Standardised
from experiments.models.norms import NORMS, norm_factory
from experiments.models.resnet import ResNet, of_depth


def build(
    config: ModelConfig,
    norm: str,
    train: TrainConfig,
    *,
    examples: Examples,
    outputs: int,
    seed: int,
) -> nnx.Module:
    """Returns the network of a configuration, in training mode.

    Args:
      config: which network.
      norm: one of ``NORMS``.
      train: whose dtype, momentum of the statistics and standardisation it gets.
      examples: the training part: their shape, and the means and deviations to standardise with.
      outputs: how many numbers it gives.
      seed: of the initial weights.

    Raises:
      ConfigError: an unknown norm, or a network that does not exist.
    """
    if norm not in NORMS:
        raise ConfigError(f"unknown norm {norm!r}; expected one of {', '.join(NORMS)}")
    dtype = jnp.dtype(train.compute_dtype)
    factory = norm_factory(
        norm,
        statistics_momentum=train.statistics_momentum,
        dtype=dtype,
        total_steps=train.epochs * (len(examples) // train.batch_size),
    )
    shape = examples.inputs.shape[1:]
    # Initial weights by the "rbg" generator: threefry, JAX's default, takes seconds to compile
    # per weight shape on a CPU.
    common = {
        "channels_in": shape[-1],
        "outputs": outputs,
        "dtype": dtype,
        "rngs": nnx.Rngs(jax.random.key(seed, impl="rbg")),
    }
    try:
        network: nnx.Module
        if isinstance(config, Cnn3dModel):
            network = Cnn3d(
                factory,
                shape=shape[:-1],
                channels=config.channels,
                hidden=config.hidden,
                pool=config.pool,
                **common,
            )
        elif isinstance(config, HRNetModel):
            network = HRNet(factory, size=config.size, stem_strides=config.stem_strides, **common)
        else:
            stages = (
                {"stage_sizes": config.stage_sizes}
                if config.depth is None
                else dict(zip(("block", "stage_sizes"), of_depth(config.depth), strict=True))
            )
            network = ResNet(factory, width=config.width, **stages, **common)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if not train.standardise:
        return network
    return Standardised(network, *channel_moments(examples))


def channel_moments(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each channel over a part, (C,) float32.

    A channel that is constant gets deviation 1.
    """
    channels = examples.inputs.shape[-1]
    unit = 255.0 if examples.inputs.dtype == np.uint8 else 1.0
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    # In pieces: the part may be a memory map larger than the memory.
    for start in range(0, len(examples), 256):
        piece = np.asarray(examples.inputs[start : start + 256], np.float64).reshape(-1, channels)
        piece /= unit
        total += piece.sum(axis=0)
        squares += np.square(piece).sum(axis=0)
        count += len(piece)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1).astype(np.float32)
