"""Facts that several rules share: no change, zeros, order of the channels, large numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from steinnorm import estimators
from tests.estimators.cases import MAIN_ROWS, ROW, ROWS, Row
from tests.estimators.comparison import assert_near
from tests.estimators.strategies import property_test, seven, seven_positive


@pytest.mark.parametrize("row", [r for r in ROWS if r.identity_up_to], ids=lambda row: row.id)
def test_too_few_channels_are_left_alone(row: Row) -> None:
    for channels in range(1, row.identity_up_to + 1):
        x = np.array([1.5, 0.25, 4.0], np.float32)[:channels]
        value, pull_back = jax.vjp(row.function, x)
        np.testing.assert_array_equal(value, x)
        np.testing.assert_array_equal(pull_back(jnp.ones(channels))[0], np.ones(channels))
    more = np.array([1.5, 0.25, 4.0, 2.0], np.float32)[: row.identity_up_to + 1]
    assert not np.array_equal(row.function(more), more)


def test_zero_means_stay_zero_and_a_zero_variance_empties_the_geometric_mean() -> None:
    zeros = np.zeros(5, np.float32)
    for name in ("stein_mean", "jsnorm_mean", "jsnorm_variance"):
        np.testing.assert_array_equal(getattr(estimators, name)(zeros), zeros)
    variance = np.array([0.0, 1.0, 2.0, 3.0, 4.0], np.float32)
    value = estimators.stein_variance(variance, 9)
    np.testing.assert_allclose(value, 0.9 * variance, rtol=1e-6)


@property_test
@hypothesis.given(data=st.data(), order=st.permutations(range(7)))
@pytest.mark.parametrize(
    "row", [row for row in MAIN_ROWS if row.name != "moderated_variance"], ids=lambda r: r.id
)
def test_permuting_channels_permutes_the_result(row: Row, data: Any, order: list[int]) -> None:
    x = data.draw(seven if row.kind == "mean" else seven_positive)
    function = _compiled(row.id)
    straight, permuted = np.asarray(function(x)), np.asarray(function(x[order]))
    scale = np.abs(x) + np.abs(straight)
    assert_near(permuted, straight[order], scale[order], 1e-5)


@functools.cache
def _compiled(row_id: str) -> Callable:
    return jax.jit(ROW[row_id].function)


def test_magnitudes_near_the_largest_float_stay_in_range() -> None:
    v = jnp.array([1.0, -0.5, 0.25])
    large = 2e38 * v
    np.testing.assert_allclose(
        np.asarray(estimators.stein_mean(large)) / 2e38, estimators.stein_mean(v), rtol=1e-5
    )
    np.testing.assert_allclose(estimators.james_stein(large, 1.0), large, rtol=1e-5)
    assert np.all(np.isfinite(estimators.james_stein(jnp.full(4, 3e38), 1.0, target="mean")))
