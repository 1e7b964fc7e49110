"""The equations of steinnorm in float64 NumPy: what the tests compare the library with.

Written from the equations, one function per equation, for reading and not for speed. Nothing here
imports jax or steinnorm. The equations are numbered here, (R1) to (R18); the source stands beside
each number. C is the number of channels, N the number of values behind a channel's statistics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import special


def _float64(value: Any) -> np.ndarray:
    return np.asarray(value).astype(np.float64)


def _squares_over_scale(values: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Divides all arrays by max|values|, so that squares of 1e200 or 1e-200 stay in range."""
    scale = np.max(np.abs(values))
    scale = scale if scale > 0 else 1.0
    return [values / scale, *(other / scale for other in others)]


# ------------------------------------------------------------------------------------ estimators


def stein_mean(mean: Any) -> np.ndarray:
    """(R1) arXiv 2507.08261: (1 - (C-2)/(C+1) * sum (m_i - mbar)^2 / sum m_i^2) * m."""
    mean = _float64(mean)
    channels = mean.size
    if channels <= 2 or not np.any(mean):
        return mean
    (scaled,) = _squares_over_scale(mean)
    spread = np.sum((scaled - scaled.mean()) ** 2) / np.sum(scaled**2)
    return (1 - (channels - 2) / (channels + 1) * spread) * mean


def stein_variance_constant(channels: int, count: Any) -> np.ndarray:
    """(R2) DasGupta (1986) at a = (N-1)/2: M = 4(C-1)N / ((N+1)((N-1)C+2))."""
    count = _float64(count)
    return 4 * (channels - 1) * count / ((count + 1) * ((count - 1) * channels + 2))


def geometric_mean(variance: Any) -> float:
    """(R3) G = (prod v_i)^(1/C), zero where any v_i is."""
    variance = _float64(variance)
    return float(np.exp(np.mean(np.log(variance)))) if np.all(variance > 0) else 0.0


def stein_variance(variance: Any, count: Any, *, fraction: float = 1.0) -> np.ndarray:
    """(R4) arXiv 2507.08261 after DasGupta (1986): N/(N+1) * v + fraction * M * G."""
    variance, count = _float64(variance), _float64(count)
    if variance.size <= 2:
        return variance
    constant = stein_variance_constant(variance.size, count)
    return count / (count + 1) * variance + fraction * constant * geometric_mean(variance)


def _jsnorm(values: np.ndarray) -> np.ndarray:
    """(R5) arXiv 2312.00313: (1 - (C-2) * Var_c(t) / sum t_i^2) * t, Var_c dividing by C."""
    channels = values.size
    if channels <= 2 or not np.any(values):
        return values
    (scaled,) = _squares_over_scale(values)
    return (1 - (channels - 2) * np.var(scaled) / np.sum(scaled**2)) * values


def jsnorm_mean(mean: Any) -> np.ndarray:
    """(R5) with t = m."""
    return _jsnorm(_float64(mean))


def jsnorm_variance(variance: Any) -> np.ndarray:
    """(R5) with t = v."""
    return _jsnorm(_float64(variance))


def ridge_mean(mean: Any, count: Any, *, strength: float) -> np.ndarray:
    """(R6) baseline of the paper's code: m * N / (N + s)."""
    count = _float64(count)
    return _float64(mean) * (count / (count + strength))


def ridge_variance(variance: Any, *, strength: float) -> np.ndarray:
    """(R7) baseline of the paper's code: v / (1 + s)."""
    return _float64(variance) / (1 + strength)


def lasso_mean(mean: Any, count: Any, *, strength: float) -> np.ndarray:
    """(R8) baseline of the paper's code: sign(m) * max(|m| - s/(2N), 0)."""
    mean = _float64(mean)
    return np.sign(mean) * np.maximum(np.abs(mean) - strength / (2 * _float64(count)), 0)


def lasso_variance(variance: Any, *, strength: float) -> np.ndarray:
    """(R9) baseline of the paper's code: max(v - s/2, 0)."""
    return np.maximum(_float64(variance) - strength / 2, 0)


