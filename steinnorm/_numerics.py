"""Small numerical helpers whose value and gradient stay finite at the singular points."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import polygamma


def safe_divide(numerator: jax.Array, denominator: jax.Array, otherwise: float) -> jax.Array:
    """``numerator / denominator`` where the denominator is positive, else ``otherwise``.

    The denominator is replaced before the division as well as the quotient after it: with one
    ``where`` alone the gradient at zero would be 0 * inf = NaN.
    """
    valid = denominator > 0
    quotient = numerator / jnp.where(valid, denominator, 1)
    return jnp.where(valid, quotient, jnp.asarray(otherwise, quotient.dtype))


def abs_squared(x: jax.Array) -> jax.Array:
    """Returns the squared magnitude, real."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def real(x: jax.Array) -> jax.Array:
    """Returns the real part; a real array as it is, without an operation."""
    return x.real if jnp.iscomplexobj(x) else x


def power_of_two_near(x: jax.Array) -> jax.Array:
    """Returns the power of two next to ``x``, a unit in which values of that size square safely.

    1 for zero. Constant under differentiation; to divide by it rounds nothing.
    """
    kind = jnp.finfo(x.dtype)
    # The bits of the exponent alone: frexp and ldexp are some 100 instructions on a TPU.
    exponent = (1 << kind.nexp) - 1 << kind.nmant
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), f"int{kind.bits}")
    size = lax.bitcast_convert_type(bits & exponent, x.dtype)
    return jnp.where(size > 0, jnp.clip(size, 2.0**-60, 2.0**60), 1)


def largest_magnitude(x: jax.Array) -> jax.Array:
    """Largest magnitude in ``x``, or 1 where ``x`` is all zeros; constant under differentiation.

    Dividing by it first keeps squares from overflowing or underflowing. It is used only in
    expressions that do not depend on the scale, so treating it as a constant is exact.
    """
    magnitude = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0))
    # Above this the reciprocal, by which XLA may replace the division, would be subnormal.
    magnitude = jnp.minimum(magnitude, jnp.finfo(x.dtype).max / 16)
    return jnp.where(magnitude >= jnp.finfo(x.dtype).tiny, magnitude, 1)


def log_of_ratio(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns log(x / scale) of positive values, also where the ratio is too small for a float.

    There the difference of the logarithms, which is as large as they are, has lost no digits.
    """
    near = x >= 1e-4 * scale
    return jnp.where(near, jnp.log(jnp.where(near, x / scale, 1)), jnp.log(x) - jnp.log(scale))


@jax.custom_jvp
def geometric_mean(x: jax.Array) -> jax.Array:
    """Geometric mean of non-negative ``x``, shape (C,), through logarithms.

    The product of a few hundred variances leaves the range of float32 (1.44**512 overflows);
    the mean of their logarithms does not. Zero, with gradient zero, if any entry is zero, NaN or
    infinite.
    """
    positive = (x >= jnp.finfo(x.dtype).tiny) & (x < jnp.inf)
    # One logarithm of almost minus infinity is enough to make the exponential zero.
    return jnp.exp(jnp.mean(jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -1e30)))


@geometric_mean.defjvp
def _geometric_mean_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    mean = geometric_mean(x)
    slope = mean * jnp.mean(dx / jnp.where(mean > 0, x, 1))
    return mean, jnp.where(mean > 0, slope, 0)  # and not 0 times NaN


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def shrunk_by_spread(x: jax.Array, kept: float) -> jax.Array:
    """Returns f x, with f = 1 - (1 - kept) D / sum(x^2), D the sum of squares about the average.

    With sum(x^2) = D + C xbar^2 this is kept + (1 - kept) C xbar^2 / sum(x^2): a sum of positive
    terms, where the usual form cancels to a relative error of 1e-4 in float32 at C = 4096. Zero,
    with the gradient of x itself, where all of ``x``, shape (C,), is zero.
    """
    return _spread_factor(x, kept)[0] * x


def _spread_factor(x: jax.Array, kept: float) -> tuple[jax.Array, ...]:
    """Returns the factor, x in units of its largest magnitude, the factor's slope by it.

    And whether it has one.
    """
    t = x / largest_magnitude(x)
    squares = jnp.sum(jnp.square(t))
    # Not of nothing, and not of a channel that is infinite or NaN, which would be all others' too.
    some = (squares > 0) & (squares < jnp.inf)
    squares = jnp.where(some, squares, 1)
    average = jnp.where(some, jnp.mean(t), 0)
    pull = x.size * average / squares
    factor = kept + (1 - kept) * jnp.where(some, average * pull, 1)
    slope = (1 - kept) * 2 * average / squares * (1 - pull * t)
    return factor, jnp.where(some, t, 0), jnp.where(some, slope, 0), some


@shrunk_by_spread.defjvp
def _shrunk_by_spread_jvp(
    kept: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    factor, t, slope, some = _spread_factor(x, kept)
    # d factor = sum(slope dx) / largest, and x / largest is t.
    through_factor = jnp.sum(slope * dx) * t
    # Selected, because a cotangent of a channel that is NaN is so too, and 0 times it as well.
    return factor * x, factor * dx + jnp.where(some, through_factor, 0)


def promote_types(*dtypes: Any) -> Any:
    """The smallest dtype that holds all of ``dtypes``, also where users made promotion strict.

    The casts that follow are explicit, which is what strict promotion asks for.
    """
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


@jax.custom_jvp
def trigamma_inverse(x: jax.Array) -> jax.Array:
    """The y > 0 with trigamma(y) = x, for x > 0.

    Newton's method on 1 / trigamma, which is nearly linear, so that it converges from
    y = 1/2 + 1/x without overshooting (Smyth 2004, appendix).
    """
    small, large = 1e-7, 1e7
    inside = jnp.clip(x, small, large)

    def step(_: int, y: jax.Array) -> jax.Array:
        trigamma = polygamma(1, y)
        return y + trigamma * (1 - trigamma / inside) / polygamma(2, y)

    # Quadratic convergence: 6 steps reach float64 precision anywhere in [small, large].
    y = lax.fori_loop(0, 8, step, 0.5 + 1 / inside)
    # Outside, the leading terms of the two asymptotic series are exact to rounding.
    low = 1 / jnp.minimum(x, small)
    high = lax.rsqrt(jnp.maximum(x, large))
    return jnp.where(x < small, low, jnp.where(x > large, high, y))


@trigamma_inverse.defjvp
def _trigamma_inverse_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    y = trigamma_inverse(*primals)
    return y, tangents[0] / polygamma(2, y)
