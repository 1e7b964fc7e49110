"""Residual networks for small images (after He et al. 2016), for any norm."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import BasicBlock, Block, Bottleneck, conv
from experiments.models.norms import NormFactory

# He et al. 2016, table 1; nine layers are one basic block per stage.
_DEPTHS: dict[int, tuple[Block, tuple[int, ...]]] = {
    9: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
DEPTHS = tuple(_DEPTHS)


def of_depth(depth: int) -> tuple[Block, tuple[int, ...]]:
    """Returns the kind of block and the blocks per stage of the network of that depth.

    Args:
      depth: one of ``DEPTHS``.

    Raises:
      ValueError: another depth; the message lists the known ones.
    """
    if depth not in _DEPTHS:
        known = ", ".join(map(str, DEPTHS))
        raise ValueError(f"unknown depth {depth}; expected one of {known}")
    return _DEPTHS[depth]


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, mean over the image, linear layer.

    The stem is one 3x3 convolution at full resolution, without pooling, as usual for CIFAR-10.
    Every stage after the first halves the image and doubles the channels.

    Args:
      norm: builds the norm layers; the network knows nothing else about them.
      channels_in: channels of the images.
      outputs: number of logits.
      width: channels of the first stage's 3x3 convolutions.
      stage_sizes: residual blocks per stage.
      block: kind of the residual blocks.
      dtype: of activations; parameters, the head and the result are float32.
      rngs: random numbers for the weights.

    Example:
      >>> from experiments.models.norms import norm_factory
      >>> block, stage_sizes = of_depth(50)
      >>> model = nnx.eval_shape(
      ...     lambda: ResNet(
      ...         norm_factory("stein"),
      ...         channels_in=3,
      ...         outputs=10,
      ...         block=block,
      ...         stage_sizes=stage_sizes,
      ...         rngs=nnx.Rngs(0),
      ...     )
      ... )
      >>> len(model.blocks)
      16
    """

    def __init__(
        self,
        norm: NormFactory,
        *,
        channels_in: int,
        outputs: int,
        width: int = 64,
        stage_sizes: Sequence[int],
        block: Block = BasicBlock,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stem = conv(channels_in, width, dtype=dtype, rngs=rngs)
        self.stem_norm = norm(width, rngs=rngs)
        blocks = []
        channels = width
        for stage, size in enumerate(stage_sizes):
            inner = width * 2**stage
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(norm, channels, inner, stride, dtype=dtype, rngs=rngs))
                channels = inner * block.expansion
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(channels, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images (B, H, W, channels_in) to logits (B, outputs)."""
        x = nnx.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))
