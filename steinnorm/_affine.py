"""The layer's last step, y = x a + d: a and d per channel, and a gradient that stores x alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from steinnorm._numerics import promote_types, safe_divide
from steinnorm.statistics import Moments

__all__ = ["coefficients", "scaled_and_shifted"]


def coefficients(
    used: Moments,
    own: Moments,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: ArrayLike,
    *,
    straight_through: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The a and d of y = x a + d, per channel, in float32 or wider.

    Beside a mean of some deviations x a and d cancel: rounded to bfloat16 they would leave little.
    """
    used, own = (Moments(*map(_at_least_float32, moments)) for moments in (used, own))
    affine = [p for p in (scale, bias) if p is not None]
    dtype = promote_types(used.mean.dtype, *(p.dtype for p in affine))
    epsilon = jnp.asarray(epsilon, used.variance.dtype)
    used_inverse = lax.rsqrt(used.variance + epsilon)
    if straight_through:
        # x_hat = (x - own mean) / own deviation, then r x_hat + s with r and s held constant:
        # the value is (x - used mean) / used deviation, the gradient that of batch norm.
        inverse = lax.rsqrt(own.variance + epsilon)
        # Of a variance too large for a float both are 0.
        r = lax.stop_gradient(safe_divide(used_inverse, inverse, otherwise=1.0))
        s = lax.stop_gradient((own.mean - used.mean) * used_inverse)
        a, d = inverse * r, s - own.mean * inverse * r
    else:
        a = used_inverse
        d = -used.mean * a.astype(used.mean.dtype)
    a, d = a.astype(dtype), d.astype(dtype)
    if scale is not None:
        a, d = a * scale.astype(dtype), d * scale.astype(dtype)
    if bias is not None:
        d = d + bias.astype(dtype)
    return a, d


def _at_least_float32(a: jax.Array) -> jax.Array:
    return a.astype(promote_types(a.dtype, jnp.float32))


def _wide(features: tuple[int, ...], per_channel: jax.Array, ndim: int) -> jax.Array:
    """Adds axes of size 1, so that per-channel values broadcast over the input."""
    return lax.expand_dims(per_channel, [i for i in range(ndim) if i not in features])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def scaled_and_shifted(
    features: tuple[int, ...], out_dtype: Any, x: jax.Array, a: jax.Array, d: jax.Array
) -> jax.Array:
    """Returns x a + d in ``out_dtype``; its gradient keeps x itself and no other such array."""
    dtype = promote_types(x.dtype, a.dtype)
    a, d = (_wide(features, p.astype(dtype), x.ndim) for p in (a, d))
    return (x.astype(dtype) * a + d).astype(out_dtype)


@scaled_and_shifted.defjvp
def _scaled_and_shifted_jvp(
    features: tuple[int, ...],
    out_dtype: Any,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    """Differentiates x a + d; the compiler may not see that it is the same a in both directions.

    It would otherwise write out the one broadcast that both use, an array of the size of x, where
    reductions are library calls (XLA's CPU backend).
    """
    x, a, _ = primals
    slope = jax.checkpoint(functools.partial(_slope, features, out_dtype), prevent_cse=False)
    change = slope(x, lax.optimization_barrier(a), tangents)
    return scaled_and_shifted(features, out_dtype, *primals), change


def _slope(
    features: tuple[int, ...],
    out_dtype: Any,
    x: jax.Array,
    a: jax.Array,
    tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """Returns how x a + d changes with its three parts."""
    dx, da, dd = tangents
    dtype = promote_types(x.dtype, a.dtype)
    a, da, dd = (_wide(features, p.astype(dtype), x.ndim) for p in (a, da, dd))
    return (dx.astype(dtype) * a + x.astype(dtype) * da + dd).astype(out_dtype)
