"""A residual network for small images (after He et al. 2016), for any norm."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.norms import NormFactory


def _conv(channels_in: int, channels_out: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    # No bias: the norm that follows each convolution would take it out again.
    return nnx.Conv(
        channels_in,
        channels_out,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding="SAME",
        use_bias=False,
        kernel_init=nnx.initializers.he_normal(),
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions, each normalised, added to the input.

    Args:
      norm: builds the norm layers.
      channels_in: channels of the input.
      channels_out: channels of the output.
      stride: of the first convolution and the shortcut.
      rngs: random numbers for the weights.
    """

    def __init__(
        self, norm: NormFactory, channels_in: int, channels_out: int, stride: int, *, rngs: nnx.Rngs
    ):
        self.conv1 = _conv(channels_in, channels_out, 3, stride, rngs)
        self.norm1 = norm(channels_out, rngs=rngs)
        self.conv2 = _conv(channels_out, channels_out, 3, 1, rngs)
        self.norm2 = norm(channels_out, rngs=rngs)
        self.project = stride != 1 or channels_in != channels_out
        if self.project:
            self.shortcut = _conv(channels_in, channels_out, 1, stride, rngs)
            self.shortcut_norm = norm(channels_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, channels_in) to (B, H / stride, W / stride, channels_out)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.project:
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, mean over the image, linear classifier.

    Every stage after the first halves the image and doubles the channels.

    Args:
      norm: builds the norm layers; the network knows nothing else about them.
      channels_in: channels of the images.
      classes: number of logits.
      width: channels of the first stage.
      stage_sizes: residual blocks per stage.
      rngs: random numbers for the weights.
    """

    def __init__(
        self,
        norm: NormFactory,
        *,
        channels_in: int,
        classes: int,
        width: int,
        stage_sizes: Sequence[int],
        rngs: nnx.Rngs,
    ):
        self.stem = _conv(channels_in, width, 3, 1, rngs)
        self.stem_norm = norm(width, rngs=rngs)
        blocks = []
        channels = width
        for stage, size in enumerate(stage_sizes):
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                channels_out = width * 2**stage
                blocks.append(ResidualBlock(norm, channels, channels_out, stride, rngs=rngs))
                channels = channels_out
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images (B, H, W, channels_in) to logits (B, classes)."""
        x = nnx.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))
