"""Convolutions of bfloat16 activations by float32 kernels, whose gradients are float32 sums.

JAX's own gradient of a kernel that was cast to bfloat16 is bfloat16: it is rounded on each device,
and again in the sum over devices, so that the error grows with their number.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, linear_call


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel moves over its input.

    Attributes:
      strides: for each spatial axis.
      padding: (before, after) for each spatial axis.
      convolve: computes the convolution, with the arguments of ``lax.conv_general_dilated``.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    convolve: Callable[..., jax.Array] = lax.conv_general_dilated

    @property
    def layout(self) -> tuple[str, str, str]:
        """Channels last, as in ``NHWC`` and ``HWIO``."""
        space = "DHW"[-len(self.strides) :]
        return f"N{space}C", f"{space}IO", f"N{space}C"

    def apply(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Returns the convolution in the dtype of ``x``."""
        kernel = kernel.astype(x.dtype)
        return self.convolve(x, kernel, self.strides, self.padding, dimension_numbers=self.layout)

    def kernel_gradient(self, sizes: Sequence[int], x: jax.Array, g: jax.Array) -> jax.Array:
        """Returns the gradient of a kernel, (*sizes, I, O), in float32.

        Args:
          sizes: of the kernel, along the spatial axes.
          x: the input, (B, ..., I).
          g: the gradient of the output, (B, ..., O).
        """
        # A CPU computes in float32 in any case, and ``convolve`` may know a faster way there.
        cpu, default = self._by_float32, self._by_convolution
        return lax.platform_dependent(
            x, g, cpu=functools.partial(cpu, sizes), default=functools.partial(default, sizes)
        )

    def _by_float32(self, sizes: Sequence[int], x: jax.Array, g: jax.Array) -> jax.Array:
        x, g = x.astype(jnp.float32), g.astype(jnp.float32)
        kernel = jnp.zeros((*sizes, x.shape[-1], g.shape[-1]), jnp.float32)
        return jax.vjp(functools.partial(self.apply, x), kernel)[1](g)[0]

    def _by_convolution(self, sizes: Sequence[int], x: jax.Array, g: jax.Array) -> jax.Array:
        """Computes a convolution of which the examples are the channels.

        The output's gradient is its kernel, whose numbers lie as far apart as the strides say.
        """
        axes = zip(x.shape[1:-1], g.shape[1:-1], sizes, self.strides, self.padding, strict=True)
        # What is cut off, or never read, of the input's end has no part in it.
        padding = [(low, (n - 1) * s + k - size - low) for size, n, k, s, (low, _) in axes]
        space = self.layout[0][1:-1]
        return lax.conv_general_dilated(
            x,
            g,
            window_strides=(1,) * len(sizes),
            padding=padding,
            rhs_dilation=self.strides,
            dimension_numbers=(f"C{space}N", f"I{space}O", f"{space}NC"),
            preferred_element_type=jnp.float32,
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Convolves in the dtype of ``x``; the gradient of the kernel is summed in float32.

    Forward mode works as well; derivatives of a higher order do not, nor does ``jax.vmap`` of the
    kernel's gradient.

    Args:
      x: (B, ..., I).
      kernel: (..., I, O), float32.
      window: how it moves.

    Returns:
      (B, ..., O), in the dtype of ``x``.
    """
    return window.apply(x, kernel)


def _jvp(
    window: Window, primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    dx, dkernel = tangents
    y = convolve(x, kernel, window)
    sizes = kernel.shape[:-2]
    slopes = []
    if not isinstance(dx, SymbolicZero):
        slopes.append(window.apply(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        gradient = functools.partial(window.kernel_gradient, sizes)
        slopes.append(linear_call(window.apply, gradient, x, dkernel))
    return y, sum(slopes[1:], start=slopes[0]) if slopes else jnp.zeros_like(y)


convolve.defjvp(_jvp, symbolic_zeros=True)
