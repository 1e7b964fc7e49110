"""The estimators under jit, vmap and on devices, without retracing."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import numpy as np
import pytest
from absl.testing import parameterized

from steinnorm import estimators
from tests import reference
from tests.estimators.cases import MAIN_ROWS, Row, main_rows, scenarios
from tests.estimators.comparison import assert_near, error_scale


class TestVariants(chex.TestCase):
    """Each estimator with jit, without, on the device and from host arrays."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    @parameterized.named_parameters((row.id, row) for row in MAIN_ROWS)
    def test_agrees(self, row: Row) -> None:
        x = scenarios(row, 5)["ordinary"]
        expected = row.reference(x)
        value = self.variant(row.function)(x)
        chex.assert_shape(value, (5,))
        assert_near(value, expected, error_scale(row, x, expected), 1e-5)


@main_rows
def test_vmap_equals_a_loop(row: Row) -> None:
    x = np.stack(list(scenarios(row, 5).values()))
    one = jax.jit(row.function)
    expected = np.stack([one(a) for a in x]).astype(np.float64)
    scale = error_scale(row, x, expected)
    columns = jax.jit(jax.vmap(row.function, in_axes=1, out_axes=1))(x.T)
    assert_near(np.asarray(columns).T, expected, scale, 1e-6)


@main_rows
def test_new_values_do_not_retrace(row: Row) -> None:
    chex.clear_trace_counter()  # chex counts by name
    function = jax.jit(chex.assert_max_traces(row.function, n=1))
    first, second = (scenarios(row, 5)[name] for name in ("ordinary", "one_not_zero"))
    assert not np.array_equal(function(first), function(second))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("stein_variance", {}),
        ("ridge_mean", {"strength": 0.5}),
        ("lasso_mean", {"strength": 0.5}),
        ("james_stein", {}),
        ("moderated_variance", {}),
    ],
)
def test_the_second_argument_may_be_traced(name: str, kwargs: dict[str, float]) -> None:
    x = np.array([1.0, 2.0, 3.0, 5.0], np.float32)
    expected = functools.partial(getattr(reference, name), **kwargs)

    def call(x: jax.Array, n: Any) -> jax.Array:
        return getattr(estimators, name)(x, n, **kwargs)

    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(call, n=1))
    for number in (np.float32(3.0), np.float32(20.0)):
        np.testing.assert_allclose(traced(x, number), expected(x, number), rtol=1e-5)
    if name != "james_stein":  # counts and degrees of freedom are naturally integers
        counts = np.array([2, 3, 5, 7], np.int32)
        np.testing.assert_allclose(jax.jit(call)(x, counts), expected(x, counts), rtol=1e-5)
