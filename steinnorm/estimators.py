"""Shrinkage estimators of C channel means and variances, as pure functions.

Every function takes arrays of shape (C,) (jnp or NumPy, a real floating dtype) and returns an
array of shape (C,) in float32, or in float64 where the input is float64. All of them work under
``jit``, ``vmap``, ``grad`` and forward mode; value and gradient are finite for every finite
input, zero means and zero variances included, as far as floats can hold the true ones.

Stein's phenomenon needs at least three channels: with C <= 2 every Stein rule here returns its
input unchanged.

Errors common to all: ``TypeError`` for an integer, boolean or complex input; ``ValueError`` for one
that is not of shape (C,), for a negative count and for a negative strength.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, polygamma
from jax.typing import ArrayLike

from steinnorm import _checks
from steinnorm._numerics import (
    geometric_mean,
    largest_magnitude,
    log_of_ratio,
    safe_divide,
    shrunk_by_spread,
    trigamma_inverse,
)

__all__ = [
    "james_stein",
    "jsnorm_mean",
    "jsnorm_variance",
    "lasso_mean",
    "lasso_variance",
    "moderated_variance",
    "ridge_mean",
    "ridge_variance",
    "stein_mean",
    "stein_variance",
]


def stein_mean(mean: ArrayLike) -> jax.Array:
    r"""Shrinks channel means towards zero by their spread between channels.

    .. math:: f\,m_i,\quad
       f = 1 - \frac{C-2}{C+1}\,\frac{\sum_i (m_i - \bar m)^2}{\sum_i m_i^2}

    James-Stein with unknown variance, in which the spread between the channels stands for the
    noise. The factor lies in [3/(C+1), 1], so a positive part would never bind. It does not
    depend on the number of observations: real differences between channels count as noise, and
    with channel means that average to zero the rule removes almost all of the mean.

    It does not dominate the sample means: with independent normal noise it is better where true
    means are equal or small beside the noise; with true means t (1, -1, 0) it is worse beyond
    t^2 = 10.9 times the noise variance, and it is not consistent. Proof: ``docs/theory.md``.

    Args:
      mean: sample means, shape (C,). The identity for C <= 2.

    Returns:
      The shrunk means, shape (C,); zeros where all means are zero.

    References:
      arXiv 2507.08261 (2025), the estimator of the means; James & Stein (1961).

    Example:
      >>> import jax.numpy as jnp
      >>> stein_mean(jnp.array([1.0, -1.0, 0.0]))
      Array([ 0.75, -0.75,  0.  ], dtype=float32)
    """
    mean = _checks.channel_array("mean", mean)
    return mean if mean.size <= 2 else shrunk_by_spread(mean, 3 / (mean.size + 1))


def stein_variance(
    variance: ArrayLike, count: ArrayLike, *, fraction: ArrayLike = 1.0
) -> jax.Array:
    r"""Shrinks channel variances and adds a share of their geometric mean.

    .. math:: \frac{N}{N+1} v_i + \mathrm{fraction}\cdot M\,G,\quad
       G = \Big(\prod_i v_i\Big)^{1/C},\quad
       M = \frac{4(C-1)N}{(N+1)((N-1)C+2)}

    N/(N+1) v is the best multiple of the biased sample variance under squared error; adding a
    multiple of G improves on it, for independent channels of independent normal values (nothing is
    proved for correlated pixels or channels, as in a network). M is the upper *end* of the interval
    in which that is proved: for X_i ~ Gamma(a, theta_i) the risk of X/(a+1) + c G is below that of
    X/(a+1) for 0 < c < 2(C-1)/((a+1)(Ca+1)), and M is that bound at a = (N-1)/2 in units of v. For
    large N and equal variances the gain vanishes at M and is largest at its midpoint,
    ``fraction=0.5``; for small N the bound is loose and the best fraction larger (N=4, C=64: 0.72;
    `pytest tests/test_dominance.py` compares risks with the closed form).

    Args:
      variance: biased sample variances (divided by N), shape (C,). The identity for C <= 2.
      count: N, the number of values behind each variance, scalar or (C,); N >= 2.
      fraction: share of M, in (0, 1].

    Returns:
      The shrunk variances, shape (C,). One zero variance makes G, and so the added term, zero.

    Raises:
      ValueError: ``fraction`` outside (0, 1], or a negative count.

    References:
      arXiv 2507.08261 (2025), the estimator of the variances; DasGupta (1986), "Simultaneous
      estimation in the multiparameter gamma distribution under weighted quadratic losses".

    Example:
      >>> import jax.numpy as jnp
      >>> [f"{v:.3f}" for v in stein_variance(jnp.array([1.0, 1.0, 4.0]), 9)]
      ['1.340', '1.340', '4.040']
    """
    variance = _checks.channel_array("variance", variance)
    n = _checks.count_like("count", count, variance)
    share = _checks.fraction(fraction)
    channels = variance.size
    if channels <= 2:
        return variance
    largest = 4 * (channels - 1) * (n / (n + 1)) / ((n - 1) * channels + 2)
    return n / (n + 1) * variance + share * largest * geometric_mean(variance)


def jsnorm_mean(mean: ArrayLike) -> jax.Array:
    r"""Shrinks channel means as JSNorm does.

    .. math:: \Big(1 - (C-2)\,\frac{\mathrm{Var}_c(m)}{\sum_i m_i^2}\Big)\,m

    with the population variance over channels (divided by C). The factor lies in [2/C, 1].

    Args:
      mean: sample means, shape (C,). The identity for C <= 2.

    Returns:
      The shrunk means, shape (C,).

    References:
      Khoshsirat & Kambhamettu (2024), "Improving Normalization with the James-Stein Estimator",
      arXiv 2312.00313.

    Example:
      >>> import jax.numpy as jnp
      >>> jsnorm_mean(jnp.array([1.0, -1.0, 1.0, -1.0]))
      Array([ 0.5, -0.5,  0.5, -0.5], dtype=float32)
    """
    return _jsnorm(_checks.channel_array("mean", mean))


def jsnorm_variance(variance: ArrayLike) -> jax.Array:
    r"""Shrinks channel variances as JSNorm does: the rule of :func:`jsnorm_mean`, applied to v.

    Args:
      variance: sample variances, shape (C,). The identity for C <= 2.

    Returns:
      The shrunk variances, shape (C,).

    References:
      Khoshsirat & Kambhamettu (2024), arXiv 2312.00313.

    Example:
      >>> import jax.numpy as jnp
      >>> jsnorm_variance(jnp.array([1.0, 1.0, 1.0]))
      Array([1., 1., 1.], dtype=float32)
    """
    return _jsnorm(_checks.channel_array("variance", variance))


def ridge_mean(mean: ArrayLike, count: ArrayLike, *, strength: ArrayLike) -> jax.Array:
    r"""Ridge estimate of the means, :math:`m\,N/(N+s)`.

    Args:
      mean: sample means, shape (C,).
      count: N, the number of values behind each mean, scalar or (C,).
      strength: s >= 0, in units of observations.

    Returns:
      The shrunk means, shape (C,).

    References:
      The baseline of the released code of arXiv 2507.08261; Hoerl & Kennard (1970).

    Example:
      >>> import jax.numpy as jnp
      >>> ridge_mean(jnp.array([1.0, 2.0]), 3, strength=1.0)
      Array([0.75, 1.5 ], dtype=float32)
    """
    mean = _checks.channel_array("mean", mean)
    n = _checks.count_like("count", count, mean)
    s = _checks.strength(strength)
    return mean * safe_divide(n, n + s, otherwise=1.0)


def ridge_variance(variance: ArrayLike, *, strength: ArrayLike) -> jax.Array:
    r"""Ridge estimate of the variances, :math:`v/(1+s)`.

    Args:
      variance: sample variances, shape (C,).
      strength: s >= 0.

    Returns:
      The shrunk variances, shape (C,).

    References:
      The baseline of the released code of arXiv 2507.08261.

    Example:
      >>> import jax.numpy as jnp
      >>> ridge_variance(jnp.array([1.0, 2.0]), strength=1.0)
      Array([0.5, 1. ], dtype=float32)
    """
    variance = _checks.channel_array("variance", variance)
    return variance / (1 + _checks.strength(strength))


def lasso_mean(mean: ArrayLike, count: ArrayLike, *, strength: ArrayLike) -> jax.Array:
    r"""Lasso estimate of the means, :math:`\mathrm{sign}(m)\max(|m| - s/(2N), 0)`.

    Args:
      mean: sample means, shape (C,).
      count: N, the number of values behind each mean, scalar or (C,).
      strength: s >= 0.

    Returns:
      The soft-thresholded means, shape (C,).

    References:
      The baseline of the released code of arXiv 2507.08261; Tibshirani (1996).

    Example:
      >>> import jax.numpy as jnp
      >>> lasso_mean(jnp.array([1.0, -0.25]), 2, strength=2.0)
      Array([ 0.5, -0. ], dtype=float32)
    """
    mean = _checks.channel_array("mean", mean)
    n = _checks.count_like("count", count, mean)
    threshold = _checks.strength(strength) / jnp.maximum(2 * n, jnp.finfo(mean.dtype).tiny)
    return jnp.sign(mean) * jnp.maximum(jnp.abs(mean) - threshold, 0)


def lasso_variance(variance: ArrayLike, *, strength: ArrayLike) -> jax.Array:
    r"""Lasso estimate of the variances, :math:`\max(v - s/2, 0)`.

    Args:
      variance: sample variances, shape (C,).
      strength: s >= 0.

    Returns:
      The soft-thresholded variances, shape (C,).

    References:
      The baseline of the released code of arXiv 2507.08261.

    Example:
      >>> import jax.numpy as jnp
      >>> lasso_variance(jnp.array([1.0, 0.25]), strength=1.0)
      Array([0.5, 0. ], dtype=float32)
    """
    variance = _checks.channel_array("variance", variance)
    return jnp.maximum(variance - _checks.strength(strength) / 2, 0)


def james_stein(
    estimate: ArrayLike,
    noise_variance: ArrayLike,
    *,
    target: ArrayLike | Literal["mean"] = 0.0,
    positive_part: bool = True,
    effective_dimension: ArrayLike | None = None,
) -> jax.Array:
    r"""Shrinks estimates with known noise towards a target.

    .. math:: t_i + \Big(1 - \frac{k}{S}\Big)_{+} (x_i - t_i),\quad
       S = \frac{\sum_i (x_i - t_i)^2}{\overline{\sigma^2}}

    with k = C - 2, or C - 3 where the target is the estimates' own average (one degree of freedom
    is spent on it).

    Proved: for *independent* normal estimates of equal, known variance this dominates the
    estimates themselves under squared error, whatever the true values. Of correlated estimates,
    with covariance Sigma and its largest eigenvalue lmax, that is proved where tr Sigma >= 4 lmax;
    with correlations of 0.6 between all of 16 the risk reaches 1.13 times theirs. There
    ``effective_dimension`` = tr Sigma / lmax lowers k to (tr Sigma - 2 lmax) / (tr Sigma / C): the
    rule dominates where that is positive, and changes nothing elsewhere. With noise that is not
    normal nothing is proved (``docs/theory.md``, with the commands that give these numbers).

    Args:
      estimate: x, shape (C,).
      noise_variance: sampling variance of the estimates, scalar or (C,); its average is used.
      target: a scalar, an array of shape (C,), or ``"mean"`` for the estimates' own average.
      positive_part: clip the factor at zero, which dominates the unclipped rule.
      effective_dimension: trace of the estimates' covariance over its largest eigenvalue, a scalar
        in [1, C], may be traced; only with a fixed target. None is C: independent, equal variance.

    Returns:
      The shrunk estimates, shape (C,). The target where all estimates equal it. The estimates
      themselves where k <= 0 (C <= 2, or C <= 3 with ``target="mean"``; an effective dimension of
      at most 2).

    Raises:
      ValueError: a target or noise of another shape, an unknown name as target, an effective
        dimension that is no scalar in [1, C] or comes with ``target="mean"``.

    References:
      James & Stein (1961); Baranchik (1964), the positive part; Lindley (1962), the average as
      target; Efron & Morris (1973); Bock (1975), correlated estimates.

    Example:
      >>> import jax.numpy as jnp
      >>> james_stein(jnp.array([2.0, 0.0, 0.0, 0.0]), 1.0)
      Array([1., 0., 0., 0.], dtype=float32)
    """
    estimate = _checks.channel_array("estimate", estimate)
    noise = jnp.mean(_checks.channel_or_scalar("noise_variance", noise_variance, estimate))
    if isinstance(target, str):
        _checks.one_of("target, where it is a name,", target, ["mean"])
        size = largest_magnitude(estimate)  # the sum of large estimates might overflow
        centre, lost = jnp.mean(estimate / size) * size, 3
    else:
        centre, lost = _checks.channel_or_scalar("target", target, estimate), 2
    degrees = estimate.size - lost
    d = _checks.effective_dimension(effective_dimension, estimate.size, fixed=lost == 2)
    if degrees <= 0:
        return estimate
    residual = estimate - centre
    # Squares in units of the largest residual stay in range; where the noise does not, in those
    # units, the target is reached anyway, and the division below is kept from happening.
    scale = largest_magnitude(residual)
    spread = jnp.sum(jnp.square(residual / scale))
    needed = (degrees if d is None else jnp.maximum(estimate.size * (1 - 2 / d), 0)) * noise
    at_target = spread <= 0
    if positive_part:
        at_target = at_target | (needed / scale / scale >= spread)
    scale, spread = jnp.where(at_target, 1, scale), jnp.where(at_target, 1, spread)
    share = jnp.where(at_target, 1, needed / scale / scale / spread)  # k / S
    # A weighted average: adding a shrunk residual to a large target would lose its digits.
    return (1 - share) * estimate + share * centre


def moderated_variance(variance: ArrayLike, degrees_of_freedom: ArrayLike) -> jax.Array:
    r"""Empirical-Bayes variances: squeezed towards a common value that is estimated with them.

    .. math:: \tilde v_i = \frac{d_0 s_0^2 + d\,v_i}{d_0 + d}

    where v_i d / sigma_i^2 ~ chi^2_d and 1/sigma_i^2 ~ chi^2_{d_0} / (d_0 s_0^2). The prior's
    s_0^2 and degrees of freedom d_0 come from the mean and variance of log v over the channels;
    channels that vary no more than sampling explains give d_0 = infinity, i.e. one common value.

    Args:
      variance: sample variances, shape (C,). The identity for C <= 2.
      degrees_of_freedom: d of each variance, scalar or (C,); N - 1 for a sample of N.

    Returns:
      The moderated variances, shape (C,). Zero variances, and those with d <= 0, are left out when
      the prior is estimated; with fewer than three others the input is returned. A variance with
      d <= 0 is returned as it came.

    Raises:
      ValueError: degrees of freedom that are negative or of another shape.

    References:
      Smyth (2004), "Linear models and empirical Bayes methods for assessing differential
      expression in microarray experiments", sections 4 and 6.2.

    Example:
      >>> import jax.numpy as jnp
      >>> [f"{v:.3f}" for v in moderated_variance(jnp.array([0.1, 1.0, 10.0]), 4)]
      ['0.159', '0.874', '8.024']
    """
    variance = _checks.channel_array("variance", variance)
    d = _checks.count_like("degrees_of_freedom", degrees_of_freedom, variance)
    if variance.size <= 2:
        return variance
    valid = (variance >= jnp.finfo(variance.dtype).tiny) & (d > 0)
    n_valid = jnp.maximum(jnp.sum(valid, dtype=variance.dtype), 3)
    # Logarithms relative to a common scale: those of 1e8 would lose two digits in float32.
    scale = largest_magnitude(variance)
    half = jnp.broadcast_to(jnp.where(d > 0, d / 2, 1), variance.shape)
    log_ratio = log_of_ratio(jnp.where(valid, variance, scale), scale)
    e = jnp.where(valid, log_ratio - digamma(half) + jnp.log(half), 0)
    e_mean = jnp.sum(e) / n_valid
    sampling = jnp.sum(jnp.where(valid, polygamma(1, half), 0)) / n_valid
    excess = jnp.sum(jnp.where(valid, jnp.square(e - e_mean), 0)) / (n_valid - 1) - sampling
    has_prior_spread = excess > 0
    half_prior = trigamma_inverse(jnp.where(has_prior_spread, excess, 1))
    offset = jnp.where(has_prior_spread, digamma(half_prior) - jnp.log(half_prior), 0)
    root = jnp.exp((e_mean + offset) / 2)  # its square may be too small for a float
    prior = scale * root * root
    weight = jnp.where(has_prior_spread, half_prior / (half_prior + half), 1)
    moderated = weight * prior + (1 - weight) * variance
    return jnp.where((jnp.sum(valid) >= 3) & (d > 0), moderated, variance)


def _jsnorm(t: jax.Array) -> jax.Array:
    return t if t.size <= 2 else shrunk_by_spread(t, 2 / t.size)
