"""Standardised inputs as a part of the network."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike


class Standardised(nnx.Module):
    """A network of inputs in [0, 1] that sees ``(x - mean) / std``.

    Inside the model, because attacks and their radii are in units of the input range [0, 1].

    Args:
      network: any module that maps one array (..., C).
      mean: (C,), subtracted; stored as a variable that is no parameter.
      std: (C,), the divisor, likewise.

    Raises:
      ValueError: the two are not of one shape (C,), or ``std`` is not positive everywhere, or
        one of them is not finite.
    """

    def __init__(self, network: nnx.Module, mean: ArrayLike, std: ArrayLike):
        mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError(
                f"mean and std must both have shape (C,); got {mean.shape} and {std.shape}"
            )
        if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(std)) and np.all(std > 0)):
            raise ValueError(
                f"mean and std must be finite and std positive; got mean {mean}, std {std}"
            )
        self.network = network
        self.mean = nnx.Variable(jnp.asarray(mean))
        self.std = nnx.Variable(jnp.asarray(std))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to what the network makes of it, standardised in float32."""
        mean, std = self.mean[...], self.std[...]
        if x.shape[-1:] != mean.shape:
            raise ValueError(f"expected inputs of {mean.shape[0]} channels; got shape {x.shape}")
        shape = (1,) * (x.ndim - 1) + mean.shape
        return self.network((x.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(shape))
