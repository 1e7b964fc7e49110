"""The facts of `stein_mean` and `stein_variance`: factors, dominance interval, range."""

from __future__ import annotations

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from steinnorm import estimators
from tests.estimators.strategies import property_test, seven

STEIN_MEAN = jax.jit(estimators.stein_mean)


@property_test
@hypothesis.given(x=seven, power=st.integers(-20, 20), sign=st.sampled_from([-1.0, 1.0]))
def test_stein_mean_is_scale_equivariant(x: np.ndarray, power: int, sign: float) -> None:
    x = np.where(np.abs(x) < 1e-25, 0, x).astype(np.float32)  # the scaled number must exist too
    scale = np.float32(sign * 2.0**power)
    np.testing.assert_allclose(STEIN_MEAN(scale * x), scale * STEIN_MEAN(x), rtol=1e-6)


@property_test
@hypothesis.given(x=seven)
def test_stein_mean_factor_lies_between_three_over_c_plus_one_and_one(x: np.ndarray) -> None:
    x = np.where(np.abs(x) < 1e-25, 0, x).astype(np.float32)
    value = np.asarray(STEIN_MEAN(x), np.float64)
    factor = value[x != 0] / x[x != 0]
    assert np.all(factor >= 3 / 8 * (1 - 1e-6))
    assert np.all(factor <= 1 + 1e-6)
    assert np.ptp(factor) <= 1e-6 if factor.size else True


@pytest.mark.parametrize("channels", [3, 8, 512])
def test_both_ends_of_the_stein_mean_factor_are_reached(channels: int) -> None:
    equal = np.full(channels, 1.7, np.float32)
    np.testing.assert_allclose(estimators.stein_mean(equal), equal, rtol=1e-6)
    contrast = np.arange(channels, dtype=np.float32) - np.float32((channels - 1) / 2)
    smallest = 3 / (channels + 1) * contrast
    np.testing.assert_allclose(estimators.stein_mean(contrast), smallest, rtol=1e-5)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, math.nan])
def test_fraction_outside_its_interval(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"fraction.*\(0, 1\].*{fraction}"):
        estimators.stein_variance(np.ones(4, np.float32), 8, fraction=fraction)


def test_the_geometric_mean_does_not_overflow() -> None:
    """512 channels: a product in float32 would be inf at variance 1.44 and 0 at 1e-8."""
    for level in (1.44, 1e-8, 1e8):
        variance = np.full(512, level, np.float32)
        value = np.asarray(estimators.stein_variance(variance, 1, fraction=1.0), np.float64)
        expected = (1 / 2 + 4 * 511 / (2 * 2)) * float(np.float32(level))  # M = C - 1 at N = 1
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [3, 7, 64])
def test_m_is_the_end_of_the_dominance_interval(channels: int) -> None:
    """Fact (b): X = N v / 2 ~ Gamma(a, theta), a = (N-1)/2, 0 < c < 2(p-1) / ((a+1)(p a + 1))."""
    function = jax.jit(estimators.stein_variance, static_argnames="fraction")

    @property_test
    @hypothesis.given(count=st.integers(2, 10**7), fraction=st.sampled_from([0.25, 0.5, 1.0]))
    def holds(count: int, fraction: float) -> None:
        a = (count - 1) / 2
        end = 2 * (channels - 1) / ((a + 1) * (channels * a + 1))
        expected = count / (count + 1) + fraction * end * count / 2  # c G_X = c N/2 G_v, G_v = 1
        with jax.enable_x64(True):
            value = function(np.ones(channels), jnp.asarray(float(count)), fraction=fraction)
        np.testing.assert_allclose(value, np.full(channels, expected), rtol=1e-13)

    holds()
