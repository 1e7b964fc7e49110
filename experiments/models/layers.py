"""What the networks have in common: convolutions as in PyTorch, and residual blocks."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.convolution import convolve3d
from experiments.models.mixed_precision import Window, convolve
from experiments.models.norms import NormFactory


class Conv(nnx.Conv):
    """Flax's convolution, with float32 gradients of kernel and bias whatever it computes in.

    Only strides and padding in numbers; no dilation, groups or mask.
    """

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Maps (B, ..., in_features) to (B, ..., out_features)."""
        kernel = self.kernel[...]
        assert isinstance(self.strides, tuple)
        assert isinstance(self.padding, tuple)
        window = Window(self.strides, self.padding, self.conv_general_dilated)
        x = x.astype(self.dtype)
        y = window.apply(x, kernel) if x.dtype == kernel.dtype else convolve(x, kernel, window)
        if self.bias is None:
            return y
        bias = self.bias[...].reshape((1,) * (y.ndim - 1) + (-1,))
        return (y.astype(bias.dtype) + bias).astype(y.dtype)


def conv(
    channels_in: int,
    channels_out: int,
    *,
    size: int = 3,
    stride: int = 1,
    spatial: int = 2,
    use_bias: bool = False,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> Conv:
    """Returns a convolution with float32 weights, padded as PyTorch pads.

    Args:
      channels_in: channels of the input.
      channels_out: channels of the output.
      size: odd edge length of the kernel.
      stride: in all directions; n pixels become ceil(n / stride).
      spatial: number of spatial axes.
      use_bias: not wanted before a norm, which would take the bias out again.
      dtype: of the computation and the result.
      rngs: random numbers for the weights.
    """
    # Not "SAME": for a 3x3 kernel with stride 2 on an even size, XLA then pads by (0, 1), which
    # moves the kernel by a pixel against PyTorch's symmetric (1, 1), and weights from there would
    # not give the same result.
    padding = ((size // 2, size // 2),) * spatial
    return Conv(
        channels_in,
        channels_out,
        kernel_size=(size,) * spatial,
        strides=(stride,) * spatial,
        padding=padding,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nnx.initializers.he_normal(),
        conv_general_dilated=convolve3d if spatial == 3 else jax.lax.conv_general_dilated,
        rngs=rngs,
    )


class ConvNorm(nnx.Module):
    """A convolution, a norm and (if wanted) a ReLU.

    Args:
      norm: builds the norm layer.
      channels_in: channels of the input.
      channels_out: channels of the output.
      relu: whether there is a ReLU at the end.
      rngs: random numbers for the weights.
      **options: of :func:`conv`.
    """

    def __init__(
        self,
        norm: NormFactory,
        channels_in: int,
        channels_out: int,
        *,
        relu: bool = True,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.conv = conv(channels_in, channels_out, rngs=rngs, **options)
        self.norm = norm(channels_out, rngs=rngs)
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, ..., channels_in) to (B, ..., channels_out)."""
        x = self.norm(self.conv(x))
        return nnx.relu(x) if self.relu else x


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions, each normalised, added to the input (He et al. 2016, figure 5 left).

    Args:
      norm: builds the norm layers.
      channels_in: channels of the input.
      width: channels of the convolutions and of the output.
      stride: of the first convolution and the shortcut.
      dtype: of the computation and the result.
      rngs: random numbers for the weights.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        norm: NormFactory,
        channels_in: int,
        width: int,
        stride: int = 1,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.conv1 = conv(channels_in, width, stride=stride, dtype=dtype, rngs=rngs)
        self.norm1 = norm(width, rngs=rngs)
        self.conv2 = conv(width, width, dtype=dtype, rngs=rngs)
        self.norm2 = norm(width, rngs=rngs)
        self.project = stride != 1 or channels_in != width
        if self.project:
            self.shortcut = conv(channels_in, width, size=1, stride=stride, dtype=dtype, rngs=rngs)
            self.shortcut_norm = norm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, channels_in) to (B, ceil(H / stride), ceil(W / stride), width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.project:
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(x + y)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each normalised, added to the input (figure 5 right).

    The 3x3 convolution of a block has its stride, as in PyTorch's ResNets; in He et al.
    2016 the first 1x1 convolution has it, and drops three quarters of its input.

    Args:
      norm: builds the norm layers.
      channels_in: channels of the input.
      width: channels of the 3x3 convolution; the output has four times as many.
      stride: of the 3x3 convolution and the shortcut.
      dtype: of the computation and the result.
      rngs: random numbers for the weights.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        norm: NormFactory,
        channels_in: int,
        width: int,
        stride: int = 1,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        wide = width * self.expansion
        self.conv1 = conv(channels_in, width, size=1, dtype=dtype, rngs=rngs)
        self.norm1 = norm(width, rngs=rngs)
        self.conv2 = conv(width, width, stride=stride, dtype=dtype, rngs=rngs)
        self.norm2 = norm(width, rngs=rngs)
        self.conv3 = conv(width, wide, size=1, dtype=dtype, rngs=rngs)
        self.norm3 = norm(wide, rngs=rngs)
        self.project = stride != 1 or channels_in != wide
        if self.project:
            self.shortcut = conv(channels_in, wide, size=1, stride=stride, dtype=dtype, rngs=rngs)
            self.shortcut_norm = norm(wide, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, channels_in) to (B, ceil(H / stride), ceil(W / stride), 4 * width)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.project:
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(x + y)


Block = type[BasicBlock] | type[Bottleneck]
