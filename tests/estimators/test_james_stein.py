"""The facts of `james_stein`: its target, its noise, and what lies between."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from steinnorm import estimators
from tests import reference
from tests.estimators.comparison import assert_near, directional_difference
from tests.estimators.strategies import property_test, seven_positive


@pytest.mark.parametrize("target", [0.5, "array", "mean"])
@pytest.mark.parametrize("positive_part", [True, False])
def test_james_stein_on_its_target_is_the_target_with_finite_gradients(
    target: Any, positive_part: bool
) -> None:
    towards = np.linspace(-1, 1, 6, dtype=np.float32)
    target = towards if isinstance(target, str) and target == "array" else target
    at = towards if isinstance(target, np.ndarray) else np.full(6, 0.5, np.float32)

    def total(x: jax.Array, noise: jax.Array) -> jax.Array:
        y = estimators.james_stein(x, noise, target=target, positive_part=positive_part)
        return jnp.sum(y * jnp.arange(1.0, 7.0)), y

    gradients, value = jax.grad(total, argnums=(0, 1), has_aux=True)(at, np.float32(0.25))
    np.testing.assert_array_equal(value, at)
    chex.assert_tree_all_finite(gradients)


@pytest.mark.parametrize("noise", [0.0, 1e-30])
def test_james_stein_without_noise_keeps_the_estimate(noise: float) -> None:
    x = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
    value, pull_back = jax.vjp(estimators.james_stein, x, np.float32(noise))
    np.testing.assert_array_equal(value, x)
    chex.assert_tree_all_finite(pull_back(jnp.ones(4)))


def test_james_stein_differentiates_in_noise_and_target() -> None:
    rng = np.random.default_rng(5)
    x, target = 2 + rng.normal(size=5), 0.1 * rng.normal(size=5)
    noise = rng.uniform(0.2, 0.4, size=5)
    u, w = rng.normal(size=(2, 5))

    def function(noise: jax.Array, target: jax.Array) -> jax.Array:
        return estimators.james_stein(x, noise, target=target)

    with jax.enable_x64(True):
        _, forward = jax.jvp(function, (jnp.asarray(noise), jnp.asarray(target)), (u * noise, w))
    expected = directional_difference(
        lambda p: reference.james_stein(x, p[0], target=p[1]),
        np.stack([noise, target]),
        np.stack([u * noise, w]),
    )
    assert_near(forward, expected, np.full(5, np.max(np.abs(expected))), 1e-8)


def test_bad_james_stein_targets() -> None:
    x = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"(?s)mean.*median"):
        estimators.james_stein(x, 1.0, target="median")
    with pytest.raises(ValueError, match=r"target.*\(4,\).*\(5,\)"):
        estimators.james_stein(x, 1.0, target=np.ones(5, np.float32))


def test_the_effective_dimension_of_independent_estimates_is_their_number() -> None:
    x = np.array([1.0, -0.5, 0.25, 2.0, 0.125], np.float32)
    plain = estimators.james_stein(x, 0.5)
    np.testing.assert_allclose(
        estimators.james_stein(x, 0.5, effective_dimension=5), plain, rtol=1e-6
    )
    for d in (1.0, 2.0):  # nothing is proved there: nothing is done
        kept = jax.jit(lambda d: estimators.james_stein(x, 0.5, effective_dimension=d))(d)
        np.testing.assert_array_equal(kept, x)


def test_bad_effective_dimensions() -> None:
    x = np.ones(4, np.float32)
    for d in (0.5, 4.5, np.nan):
        with pytest.raises(ValueError, match=rf"effective_dimension .*\[1, 4\].*{d}"):
            estimators.james_stein(x, 1.0, effective_dimension=d)
    with pytest.raises(ValueError, match=r"effective_dimension must be a scalar; got .*\(4,\)"):
        estimators.james_stein(x, 1.0, effective_dimension=x)
    with pytest.raises(ValueError, match=r'fixed target; got target="mean"'):
        estimators.james_stein(x, 1.0, target="mean", effective_dimension=3.0)


@property_test
@hypothesis.given(x=seven_positive, noise=st.floats(2.0**-10, 2.0**10, width=32))
def test_james_stein_lies_between_target_and_estimate(x: np.ndarray, noise: float) -> None:
    value = np.asarray(_james_stein()(x, np.float32(noise)))
    assert np.all(value >= 0)
    assert np.all(value <= x)


@functools.cache
def _james_stein() -> Callable:
    return jax.jit(estimators.james_stein)
