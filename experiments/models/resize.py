"""Resizes with aligned corners, which ``jax.image.resize`` does not have."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def resize_aligned(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns the bilinear interpolation in which the corner pixels of both images coincide.

    Output row i of h' lies at input row i (h - 1) / (h' - 1), and columns likewise: PyTorch's
    ``interpolate(mode="bilinear", align_corners=True)``, up to rounding.  ``jax.image.resize``
    puts the corners of the outermost pixels, not their centres, on each other (half-pixel
    centres).  There is no antialiasing: this is meant for enlarging.

    Args:
      x: (B, H, W, C), of a floating dtype.
      shape: (H', W') of the output.

    Returns:
      (B, H', W', C), in the dtype of ``x``.

    Raises:
      TypeError: ``x`` is not floating.
      ValueError: ``x`` does not have four axes or ``shape`` not two, or a size is not positive.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"can only resize a floating dtype; got {x.dtype}")
    if x.ndim != 4 or len(shape) != 2 or min(*shape, *x.shape[1:3]) < 1:
        raise ValueError(
            f"expected (B, H, W, C) and (H', W'), all positive; got {x.shape}, {shape}"
        )
    # Two products with small matrices.  Indexing and mixing neighbours takes a fifth of the time
    # forward on a CPU, but as long once its gradient (a scatter) is counted: forward and backward
    # (4,64,128,19)->(256,512) 86 ms and 97 ms, (2,16,32,128)->(128,256) 46 ms and 54 ms,
    # (4,48,64,32)->(96,128) 9 ms and 4 ms.  Accelerators are made for products, and on them
    # scatters are slow or depend on the order of execution.  "highest": otherwise accelerators
    # round float32 factors to fewer digits.
    for axis, (equation, size) in enumerate(
        zip(("oh,bhwc->bowc", "ow,bhwc->bhoc"), shape, strict=True), start=1
    ):
        if size != x.shape[axis]:
            weights = jnp.asarray(_weights(x.shape[axis], size), x.dtype)
            x = jnp.einsum(equation, weights, x, precision="highest")
    return x


def _weights(before: int, after: int) -> np.ndarray:
    """Returns the weights (after, before), float64: row i has those of output i."""
    # A single output has no spacing; like PyTorch, it is the first input.
    positions = np.arange(after) * ((before - 1) / max(after - 1, 1))
    return np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(before)))