def james_stein(
    estimate: Any, noise_variance: Any, *, target: Any = 0.0, positive_part: bool = True
) -> np.ndarray:
    """(R10) James & Stein (1961), positive part Baranchik (1964), towards the mean Lindley (1962).

    target + (1 - k/S)_+ * (estimate - target), S = sum (estimate_i - target_i)^2 / mean(noise),
    k = C-2, or C-3 with the estimates' own average as target; k <= 0 is the identity, S = 0 the
    target. See also Efron & Morris (1973).
    """
    estimate = _float64(estimate)
    own_average = isinstance(target, str)
    if own_average and target != "mean":
        raise ValueError(target)
    k = estimate.size - (3 if own_average else 2)
    if k <= 0:
        return estimate
    towards = np.full_like(estimate, estimate.mean() if own_average else 0.0)
    if not own_average:
        towards = towards + _float64(target)
    distance = estimate - towards
    if not np.any(distance):
        return towards
    noise = float(np.mean(_float64(noise_variance)))
    scaled, root_noise = _squares_over_scale(distance, np.sqrt(noise))
    share = k * root_noise**2 / np.sum(scaled**2)  # k/S
    share = min(share, 1.0) if positive_part else share
    # Equal to target + (1 - share) * distance, but exact also where |estimate| << |target|.
    return (1 - share) * estimate + share * towards


def trigamma_inverse(value: float) -> float:
    """(R11) Smyth (2004), appendix: Newton's method on 1/trigamma, monotone from 1/2 + 1/value."""
    y = 0.5 + 1 / value
    for _ in range(100):
        trigamma = special.polygamma(1, y)
        step = trigamma * (1 - trigamma / value) / special.polygamma(2, y)
        y += step
        if abs(step) <= 1e-15 * y:
            break
    return float(y)


def moderated_variance(variance: Any, degrees_of_freedom: Any) -> np.ndarray:
    """(R12) Smyth (2004), sections 3 and 6.2: (d0 * s0^2 + d * s^2) / (d0 + d).

    The prior (d0, s0^2) by the moments of z_i = log s_i^2 over the positive variances:
    e = z - digamma(d/2) + log(d/2),  trigamma(d0/2) = mean((e - ebar)^2 * n/(n-1) - trigamma(d/2)),
    s0^2 = exp(ebar + digamma(d0/2) - log(d0/2)); a right-hand side <= 0 means d0 = inf and
    s0^2 = exp(ebar). C <= 2, or fewer than 3 positive variances: the identity.
    """
    variance = _float64(variance)
    df = np.broadcast_to(_float64(degrees_of_freedom), variance.shape)
    positive = variance > 0
    n = int(positive.sum())
    if variance.size <= 2 or n < 3:
        return variance
    half = df[positive] / 2
    e = np.log(variance[positive]) - special.digamma(half) + np.log(half)
    centre = e.mean()
    excess = np.sum((e - centre) ** 2) / (n - 1) - np.mean(special.polygamma(1, half))
    if excess <= 0:
        return np.full_like(variance, np.exp(centre))
    half_prior = trigamma_inverse(excess)
    prior = np.exp(centre + special.digamma(half_prior) - np.log(half_prior))
    return (2 * half_prior * prior + df * variance) / (2 * half_prior + df)


# ----------------------------------------------------------------------------------------- risks


def stein_variance_risk_gain(true_variance: Any, count: int, *, fraction: float = 1.0) -> float:
    """(R13) Exact E|N/(N+1) v + fraction*M*G - theta|^2 - E|N/(N+1) v - theta|^2, Gaussian data.

    With X = N v / 2 ~ Gamma(a, scale theta_i), a = (N-1)/2, p = C, c G_X = fraction*M*G and
    E[G_X (X_i/(a+1) - theta_i)] = -E[G_X] theta_i (1 - 1/p) / (a+1):
    p c^2 E[G_X^2] - 2 c (p-1)/(a+1) E[G_X] mean(theta). Below zero means a lower risk.
    """
    theta = _float64(true_variance)
    p, a = theta.size, (count - 1) / 2
    c = fraction * float(stein_variance_constant(p, count)) * 2 / count
    log_theta = np.mean(np.log(theta))

    def moment(power: int) -> float:  # E[G_X^power]
        log_ratio = special.gammaln(a + power / p) - special.gammaln(a)
        return float(np.exp(power * log_theta + p * log_ratio))

    return p * c**2 * moment(2) - 2 * c * (p - 1) / (a + 1) * moment(1) * float(theta.mean())


def stein_variance_best_fraction(channels: int, count: int) -> float:
    """The fraction of M with the lowest risk at equal variances: the minimum of (R13) in c.

    1/2 * (a + 1/p) * (Gamma(a + 1/p) / Gamma(a + 2/p))^p. It is above 1/2, since the bound behind M
    rests on Gamma(a + 2/p) / Gamma(a + 1/p) <= (a + 1/p)^(1/p), and comes down to 1/2 as N grows.
    The risk at equal variances is lower below twice this fraction, and higher above it.
    """
    p, a = channels, (count - 1) / 2
    ratio = p * (special.gammaln(a + 1 / p) - special.gammaln(a + 2 / p))
    return float(0.5 * (a + 1 / p) * np.exp(ratio))


