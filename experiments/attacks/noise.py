"""Random perturbations of a given root mean square, which no gradient guides.

All take an explicit key and keep the dtype of ``x``.  With ``bounds`` the result is clipped, which
makes the change smaller than ``rms`` where ``x`` is close to a bound.
"""

import math

import jax
import jax.numpy as jnp

Bounds = tuple[float, float]


def gaussian(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds normal noise of standard deviation ``rms``, in the units of ``x``."""
    return _add(x, jax.random.normal(key, x.shape, x.dtype), rms, bounds)


def uniform(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds uniform noise from [-sqrt(3) * rms, sqrt(3) * rms]."""
    edge = math.sqrt(3.0)
    return _add(x, jax.random.uniform(key, x.shape, x.dtype, -edge, edge), rms, bounds)


def rademacher(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds +rms or -rms to each value with equal chance: the random relative of FGSM."""
    return _add(x, jax.random.rademacher(key, x.shape, x.dtype), rms, bounds)


def _add(x: jax.Array, noise: jax.Array, rms: float, bounds: Bounds | None) -> jax.Array:
    if not (math.isfinite(rms) and rms >= 0):
        raise ValueError(f"rms must be finite and not negative; got {rms}")
    noisy = x + rms * noise
    return noisy if bounds is None else jnp.clip(noisy, bounds[0], bounds[1])
