"""What goes in: dtypes, ranks and lengths, those that work and those that are errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import estimators
from tests.estimators.cases import ROW, ROWS, Row, main_rows, scenarios
from tests.estimators.comparison import TOLERANCE, assert_near, error_scale


@main_rows
def test_numpy_and_jax_arrays_give_the_same(row: Row) -> None:
    x = scenarios(row, 5)["ordinary"]
    from_numpy, from_jax = row.function(x), row.function(jnp.asarray(x))
    assert isinstance(from_numpy, jax.Array)
    np.testing.assert_array_equal(from_numpy, from_jax)


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@main_rows
def test_low_precision_goes_out_as_float32(row: Row, dtype: str, channels: int) -> None:
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(scenarios(row, channels)["ordinary"], dtype)
        value = row.function(x)
        assert value.dtype == ("float64" if dtype == "float64" else "float32")
        x = np.asarray(x).astype(np.float64)
        expected = row.reference(x)
        tolerance = TOLERANCE[str(value.dtype)]
        assert_near(value, expected, error_scale(row, x, expected), tolerance)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64"])
@main_rows
def test_other_dtypes_are_type_errors(row: Row, dtype: str) -> None:
    with pytest.raises(TypeError, match=rf"(?is)float.*{dtype}|{dtype}.*float"):
        row.function(np.ones(4, dtype))


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2, 2, 3)])
@main_rows
def test_other_ranks_are_value_errors(row: Row, shape: tuple[int, ...]) -> None:
    came = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=came):
        row.function(np.ones(shape, np.float32))


@pytest.mark.parametrize("name", sorted({row.name for row in ROWS}))
def test_a_scalar_is_a_value_error(name: str) -> None:
    row = ROW[name]
    arguments, kwargs = row.arguments(3), row.kwargs(3)
    with pytest.raises(ValueError, match=r"\(\)|rank 0"):
        getattr(estimators, name)(np.float32(1.0), *arguments, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("stein_variance", {}),
        ("ridge_mean", {"strength": 1.0}),
        ("lasso_mean", {"strength": 1.0}),
        ("james_stein", {}),
        ("moderated_variance", {}),
    ],
)
def test_second_argument_of_another_length(name: str, kwargs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"\(4,\).*\(5,\)"):
        getattr(estimators, name)(np.ones(4, np.float32), np.ones(5, np.float32), **kwargs)
