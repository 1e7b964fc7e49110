"""Dominance, seen: paired Monte-Carlo risks with confidence intervals, seeded.

Risk is the plain total squared error, E sum_i (estimate_i - truth_i)^2: the loss of James & Stein
(1961) and of fact (b) of `stein_variance`. Each comparison is paired (both estimators see the same
sample), so that the standard error is that of the difference. z = 4 standard errors count as
significant: over the 100 or so comparisons here, a false alarm has probability below 0.4 %.

The data are drawn from the sampling distributions themselves. For N Gaussian values per channel of
mean mu and variance s2, the sample mean is N(mu, s2 / N) and the biased sample variance is
Gamma((N-1)/2) times 2 s2 / N (checked against raw samples below).
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from scipy import stats

from steinnorm import estimators
from tests import reference

SIGNIFICANT = 4.0  # standard errors
VALUES = 1_200_000  # random numbers per grid point


class Difference(NamedTuple):
    """Mean paired risk difference (negative: the first is better) and its standard error."""

    mean: float
    error: float

    @property
    def low(self) -> float:
        return self.mean - SIGNIFICANT * self.error

    @property
    def high(self) -> float:
        return self.mean + SIGNIFICANT * self.error

    @property
    def significantly_lower(self) -> bool:
        return self.high < 0

    @property
    def significantly_higher(self) -> bool:
        return self.low > 0


def paired(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> Difference:
    """Risk of `first` less that of `second`; both (repetitions, C)."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    # (first - truth)^2 - (second - truth)^2, without subtracting large squares
    difference = np.sum((first - second) * (first + second - 2 * truth), axis=1)
    return Difference(
        float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
    )


def generator(*point: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(point).encode()))


@functools.cache
def vectorised(name: str, **kwargs: object) -> Callable[..., np.ndarray]:
    """The estimator over (repetitions, C), compiled once per number of channels, in float64."""
    function = functools.partial(getattr(estimators, name), **kwargs)
    compiled = jax.jit(jax.vmap(function, in_axes=(0, None)))

    def run(samples: np.ndarray, argument: float) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(compiled(samples, np.float64(argument)))

    return run


def grid(*axes: tuple) -> list:
    return [
        pytest.param(*point, id="-".join(map(str, point))) for point in itertools.product(*axes)
    ]


# ------------------------------------------------------------------------- means, known noise

# The spread of the true means in units of their standard error times sqrt(N): with many values per
# channel the same spread is harder to tell from none, so the noise matters less.
MEAN_GRID = grid((3, 4, 16, 128), (2, 16), (0.0, 0.3, 1.5))
TARGETS = pytest.mark.parametrize("target", [0.0, "mean"])


