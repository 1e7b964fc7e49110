"""Exact risks: series, closed forms and enumeration, without any random number.

The risk is the expected total squared error over C channels.  Sample means are X ~ N(theta, I) in
units of their standard error, so that the risk of the sample means themselves is C.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import special, stats

_TAIL = 1e-16  # probability left out at each end of a Poisson series


def _poisson(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of a Poisson variable that matter, and their probabilities."""
    low, high = stats.poisson.ppf([_TAIL, 1 - _TAIL], rate) if rate else (0, 0)
    values = np.arange(max(0, int(low) - 2), int(high) + 3)
    weights = stats.poisson.pmf(values, rate)
    return values.astype(float), weights / weights.sum()


def james_stein_ratio(channels: int, signal: float, constant: float | None = None) -> float:
    """Returns the risk of (1 - k / |X|^2) X relative to X, for X ~ N(theta, I).

    With |X|^2 noncentral chi-squared, i.e. a Poisson mixture of chi-squared variables of
    C + 2 J degrees of freedom: C - (2 k (C-2) - k^2) E[1 / (C - 2 + 2 J)], J ~ Poisson(signal/2)
    (James & Stein 1961).

    Args:
      channels: C >= 3.
      signal: |theta|^2.
      constant: k; C - 2 by default.
    """
    k = channels - 2 if constant is None else constant
    j, weight = _poisson(signal / 2)
    inverse = float(np.sum(weight / (channels - 2 + 2 * j)))
    return 1 - (2 * k * (channels - 2) - k**2) * inverse / channels


def spread_rule_ratio(channels: int, centred: float, common: float, share: float) -> float:
    """Returns the risk of the rules that take the spread between channels for noise.

    The rule is (1 - c (1 - q)) X with q = C mean(X)^2 / |X|^2; c = (C-2)/(C+1) is ``stein_mean``,
    c = (C-2)/C is ``jsnorm_mean``.  q does not change with the length of X, so Stein's identity
    gives C + E[c^2 (1-q)^2 |X|^2 - 2 c C (1-q)].  Within and beside the space of equal channels
    X is independent, so 1 - q is a Beta variable, and its expectations are Poisson series:
    with a = (C-1)/2 + J and h = C/2 + J + K,  C + E[2 c^2 a (a+1) / (h+1) - 2 c C a / h].

    Args:
      channels: C >= 3.
      centred: sum_i (theta_i - average)^2, the rate of J times 2.
      common: C average^2, the rate of K times 2.
      share: c.
    """
    j, weight_j = _poisson(centred / 2)
    k, weight_k = _poisson(common / 2)
    a = (channels - 1) / 2 + j[:, None]
    h = channels / 2 + j[:, None] + k[None]
    gain = 2 * share**2 * a * (a + 1) / (h + 1) - 2 * share * channels * a / h
    return 1 + float(weight_j @ gain @ weight_k) / channels


def paper_share(channels: int) -> float:
    """Returns the constant c of :func:`spread_rule_ratio` for ``stein_mean``."""
    return (channels - 2) / (channels + 1)


def jsnorm_share(channels: int) -> float:
    """Returns the constant c of :func:`spread_rule_ratio` for ``jsnorm_mean``."""
    return (channels - 2) / channels


def variance_ratio(
    channels: int, count: int, spread: float, fraction: float, *, reference: str = "scaled"
) -> float:
    """Returns the risk of ``stein_variance``, relative to N/(N+1) v or to v, of Gaussian data.

    With X_i = N v_i / 2 ~ Gamma(a, theta_i), a = (N-1)/2, and G the geometric mean of X:
    E[G (X_i/(a+1) - theta_i)] = -E[G] theta_i (1 - 1/C) / (a+1), so the risk is that of X/(a+1)
    plus C c^2 E[G^2] - 2 c (C-1)/(a+1) E[G] average(theta).

    Args:
      channels: C >= 3.
      count: N >= 2, values per channel.
      spread: standard deviation of the logarithms of the true variances, at normal quantiles.
      fraction: of the rule's constant M.
      reference: ``scaled`` for N/(N+1) v, ``sample`` for v.
    """
    theta = true_variances(channels, spread)
    a = (count - 1) / 2
    largest = 4 * (channels - 1) * count / ((count + 1) * ((count - 1) * channels + 2))
    c = fraction * largest * 2 / count

    def moment(power: int) -> float:
        log_ratio = special.gammaln(a + power / channels) - special.gammaln(a)
        return float(np.exp(power * np.mean(np.log(theta)) + channels * log_ratio))

    gain = channels * c**2 * moment(2)
    gain -= 2 * c * (channels - 1) / (a + 1) * moment(1) * float(theta.mean())
    # In units of v = 2 X / N: errors of X / (a+1) are those of an estimate of theta.
    squares = float(np.sum(theta**2))
    scaled = squares / (a + 1)
    sample = squares * (2 * count - 1) / count**2
    # theta is the variance of the data when X = N v / 2 has scale theta: X/(a+1) estimates it.
    return (scaled + gain) / {"scaled": scaled, "sample": sample}[reference]


def true_variances(channels: int, spread: float) -> np.ndarray:
    """Returns variances of average logarithm 0: exp(spread times normal quantiles), (C,)."""
    quantiles = stats.norm.ppf((np.arange(channels) + 0.5) / channels)
    return np.exp(spread * quantiles)


class Noise(NamedTuple):
    """A law of mean zero and variance one that takes few values.

    Attributes:
      values: (K,).
      weights: (K,), their probabilities.
    """

    values: np.ndarray
    weights: np.ndarray


def signs(draws: int = 1) -> Noise:
    """Returns the law of the sum of so many random signs, scaled to variance one."""
    ups = np.arange(draws + 1)
    return Noise((2 * ups - draws) / np.sqrt(draws), stats.binom.pmf(ups, draws, 0.5))


def sparse_signs(share: float) -> Noise:
    """Returns the law of noise that is 0 but in a share of cases, where it is a large sign."""
    size = 1 / np.sqrt(share)
    return Noise(np.array([-size, 0, size]), np.array([share / 2, 1 - share, share / 2]))


def enumerated_ratio(theta: np.ndarray, noise: Noise) -> float:
    """Returns the risk of positive-part James-Stein, relative to X, by visiting every outcome.

    X_i is theta_i plus independent noise of known variance 1.

    Args:
      theta: (C,), C >= 3; K^C outcomes are visited.
      noise: their law.
    """
    channels = len(theta)
    cases = np.array(list(itertools.product(range(len(noise.values)), repeat=channels)))
    probability = np.prod(noise.weights[cases], axis=1)
    x = theta + noise.values[cases]
    squares = np.sum(x**2, axis=1)
    with np.errstate(divide="ignore"):
        kept = np.maximum(1 - (channels - 2) / squares, 0)
    loss = np.sum((kept[:, None] * x - theta) ** 2, axis=1)
    return float(probability @ loss) / channels
