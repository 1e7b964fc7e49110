"""Every row of the table against the float64 reference: values and derivatives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.estimators.cases import MAIN_ROWS, ROWS, Row, scenarios
from tests.estimators.comparison import TOLERANCE, assert_near, directional_difference, error_scale

IN_FLOAT64 = (3, 5, 4096)  # the sizes that float64 sees too
SMOOTH = ("ordinary", "offset", "scattered", "huge")  # scenarios without kinks nearby

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
row_size_dtype = pytest.mark.parametrize(
    ("row", "channels", "dtype"),
    [
        pytest.param(row, size, dtype, id=f"{row.id}-{size}-{dtype}")
        for row in ROWS
        for size in row.sizes
        for dtype in ("float32", "float64")
        if dtype == "float32" or size in IN_FLOAT64
    ],
)


def evaluate(row: Row, channels: int, dtype: str) -> dict[str, dict[str, np.ndarray]]:
    """{scenario: {x, value, weights, gradient}}, all of one size in one compiled call.

    `gradient` is that of sum(weights * value).
    """
    cases = scenarios(row, channels)
    weights = np.random.default_rng(1).normal(size=channels)

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull_back = jax.vjp(row.function, x)
        return value, pull_back(jnp.asarray(weights, value.dtype))[0]

    with jax.enable_x64(dtype == "float64"):
        x = np.stack(list(cases.values())).astype(dtype)
        # One by one: of vmap(lambda x: x - jnp.sum(w * x) * x) over 11 rows of 4,096, jaxlib 0.10.2
        # gets rows 9 to 11 wrong on some CPUs.
        value, gradient = jax.jit(functools.partial(jax.lax.map, both))(x)
        assert value.dtype == gradient.dtype == dtype
        value, gradient = np.asarray(value), np.asarray(gradient)
    return {
        name: {"x": x[i], "value": value[i], "weights": weights, "gradient": gradient[i]}
        for i, name in enumerate(cases)
    }


@row_size_dtype
def test_agrees_with_the_float64_reference(row: Row, channels: int, dtype: str) -> None:
    """Values in every scenario; gradients finite in every one, and right where it is smooth."""
    wrong = []
    for name, case in evaluate(row, channels, dtype).items():
        x = case["x"].astype(np.float64)
        expected = row.reference(x)
        assert np.all(np.isfinite(expected)), f"the reference is not finite: {name}"
        wrong += [f"{name}: {what}" for what in ("value", "gradient") if not _is_finite(case[what])]
        try:
            assert_near(case["value"], expected, error_scale(row, x, expected), TOLERANCE[dtype])
            if row.smooth and name in SMOOTH:
                along = np.random.default_rng(2).normal(size=channels) * x
                terms = case["weights"] * directional_difference(row.reference, x, along)
                got = np.sum(case["gradient"].astype(np.float64) * along)
                size = np.sum(np.abs(case["gradient"] * along)) + np.sum(np.abs(terms))
                assert_near(got, np.sum(terms), size, 1e-5 if dtype == "float32" else 1e-9)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise AssertionError("\n".join(wrong))


def _is_finite(x: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(x)))


@every_row
def test_forward_mode_matches_differences_of_the_reference(row: Row) -> None:
    channels = 5
    rng = np.random.default_rng(3)
    x = rng.uniform(0.5, 3.0, size=(4, channels))
    x[1] *= [1, 2, 4, 8, 16]  # far from equal
    x[2] = 1.0 + 0.05 * x[2]  # nearly equal
    if row.kind == "mean":
        x[::2] *= rng.choice([-1.0, 1.0], size=(2, channels))
    along = rng.normal(size=(4, channels)) * x  # steps relative to the values

    def forward(x: jax.Array, along: jax.Array) -> jax.Array:
        return jax.jvp(row.function, (x,), (along,))[1]

    with jax.enable_x64(True):
        derivative = np.asarray(jax.jit(jax.vmap(forward))(x, along))
    for one, *point in zip(derivative, x, along, strict=True):
        expected = directional_difference(row.reference, *point)
        assert_near(one, expected, np.full(channels, np.max(np.abs(expected))), 1e-8)


@pytest.mark.parametrize("row", [row for row in MAIN_ROWS if row.curved], ids=lambda row: row.id)
def test_second_derivatives_are_the_differences_of_the_first(row: Row) -> None:
    channels = 4
    rng = np.random.default_rng(4)
    x, weights, along = rng.uniform(0.5, 3.0, size=(3, channels))

    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.dot(jnp.asarray(weights), row.function(x)))(x)

    steps = np.array([0.0, -2.0, -1.0, 1.0, 2.0])
    with jax.enable_x64(True):
        both = jax.jit(jax.vmap(lambda x: jax.jvp(gradient, (x,), (jnp.asarray(along),))))
        first, second = jax.device_get(both(x + 1e-3 * steps[:, None] * along))
    expected = np.array([0.0, 1.0, -8.0, 8.0, -1.0]) @ first / 12e-3  # fourth order
    assert_near(second[0], expected, np.full(channels, np.max(np.abs(expected)) + 1.0), 1e-7)