# ------------------------------------------------------------------------------------- statistics


class Statistics(NamedTuple):
    """Per-channel statistics; all arrays have the shape of the feature axes."""

    mean: np.ndarray
    variance: np.ndarray  # biased: divides by N
    count: np.ndarray  # N, values that the mask lets through
    examples: np.ndarray  # B, examples with at least one such value
    mean_noise: np.ndarray  # sampling variance of `mean`, nan where B < 2
    variance_noise: np.ndarray  # sampling variance of `variance`, nan where B < 2


def _feature_axes(ndim: int, axis: int | tuple[int, ...]) -> tuple[int, ...]:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(sorted(a % ndim for a in axes))


def batch_statistics(
    x: Any, *, axis: int | tuple[int, ...] = -1, mask: Any = None, example_axis: int = 0
) -> Statistics:
    """(R14) Mean, biased variance and cluster-robust noise over all but the feature axes.

    m = sum x / N, v = sum (x - m)^2 / N over the N values that the mask lets through. With
    t_b = sum (x - m) and w_b = sum ((x - m)^2 - v) over the values of example b,
    noise(m) = B/(B-1) * sum_b t_b^2 / N^2 and noise(v) = B/(B-1) * sum_b w_b^2 / N^2
    (Liang & Zeger 1986, each example one cluster). N = 0: mean and variance are nan.
    """
    x = _float64(x)
    features = _feature_axes(x.ndim, axis)
    reduced = tuple(a for a in range(x.ndim) if a not in features)
    valid = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape).astype(bool)
    inside = tuple(a for a in reduced if a != example_axis)

    def total(values: np.ndarray, axes: tuple[int, ...] = reduced) -> np.ndarray:
        return np.sum(np.where(valid, values, 0.0), axis=axes, keepdims=True)

    with np.errstate(invalid="ignore", divide="ignore"):
        count = total(np.ones_like(x))
        mean = total(x) / count
        variance = total((x - mean) ** 2) / count
        t = total(x - mean, inside)
        w = total((x - mean) ** 2 - variance, inside)
        present = total(np.ones_like(x), inside) > 0
        examples = np.sum(present, axis=example_axis, keepdims=True)
        small_sample = np.where(examples > 1, examples / (examples - 1.0), np.nan)
        mean_noise = small_sample * np.sum(t**2, axis=example_axis, keepdims=True) / count**2
        variance_noise = small_sample * np.sum(w**2, axis=example_axis, keepdims=True) / count**2
    fields = (mean, variance, count, examples, mean_noise, variance_noise)
    return Statistics(*(field.squeeze(reduced) for field in fields))


