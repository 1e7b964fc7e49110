"""High-resolution networks for segmentation, for any norm.

Wang et al. 2020, "Deep High-Resolution Representation Learning for Visual Recognition"
(arXiv:1908.07919), with the head of HRNetV2 (Sun et al. 2019, arXiv:1904.04514).  Branches of
different resolutions run side by side and exchange what they know after every few blocks.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.layers import BasicBlock, Bottleneck, ConvNorm, conv
from experiments.models.norms import NormFactory
from experiments.models.resize import resize_aligned

_STEM = 64  # channels of the stem, in all sizes


@dataclasses.dataclass(frozen=True)
class HRNetSize:
    """The numbers in which high-resolution networks differ.

    Attributes:
      stem_strides: of the two convolutions of the stem.
      first_blocks: bottleneck blocks of the first stage.
      first_width: channels of their 3x3 convolutions; their outputs have four times as many.
      channels: of the branches, from the highest resolution to the lowest.  The network has as
        many stages; stage s has s branches.
      modules: of the stages after the first: how often branches run and are fused.
      blocks: basic blocks of a branch between two fusions.
    """

    stem_strides: tuple[int, int]
    first_blocks: int
    first_width: int
    channels: tuple[int, ...]
    modules: tuple[int, ...]
    blocks: int


SIZES = {
    # Every kind of layer once, for smoke runs.
    "smoke": HRNetSize((2, 2), 1, 4, (4, 8, 16), (1, 1), 1),
    # The code released with the paper on Stein batch norm.
    "paper": HRNetSize((1, 1), 1, 32, (16, 32, 64, 128), (1, 1, 1), 2),
    # HRNetV2-W18 and -W48, as published for Cityscapes.
    "w18": HRNetSize((2, 2), 4, 64, (18, 36, 72, 144), (1, 4, 3), 4),
    "w48": HRNetSize((2, 2), 4, 64, (48, 96, 192, 384), (1, 4, 3), 4),
}


def _by_name(name: str) -> HRNetSize:
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; expected one of {', '.join(SIZES)}")
    return SIZES[name]


class Fusion(nnx.Module):
    """Every branch receives the sum of all branches, brought to its size and channels.

    Branch j reaches a higher resolution by a 1x1 convolution and bilinear resizing, a lower one
    by 3x3 convolutions of stride 2, itself unchanged; all convolutions have a norm.

    Args:
      norm: builds the norm layers.
      channels: of the branches, from the highest resolution to the lowest.
      dtype: of the computation and the results.
      rngs: random numbers for the weights.
    """

    def __init__(self, norm: NormFactory, channels: Sequence[int], *, dtype: Any, rngs: nnx.Rngs):
        def path(source: int, target: int) -> nnx.Sequential:
            before, after = channels[source], channels[target]
            if target < source:
                up = ConvNorm(norm, before, after, size=1, relu=False, dtype=dtype, rngs=rngs)
                return nnx.Sequential(up)
            return nnx.Sequential(
                *(
                    ConvNorm(
                        norm,
                        before,
                        after if step == target else before,
                        stride=2,
                        # The ReLU of the last one comes after the sum.
                        relu=step < target,
                        dtype=dtype,
                        rngs=rngs,
                    )
                    for step in range(source + 1, target + 1)
                )
            )

        branches = range(len(channels))
        self.paths = nnx.List(nnx.List(path(j, i) for j in branches) for i in branches)

    def __call__(self, branches: Sequence[jax.Array]) -> list[jax.Array]:
        """Maps branches (B, H_j, W_j, C_j) to branches of the same shapes."""
        fused = []
        for target, here in enumerate(branches):
            total = here
            for source, x in enumerate(branches):
                if source != target:
                    y = self.paths[target][source](x)
                    total = total + resize_aligned(y, here.shape[1:3])
            fused.append(nnx.relu(total))
        return fused


class Stage(nnx.Module):
    """A new branch of half the lowest resolution, then modules of blocks and a fusion.

    Args:
      norm: builds the norm layers.
      channels_in: of the branches that come in.
      channels: of the branches that go out, one more; where they differ from what comes in,
        a 3x3 convolution changes them.
      modules: how often blocks and a fusion follow each other.
      blocks: basic blocks per branch and module.
      dtype: of the computation and the results.
      rngs: random numbers for the weights.
    """

    def __init__(
        self,
        norm: NormFactory,
        channels_in: Sequence[int],
        channels: Sequence[int],
        *,
        modules: int,
        blocks: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.changes = nnx.List(
            nnx.Sequential(*([] if a == b else [ConvNorm(norm, a, b, dtype=dtype, rngs=rngs)]))
            for a, b in zip(channels_in, channels, strict=False)
        )
        self.lowest = ConvNorm(
            norm, channels_in[-1], channels[-1], stride=2, dtype=dtype, rngs=rngs
        )
        self.branches = nnx.List(
            nnx.List(
                nnx.Sequential(
                    *(BasicBlock(norm, c, c, dtype=dtype, rngs=rngs) for _ in range(blocks))
                )
                for c in channels
            )
            for _ in range(modules)
        )
        self.fusions = nnx.List(
            Fusion(norm, channels, dtype=dtype, rngs=rngs) for _ in range(modules)
        )

    def __call__(self, inputs: Sequence[jax.Array]) -> list[jax.Array]:
        """Maps n branches (B, H_j, W_j, C_j) to n + 1."""
        x = [change(y) for change, y in zip(self.changes, inputs, strict=True)]
        x.append(self.lowest(inputs[-1]))
        for branches, fusion in zip(self.branches, self.fusions, strict=True):
            x = fusion([branch(y) for branch, y in zip(branches, x, strict=True)])
        return x


class HRNet(nnx.Module):
    """Stem, stages with ever more branches, and a head on all of them.

    Images may have any size: going down halves and rounds up, and going up resizes to the size
    of the branch that is fused into.  All resizing is bilinear with aligned corners, as in the
    official code.

    Args:
      norm: builds the norm layers; the network knows nothing else about them.
      size: ``paper`` (that of the paper's code, 1.54 million parameters with 19 outputs), ``w18``
        or ``w48`` (the official ones, 9.64 and 65.86 million), or numbers of one's own.
      channels_in: channels of the images.
      outputs: number of logits per pixel.
      stem_strides: instead of those of ``size``: (1, 1) in ``paper``, all of the network at full
        resolution; (2, 2) in the others, whose logits are resized to the image's size.
      dtype: of activations; parameters, the head and the result are float32.
      rngs: random numbers for the weights.

    Raises:
      ValueError: an unknown size; the message lists the known ones.
    """

    def __init__(
        self,
        norm: NormFactory,
        *,
        size: str | HRNetSize,
        channels_in: int,
        outputs: int,
        stem_strides: tuple[int, int] | None = None,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        size = _by_name(size) if isinstance(size, str) else size
        one, two = size.stem_strides if stem_strides is None else stem_strides
        self.stem = nnx.Sequential(
            ConvNorm(norm, channels_in, _STEM, stride=one, dtype=dtype, rngs=rngs),
            ConvNorm(norm, _STEM, _STEM, stride=two, dtype=dtype, rngs=rngs),
        )
        wide = Bottleneck.expansion * size.first_width
        self.first = nnx.Sequential(
            *(
                Bottleneck(norm, before, size.first_width, dtype=dtype, rngs=rngs)
                for before in (_STEM, *[wide] * (size.first_blocks - 1))
            )
        )
        channels = size.channels
        self.stages = nnx.List(
            Stage(
                norm,
                channels[:count] if count > 1 else (wide,),
                channels[: count + 1],
                modules=modules,
                blocks=size.blocks,
                dtype=dtype,
                rngs=rngs,
            )
            for count, modules in enumerate(size.modules, start=1)
        )
        total = sum(channels)
        self.mix = ConvNorm(norm, total, total, size=1, use_bias=True, dtype=dtype, rngs=rngs)
        self.head = conv(total, outputs, size=1, use_bias=True, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images (B, H, W, channels_in) to logits (B, H, W, outputs)."""
        shape = x.shape[1:3]
        branches = [self.first(self.stem(x))]
        for stage in self.stages:
            branches = stage(branches)
        highest = branches[0].shape[1:3]
        x = jnp.concatenate([resize_aligned(y, highest) for y in branches], axis=-1)
        return resize_aligned(self.head(self.mix(x)), shape)