def sample_means(channels: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray, float]:
    rng = generator("mean", channels, count, spread)
    truth = spread * rng.normal(size=channels)
    noise = 1.0 / count
    samples = truth + np.sqrt(noise) * rng.normal(size=(VALUES // channels, channels))
    return truth, samples, noise


@TARGETS
@pytest.mark.parametrize(("channels", "count", "spread"), MEAN_GRID)
def test_james_stein_beats_the_sample_mean(
    channels: int, count: int, spread: float, target: object
) -> None:
    truth, samples, noise = sample_means(channels, count, spread)
    shrunk = vectorised("james_stein", target=target)(samples, noise)
    if target == "mean" and channels == 3:  # documented: the identity
        np.testing.assert_array_equal(shrunk, samples)
        return
    difference = paired(shrunk, samples, truth)
    assert difference.significantly_lower, difference


@pytest.mark.parametrize(("channels", "count", "spread"), grid((4, 16), (16,), (0.0, 0.3)))
@TARGETS
def test_the_positive_part_beats_the_plain_rule(
    channels: int, count: int, spread: float, target: object
) -> None:
    truth, samples, noise = sample_means(channels, count, spread)
    clipped = vectorised("james_stein", target=target)(samples, noise)
    plain = vectorised("james_stein", target=target, positive_part=False)(samples, noise)
    difference = paired(clipped, plain, truth)
    assert difference.significantly_lower, difference


def test_james_stein_risk_at_the_target_is_the_textbook_value() -> None:
    """At truth = target the plain rule has risk 2 sigma^2 (3 towards the average), for any C."""
    channels, noise = 16, 0.25
    samples = 3.0 + np.sqrt(noise) * generator("risk").normal(size=(VALUES // channels, channels))
    for target, expected in ((3.0, 2 * noise), ("mean", 3 * noise)):
        shrunk = vectorised("james_stein", target=target, positive_part=False)(samples, noise)
        losses = np.sum((shrunk - 3.0) ** 2, axis=1)
        error = losses.std() / np.sqrt(len(losses))
        assert abs(losses.mean() - expected) < SIGNIFICANT * error
        assert error < 0.01 * expected


@TARGETS
def test_three_times_the_noise_would_lose(target: object) -> None:
    """The rule dominates for 0 < k < 2(C-2): with three times the noise it must not."""
    truth, samples, noise = sample_means(16, 16, 1.5)
    shrunk = vectorised("james_stein", target=target)(samples, 3 * noise)
    difference = paired(shrunk, samples, truth)
    assert difference.significantly_higher, difference


def test_stein_mean_does_not_dominate() -> None:
    """DESIGN 5.5, in small: real differences between channels are shrunk as if they were noise."""
    truth, samples, _ = sample_means(16, 16, 1.5)
    with jax.enable_x64(True):
        shrunk = jax.jit(jax.vmap(estimators.stein_mean))(samples)
    difference = paired(shrunk, samples, truth)
    assert difference.significantly_higher, difference


# ---------------------------------------------------------------------------------- variances

CHANNELS, COUNTS, SPREADS = (3, 8, 64), (2, 4, 32, 512), (0.0, 0.5, 2.0)
VARIANCE_GRID = grid(CHANNELS, COUNTS, SPREADS)


class Variances(NamedTuple):
    truth: np.ndarray
    sample: np.ndarray  # biased sample variances v
    scaled: np.ndarray  # N/(N+1) * v
    whole: np.ndarray  # stein_variance at fraction 1
    half: np.ndarray  # and at the midpoint


@functools.cache
def sample_variances(channels: int, count: int, spread: float) -> Variances:
    """`spread` is the standard deviation of the logarithms of the true variances."""
    rng = generator("variance", channels, count, spread)
    truth = np.exp(spread * rng.normal(size=channels))
    shape = (VALUES // channels, channels)
    v = rng.standard_gamma((count - 1) / 2, size=shape) * (2 * truth / count)
    v = np.maximum(v, 1e-300)  # a Gamma(1/2) number may round to zero, which empties G
    scaled = count / (count + 1) * v
    # The rule is linear in `fraction`, and tests/estimators checks both values: one call will do.
    whole = vectorised("stein_variance")(v, count)
    return Variances(truth, v, scaled, whole, scaled + 0.5 * (whole - scaled))


def test_the_fraction_acts_linearly() -> None:
    case = sample_variances(8, 4, 0.5)
    half = vectorised("stein_variance", fraction=0.5)(case.sample, 4)
    np.testing.assert_allclose(half, case.half, rtol=1e-12)


@pytest.mark.parametrize("count", [2, 5, 32])
def test_sample_variances_of_gaussians_are_gamma(count: int) -> None:
    raw = generator("raw", count).normal(scale=1.7, size=(20_000, count))
    gamma = stats.gamma((count - 1) / 2, scale=2 * 1.7**2 / count)
    assert stats.kstest(raw.var(axis=1), gamma.cdf).pvalue > 0.01
    assert stats.kstest(raw.var(axis=1, ddof=1), gamma.cdf).pvalue < 1e-6 or count > 5


@pytest.mark.parametrize(("channels", "count", "spread"), VARIANCE_GRID)
def test_stein_variance_is_never_worse(channels: int, count: int, spread: float) -> None:
    case = sample_variances(channels, count, spread)
    against_scaled = paired(case.whole, case.scaled, case.truth)
    assert not against_scaled.significantly_higher, against_scaled
    against_sample = paired(case.whole, case.sample, case.truth)
    assert not against_sample.significantly_higher, against_sample
    exact = reference.stein_variance_risk_gain(case.truth, count)
    assert exact < 0
    assert against_scaled.low <= exact <= against_scaled.high


@pytest.mark.parametrize(("channels", "count", "spread"), VARIANCE_GRID)
def test_the_midpoint_beats_the_scaled_variance(channels: int, count: int, spread: float) -> None:
    case = sample_variances(channels, count, spread)
    difference = paired(case.half, case.scaled, case.truth)
    exact = reference.stein_variance_risk_gain(case.truth, count, fraction=0.5)
    assert exact < 0
    assert difference.low <= exact <= difference.high
    if spread == 0.0:
        assert difference.significantly_lower, difference


@pytest.mark.parametrize("channels", CHANNELS)
def test_with_equal_variances_and_large_counts_the_midpoint_is_best(channels: int) -> None:
    """There the published constant gains almost nothing, its midpoint all that there is."""
    truth, count = np.full(channels, 1.44), 10_000
    fractions = (0.25, 0.5, 0.75, 1.0)
    gains = {f: reference.stein_variance_risk_gain(truth, count, fraction=f) for f in fractions}
    assert min(gains, key=gains.__getitem__) == 0.5
    assert gains[0.5] < 0
    assert gains[0.5] / 100 < gains[1.0] < 0
    assert abs(reference.stein_variance_best_fraction(channels, count) - 0.5) < 1e-3


@pytest.mark.parametrize("channels", CHANNELS)
def test_at_two_values_per_channel_more_than_the_midpoint_is_best(channels: int) -> None:
    """M is where the *proof* ends; at small N the risk goes on falling beyond its midpoint."""
    case = sample_variances(channels, 2, 0.0)
    assert reference.stein_variance_best_fraction(channels, 2) > 0.75
    difference = paired(case.whole, case.half, case.truth)
    exact = reference.stein_variance_risk_gain(case.truth, 2) - reference.stein_variance_risk_gain(
        case.truth, 2, fraction=0.5
    )
    assert difference.low <= exact <= difference.high
    assert difference.significantly_lower == (channels > 3), difference


@pytest.mark.parametrize(("channels", "count"), grid(CHANNELS, COUNTS))
def test_three_times_the_constant_would_lose(channels: int, count: int) -> None:
    """The tests above can fail: past the interval the risk at equal variances is higher.

    Three times M, or further out where N is so small that the risk crosses beyond that.
    """
    crossing = 2 * reference.stein_variance_best_fraction(channels, count)
    fraction = max(3.0, 1.25 * crossing)
    case = sample_variances(channels, count, 0.0)
    beyond = case.scaled + fraction * (case.whole - case.scaled)
    difference = paired(beyond, case.scaled, case.truth)
    assert difference.significantly_higher, difference
    exact = reference.stein_variance_risk_gain(case.truth, count, fraction=fraction)
    assert difference.low <= exact <= difference.high
    inside = reference.stein_variance_risk_gain(case.truth, count, fraction=0.99 * crossing)
    outside = reference.stein_variance_risk_gain(case.truth, count, fraction=1.01 * crossing)
    assert inside < 0 < outside


@pytest.mark.parametrize("channels", [2, 3, 5, 50, 4096])
def test_exact_risk_is_lower_everywhere_on_a_fine_grid(channels: int) -> None:
    """The closed form of the risk, without sampling: the whole interval (0, M] dominates."""
    for count in (2, 3, 5, 10, 100, 10_000):
        for spread in (0.0, 0.01, 1.0, 3.0):
            truth = np.exp(spread * generator("fine", channels).normal(size=channels))
            for fraction in (1e-3, 0.25, 0.5, 0.9, 1.0):
                gain = reference.stein_variance_risk_gain(truth, count, fraction=fraction)
                assert gain < 0, (count, spread, fraction, gain)