def toward_running(
    statistics: Statistics, running_mean: Any, running_variance: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(R15) steinnorm's own: batch statistics shrunk towards the running ones, variances positive.

    d = (m - running_mean)/sqrt(v), f = max(0, 1 - (C-2) * mean_i(noise_i(m)/v_i) / sum d_i^2),
    mean: running_mean + f * (m - running_mean). The variance likewise on log v, with the noise
    noise_i(v)/v_i^2. One example (noise not known) or C <= 2: the batch statistics themselves.
    """
    m, v = statistics.mean.ravel(), statistics.variance.ravel()
    shape = statistics.mean.shape
    if m.size <= 2 or np.any(statistics.examples < 2):
        return m.reshape(shape), v.reshape(shape)
    running_m, running_v = _float64(running_mean).ravel(), _float64(running_variance).ravel()

    def factor(distance: np.ndarray, noise: np.ndarray) -> float:
        total = np.sum(distance**2)
        return max(0.0, 1 - (m.size - 2) * np.mean(noise) / total) if total > 0 else 0.0

    f_mean = factor((m - running_m) / np.sqrt(v), statistics.mean_noise.ravel() / v)
    log_ratio = np.log(v) - np.log(running_v)
    f_variance = factor(log_ratio, statistics.variance_noise.ravel() / v**2)
    mean = running_m + f_mean * (m - running_m)
    variance = np.exp(np.log(running_v) + f_variance * log_ratio)
    return mean.reshape(shape), variance.reshape(shape)


# ------------------------------------------------------------------------------------ calibrated


class Calibration(NamedTuple):
    """What a layer's clean inputs look like; all in the shape of the feature axes."""

    mean: np.ndarray  # m0
    variance: np.ndarray  # v0, biased
    mean_spread: np.ndarray  # rho
    variance_spread: np.ndarray  # kappa


def calibration(x: Any, *, axis: int | tuple[int, ...] = -1, mask: Any = None) -> Calibration:
    """(R16) steinnorm's own: m0, v0 over all values; spreads between the B examples (axis 0).

    With n_b, t_b = sum (x - m0), w_b = sum ((x - m0)^2 - v0) over the values of example b and N
    the sum of n_b: rho = B sum t_b^2 / (N^2 v0), kappa = B sum w_b^2 / (N^2 v0^2). Where all n_b
    are equal these are the variances over examples of an example's mean and of its mean squared
    distance from m0, over v0 and v0^2. Zero where v0 is.
    """
    s = batch_statistics(x, axis=axis, mask=mask)
    with np.errstate(invalid="ignore", divide="ignore"):
        # The noise of (R14) with B/(B-1) taken out again.
        each = np.maximum(s.examples - 1.0, 0)
        rho, kappa = each * s.mean_noise / s.variance, each * s.variance_noise / s.variance**2
    varies = s.variance > 0
    return Calibration(s.mean, s.variance, np.where(varies, rho, 0.0), np.where(varies, kappa, 0.0))


def calibrated_factors(
    statistics: Statistics, known: Calibration, *, epsilon: float = 0.0, streams: bool = False
) -> tuple[float, float, np.ndarray]:
    """(R17) steinnorm's own: the factors a and b, and v'.

    k = 1 + 1.5/B, v' = v/(1 - rho/B), z = (m - m0)/sqrt(v'), L = log(v'/v0),
    a = max(0, 1 - k (C-2) mean(rho)/B / sum z^2), b = max(0, 1 - k (C-2) mean(kappa)/B / sum L^2),
    with epsilon added to v' and v0 in z and L. C - 2 is at least 1. Channels with v0 = 0 or no
    value count nowhere; those with v = 0, or rho/B = 1, have v' = v0 and do not count in b.
    Streams: 1/B is max(1 - r, 1/B), r = sum of the batch's own spreads over that of the known,
    which is sum_i B noise_i(m)/v_i over sum_i rho_i, and likewise with kappa.
    """
    s = statistics
    examples = np.maximum(np.broadcast_to(s.examples, s.mean.shape), 1).astype(np.float64)
    judged = (known.variance > 0) & (s.count > 0)
    varies = judged & (s.variance > 0)
    k = 1 + 1.5 / examples
    each_mean = each_variance = 1 / examples
    if streams and np.all(examples > 1):
        size, v = examples[varies], s.variance[varies]
        own_mean = np.sum(size * s.mean_noise[varies] / v)
        own_variance = np.sum(size * s.variance_noise[varies] / v**2)
        each_mean = np.maximum(1 - own_mean / known.mean_spread[varies].sum(), each_mean)
        each_variance = np.maximum(
            1 - own_variance / known.variance_spread[varies].sum(), each_variance
        )
    seen = 1 - np.minimum(known.mean_spread, 1) * each_mean
    varies = varies & (seen > 0)
    corrected = np.where(varies, s.variance / np.where(varies, seen, 1), known.variance)

    def factor(distance: np.ndarray, noise: np.ndarray, counts: np.ndarray) -> float:
        total = np.sum(distance[counts] ** 2)
        channels = counts.sum()
        if channels == 0 or total == 0:
            return 0.0
        return max(0.0, 1 - max(channels - 2, 1) * np.mean((k * noise)[counts]) / total)

    with np.errstate(invalid="ignore", divide="ignore"):
        z = (s.mean - known.mean) / np.sqrt(corrected + epsilon)
        change = np.log((corrected + epsilon) / (known.variance + epsilon))
    a = factor(z, known.mean_spread * each_mean, judged)
    b = factor(change, known.variance_spread * each_variance, varies)
    return a, b, corrected


def calibrated(
    x: Any,
    known: Calibration,
    running_mean: Any,
    running_variance: Any,
    *,
    epsilon: float = 0.0,
    streams: bool = False,
    axis: int | tuple[int, ...] = -1,
    mask: Any = None,
) -> tuple[np.ndarray, float, float]:
    """(R18) steinnorm's own: the test batch, aligned with the running statistics.

    m^ = m0 + a (m - m0), v^ = v0 (v'/v0)^b, x' = (x - m^) sqrt(v0/v^) + m0,
    y = (x' - running_mean)/sqrt(running_variance + epsilon), and with epsilon added to v' and v0.
    Channels with v0 = 0 or without a value: inference with running statistics. Returns y, a, b.
    """
    x = _float64(x)
    s = batch_statistics(x, axis=axis, mask=mask)
    a, b, corrected = calibrated_factors(s, known, epsilon=epsilon, streams=streams)
    judged = (known.variance > 0) & (s.count > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(judged, known.mean + a * (s.mean - known.mean), known.mean)
        ratio = (corrected + epsilon) / (known.variance + epsilon)
        scale = np.where(judged, ratio ** (b / 2), 1.0)  # sqrt(v^/v0)
    wide = [x.shape[i] if i in _feature_axes(x.ndim, axis) else 1 for i in range(x.ndim)]
    mean, scale, m0 = (p.reshape(wide) for p in (mean, scale, known.mean))
    aligned = np.where(judged.reshape(wide), (x - mean) / scale + m0, x)
    y = normalise(aligned, running_mean, running_variance, epsilon=epsilon, axis=axis)
    return y, a, b


# ------------------------------------------------------------------------------------------ layer


def shrink(
    name: str,
    statistics: Statistics,
    running_mean: Any = None,
    running_variance: Any = None,
    **options: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance that the layer normalises with, by the name of the shrinkage."""
    shape = statistics.mean.shape
    m, v = statistics.mean.ravel(), statistics.variance.ravel()
    n = statistics.count.ravel()
    if name == "toward_running":
        return toward_running(statistics, running_mean, running_variance)
    if name in ("ridge", "lasso"):
        options = {"strength": 1e-3, **options}
    pairs = {
        "none": lambda: (m, v),
        "stein": lambda: (stein_mean(m), stein_variance(v, n, **options)),
        "stein_mean_only": lambda: (stein_mean(m), v),
        "jsnorm": lambda: (jsnorm_mean(m), jsnorm_variance(v)),
        "ridge": lambda: (ridge_mean(m, n, **options), ridge_variance(v, **options)),
        "lasso": lambda: (lasso_mean(m, n, **options), lasso_variance(v, **options)),
    }
    mean, variance = pairs[name]()
    return mean.reshape(shape), variance.reshape(shape)


def normalise(
    x: Any,
    mean: Any,
    variance: Any,
    *,
    scale: Any = 1.0,
    bias: Any = 0.0,
    epsilon: float = 1e-5,
    axis: int | tuple[int, ...] = -1,
) -> np.ndarray:
    """Ioffe & Szegedy (2015), algorithm 1: scale * (x - mean) / sqrt(variance + eps) + bias."""
    x = _float64(x)
    features = _feature_axes(x.ndim, axis)
    shape = [x.shape[a] if a in features else 1 for a in range(x.ndim)]
    feature_shape = [x.shape[a] for a in features]

    def spread(value: Any) -> np.ndarray:
        return np.broadcast_to(_float64(value), feature_shape).reshape(shape)

    return spread(scale) * (x - spread(mean)) / np.sqrt(spread(variance) + epsilon) + spread(bias)


def update_running(
    running: Any, batch: Any, *, momentum: float = 0.99, count: Any = 1
) -> np.ndarray:
    """Flax's convention, momentum is the share that is kept; a batch without values: no change."""
    running = _float64(running)
    return np.where(
        _float64(count) > 0, momentum * running + (1 - momentum) * _float64(batch), running
    )


def layer(
    x: Any,
    running_mean: Any,
    running_variance: Any,
    *,
    shrinkage: str = "stein",
    axis: int | tuple[int, ...] = -1,
    mask: Any = None,
    momentum: float = 0.99,
    scale: Any = 1.0,
    bias: Any = 0.0,
    epsilon: float = 1e-5,
    **options: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One training step of the layer: output, new running mean, new running variance.

    The running statistics take what the layer normalised with; `toward_running` takes the raw ones.
    """
    raw = batch_statistics(x, axis=axis, mask=mask)
    mean, variance = shrink(shrinkage, raw, running_mean, running_variance, **options)
    y = normalise(x, mean, variance, scale=scale, bias=bias, epsilon=epsilon, axis=axis)
    kept = (raw.mean, raw.variance) if shrinkage == "toward_running" else (mean, variance)
    return (
        y,
        update_running(running_mean, kept[0], momentum=momentum, count=raw.count),
        update_running(running_variance, kept[1], momentum=momentum, count=raw.count),
    )
