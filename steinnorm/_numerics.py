"""Small numerical helpers whose value and gradient stay finite at the singular points."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import polygamma


def safe_divide(numerator: jax.Array, denominator: jax.Array, otherwise: float) -> jax.Array:
    """``numerator / denominator`` where the denominator is positive, else ``otherwise``.

    The denominator is replaced before the division as well as the quotient after it: with one
    ``where`` alone the gradient at zero would be 0 * inf = NaN.
    """
    valid = denominator > 0
    quotient = numerator / jnp.where(valid, denominator, 1)
    return jnp.where(valid, quotient, jnp.asarray(otherwise, quotient.dtype))


def largest_magnitude(x: jax.Array) -> jax.Array:
    """Largest magnitude in ``x``, or 1 where ``x`` is all zeros; constant under differentiation.

    Dividing by it first keeps squares from overflowing or underflowing. It is used only in
    expressions that do not depend on the scale, so treating it as a constant is exact.
    """
    magnitude = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0))
    return jnp.where(magnitude >= jnp.finfo(x.dtype).tiny, magnitude, 1)


def geometric_mean(x: jax.Array) -> jax.Array:
    """Geometric mean of non-negative ``x``, shape (C,), through logarithms.

    The product of a few hundred variances leaves the range of float32 (1.44**512 overflows);
    the mean of their logarithms does not. Zero, with gradient zero, if any entry is zero.
    """
    positive = x >= jnp.finfo(x.dtype).tiny
    mean_log = jnp.mean(jnp.log(jnp.where(positive, x, 1)))
    return jnp.where(jnp.all(positive), jnp.exp(mean_log), 0)


def trigamma_inverse(x: jax.Array) -> jax.Array:
    """The y > 0 with trigamma(y) = x, for x > 0.

    Newton's method on 1 / trigamma, which is nearly linear, so that it converges from
    y = 1/2 + 1/x without overshooting (Smyth 2004, appendix). The last step is written so that
    its derivative is that of the inverse function.
    """
    small, large = 1e-7, 1e7
    inside = jnp.clip(x, small, large)
    start = jax.lax.stop_gradient(inside)
    y = 0.5 + 1 / start
    for _ in range(8):  # quadratic convergence: 6 steps reach float64 precision on [1e-7, 1e7]
        trigamma = polygamma(1, y)
        y = y + trigamma * (1 - trigamma / start) / polygamma(2, y)
    y = jax.lax.stop_gradient(y)
    y = y + (inside - polygamma(1, y)) / polygamma(2, y)
    # Outside, the leading terms of the two asymptotic series are exact to rounding.
    low = 1 / jnp.minimum(x, small)
    high = jax.lax.rsqrt(jnp.maximum(x, large))
    return jnp.where(x < small, low, jnp.where(x > large, high, y))
