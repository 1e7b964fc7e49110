"""Exact risks against sampling, brute force and the library's own functions."""

import itertools

import jax
import numpy as np
import pytest

from experiments.evaluation.risk import counterexamples, exact
from steinnorm import estimators
from tests import reference

RNG = np.random.default_rng(0)


def losses(estimate, truth):
    return np.sum((np.asarray(estimate, np.float64) - truth) ** 2, axis=1)


def assert_is_mean_of(ratio, own, sample):
    """Within 4 standard errors of the sampled ratio; these are small, so this can fail."""
    found = own.mean() / sample.mean()
    error = np.std(own - found * sample) / np.sqrt(len(own)) / sample.mean()
    assert error < 0.03 * found
    assert abs(found - ratio) < 4 * error, (found, ratio, error)


@pytest.mark.parametrize("channels", [3, 16, 200])
def test_james_stein_at_the_target_has_two_of_c(channels):
    assert exact.james_stein_ratio(channels, 0.0) == pytest.approx(2 / channels, rel=1e-12)
    # with k = 2 (C - 2) the gain is used up at every theta
    assert exact.james_stein_ratio(channels, 5.0, constant=2 * (channels - 2)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("theta", "share", "rule"),
    [
        ([1.0, -1.0, 0.0], exact.paper_share, reference.stein_mean),
        ([2.0, -2.0, 1.0, 0.5], exact.paper_share, reference.stein_mean),
        ([3.0, 0.0, 1.0, -2.0, 0.0], exact.jsnorm_share, reference.jsnorm_mean),
    ],
)
def test_spread_rules_against_sampling(theta, share, rule):
    theta = np.asarray(theta)
    channels = len(theta)
    x = theta + RNG.normal(size=(6_000, channels))
    own = losses([rule(each) for each in x], theta)
    common = channels * theta.mean() ** 2
    centred = np.sum((theta - theta.mean()) ** 2)
    ratio = exact.spread_rule_ratio(channels, centred, common, share(channels))
    assert_is_mean_of(ratio, own, losses(x, theta))


def test_james_stein_against_sampling():
    theta = np.array([1.0, 0.5, -1.0, 0.0, 0.0])
    x = theta + RNG.normal(size=(40_000, 5))
    shrunk = (1 - 3 / np.sum(x**2, axis=1, keepdims=True)) * x
    ratio = exact.james_stein_ratio(5, float(theta @ theta))
    assert_is_mean_of(ratio, losses(shrunk, theta), losses(x, theta))


@pytest.mark.parametrize(("channels", "count", "spread", "fraction"), [(3, 4, 0, 1), (16, 8, 1, 2)])
def test_the_variance_rule_against_the_reference(channels, count, spread, fraction):
    theta = exact.true_variances(channels, spread)
    gain = reference.stein_variance_risk_gain(theta, count, fraction=fraction)
    scaled = 2 * np.sum(theta**2) / (count + 1)  # the risk of N/(N+1) v
    found = exact.variance_ratio(channels, count, spread, fraction)
    assert found == pytest.approx(1 + gain / scaled, rel=1e-10)
    sample = np.sum(theta**2) * (2 * count - 1) / count**2
    found = exact.variance_ratio(channels, count, spread, fraction, reference="sample")
    assert found == pytest.approx((scaled + gain) / sample, rel=1e-10)


def test_enumeration_is_brute_force_with_the_librarys_rule():
    theta = np.array([0.3, -1.1, 0.7, 1.9])
    for noise in (exact.signs(), exact.signs(2), exact.sparse_signs(0.3)):
        assert noise.weights.sum() == pytest.approx(1)
        assert noise.weights @ noise.values == pytest.approx(0, abs=1e-15)
        assert noise.weights @ noise.values**2 == pytest.approx(1)
        total = 0.0
        with jax.enable_x64(True):
            for place in itertools.product(range(len(noise.values)), repeat=4):
                x = theta + noise.values[list(place)]
                shrunk = reference.james_stein(x, 1.0)
                total += np.prod(noise.weights[list(place)]) * np.sum((shrunk - theta) ** 2)
        assert exact.enumerated_ratio(theta, noise) == pytest.approx(total / 4, rel=1e-12)
    shrunk = estimators.james_stein((theta + 1).astype(np.float32), 1.0)
    np.testing.assert_allclose(shrunk, reference.james_stein(theta + 1, 1.0), rtol=1e-5)


def test_the_known_counterexample_and_a_worse_one():
    known = exact.enumerated_ratio(np.array(counterexamples.KNOWN), exact.signs())
    assert known == pytest.approx(1.044, abs=5e-4)
    ratio, theta = counterexamples.worst(3, exact.signs(), seed=0, starts=4)
    assert ratio > known + 0.005
    assert ratio == exact.enumerated_ratio(np.array(theta), exact.signs())
    rng = np.random.default_rng(1)
    near = [np.array(theta) + rng.normal(size=3) * 0.01 for _ in range(50)]
    assert ratio >= max(exact.enumerated_ratio(t, exact.signs()) for t in near) - 1e-9


@pytest.mark.parametrize("channels", [3, 16])
def test_the_threshold_is_where_the_rule_begins_to_lose(channels):
    share = exact.paper_share(channels)
    limit = channels * counterexamples.threshold(channels, share)
    below, above = (exact.spread_rule_ratio(channels, f * limit, 0.0, share) for f in (0.99, 1.01))
    assert below < 1 < above
