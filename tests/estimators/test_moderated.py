"""The facts of `moderated_variance`: its prior and its degrees of freedom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import estimators
from tests import reference


def test_moderated_variance_finds_the_prior() -> None:
    """Variances drawn from Smyth's model are squeezed as with the true d0 = 10, s0^2 = 2."""
    rng = np.random.default_rng(6)
    true = 10 * 2.0 / rng.chisquare(10, size=20_000)
    variance = (true * rng.chisquare(8, size=20_000) / 8).astype(np.float32)
    known_prior = (10 * 2.0 + 8 * variance) / 18
    moderate = jax.jit(estimators.moderated_variance)
    np.testing.assert_allclose(moderate(variance, 8), known_prior, rtol=0.05)
    equal = np.full(16, 1.44, np.float32)  # less spread than sampling alone would give: d0 = inf
    common = 1.44 * np.exp(-float(reference.special.digamma(4.0)) + np.log(4.0))
    np.testing.assert_allclose(moderate(equal, 8), common, rtol=1e-5)


def test_moderated_variance_without_degrees_of_freedom_is_finite() -> None:
    variance = jnp.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(estimators.moderated_variance(variance, 0), variance)
    degrees = jnp.array([0.0, 5.0, 5.0, 5.0])
    got = estimators.moderated_variance(variance, degrees)
    assert got[0] == 1
    np.testing.assert_allclose(got[1:], estimators.moderated_variance(variance[1:], 5), rtol=1e-5)
    gradient = jax.grad(lambda v: estimators.moderated_variance(v, degrees).sum())(variance)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("degrees", [1, 4, 1e4])
@pytest.mark.parametrize(
    "variance",
    [
        [1e-36, 100, 200, 300],
        [1e-36, 1e-3, 1.0, 1e3],
        [1.2e-38, 1, 1e30, 3e38],
        [1e30, 1e-30, 1e30, 1e-8],
        [1e-36, 1e-36, 3e38],
    ],
)
def test_moderated_variance_of_variances_whose_ratios_are_no_floats(variance, degrees) -> None:
    """The logarithm of the ratio was taken: minus infinity, and so zeros."""
    variance = np.array(variance, np.float32)
    got = estimators.moderated_variance(variance, degrees)
    want = reference.moderated_variance(variance, degrees)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_moderated_variance_has_gradients_where_ratios_are_no_floats(x64) -> None:
    variance = np.array([1e-36, 100, 200, 300])
    slopes = jax.jacobian(lambda v: estimators.moderated_variance(v, 4))
    want = slopes(variance)  # in float64, whose range is not left
    for derivative in (slopes, jax.jacfwd(lambda v: estimators.moderated_variance(v, 4))):
        np.testing.assert_allclose(derivative(variance.astype(np.float32)), want, rtol=1e-3)
