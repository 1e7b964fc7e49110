"""The paper's small network for volumes, for any norm."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import ConvNorm
from experiments.models.norms import NormFactory


class Cnn3d(nnx.Module):
    """Strided 3x3x3 convolutions, each with a norm and a ReLU, then dense layers.

    With the default sizes and volumes of (128, 128, 64, 1) it is the network of the paper's code:
    1.20 million parameters, nearly all of them in the first dense layer.

    Args:
      norm: builds the norm layers; the network knows nothing else about them.
      shape: (D, H, W) of the volumes.
      channels_in: channels of the volumes.
      outputs: number of logits.
      channels: of the convolutions; each halves all directions, rounding up.
      hidden: sizes of the dense layers between features and logits, each with a ReLU.
      pool: average the features over all positions instead of flattening them; ``shape`` then
        does not matter.
      dtype: of activations; parameters, the dense layers and the result are float32.
      rngs: random numbers for the weights.
    """

    def __init__(
        self,
        norm: NormFactory,
        *,
        shape: tuple[int, int, int],
        channels_in: int,
        outputs: int,
        channels: Sequence[int] = (3, 6, 6, 6),
        hidden: Sequence[int] = (768, 16),
        pool: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        widths = (channels_in, *channels)
        self.convs = nnx.List(
            ConvNorm(norm, before, after, stride=2, spatial=3, dtype=dtype, rngs=rngs)
            for before, after in itertools.pairwise(widths)
        )
        positions = math.prod(math.ceil(size / 2 ** len(channels)) for size in shape)
        sizes = (widths[-1] * (1 if pool else positions), *hidden, outputs)
        self.dense = nnx.List(
            nnx.Linear(before, after, rngs=rngs) for before, after in itertools.pairwise(sizes)
        )
        self.shape = (*shape, channels_in)
        self.pool = pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps volumes (B, D, H, W, channels_in) to logits (B, outputs)."""
        if not self.pool and x.shape[1:] != self.shape:
            raise ValueError(f"built for volumes of shape {self.shape}; got {x.shape[1:]}")
        for conv in self.convs:
            x = conv(x)
        x = x.astype(jnp.float32)
        x = jnp.mean(x, axis=(1, 2, 3)) if self.pool else x.reshape(len(x), -1)
        for index, dense in enumerate(self.dense):
            x = dense(nnx.relu(x) if index else x)
        return x
