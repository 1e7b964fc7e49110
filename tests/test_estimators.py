"""One table of estimators through one suite: a new estimator is one new row.

The truth is tests/reference.py (float64 NumPy, written from the equations).
"""

from __future__ import annotations

import doctest
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

from steinnorm import estimators
from tests import reference

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
ALL_SIZES = (1, 2, 3, 4, 17, 512, 4096)
CHANNEL_BY_CHANNEL = (1, 17, 4096)  # for rules that treat each channel on its own
IN_FLOAT64 = (3, 5, 4096)  # the sizes that float64 sees too


# ------------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    """One estimator with one choice of arguments.

    `arguments(C)` are the positional arguments after the first. `relative` compares with the
    result itself, channel by channel; without it with the input too (rules that subtract).
    """

    name: str
    kind: str  # of the first argument: "mean" (any sign) or "variance" (>= 0)
    arguments: Callable[[int], tuple[Any, ...]] = lambda channels: ()
    kwargs: Callable[[int], dict[str, Any]] = lambda channels: {}
    label: str = ""
    sizes: tuple[int, ...] = (5,)
    relative: bool = True
    identity_up_to: int = 0  # the largest C for which the result is the input
    without: tuple[str, ...] = ()  # scenarios that have no finite answer
    smooth: bool = True  # no kinks in the middle of the data

    @property
    def curved(self) -> bool:
        return "ridge" not in self.name and "lasso" not in self.name

    @property
    def id(self) -> str:
        return self.name + (f"-{self.label}" if self.label else "")

    def function(self, x: Any) -> jax.Array:
        return self._call(getattr(estimators, self.name), x)

    def reference(self, x: np.ndarray) -> np.ndarray:
        return self._call(getattr(reference, self.name), np.asarray(x))

    def _call(self, function: Callable, x: Any) -> Any:
        channels = x.shape[-1]
        return function(x, *self.arguments(channels), **self.kwargs(channels))


def _counts(channels: int) -> np.ndarray:
    return (2.0 + np.arange(channels) % 7).astype(np.float32)


def _scattered(channels: int) -> np.ndarray:
    return (0.25 + 0.125 * (np.arange(channels) % 5)).astype(np.float32)


ROWS = (
    Row("stein_mean", "mean", sizes=ALL_SIZES, identity_up_to=2),
    Row("stein_variance", "variance", lambda c: (32,), sizes=ALL_SIZES, identity_up_to=2),
    Row("stein_variance", "variance", lambda c: (2,), lambda c: {"fraction": 0.5}, "half"),
    Row("stein_variance", "variance", lambda c: (_counts(c),), label="counts", identity_up_to=2),
    Row("jsnorm_mean", "mean", sizes=(2, 3, 512, 4096), identity_up_to=2),
    Row("jsnorm_variance", "variance", sizes=(2, 3, 512, 4096), identity_up_to=2),
    Row(
        "ridge_mean", "mean", lambda c: (32,), lambda c: {"strength": 0.5}, sizes=CHANNEL_BY_CHANNEL
    ),
    Row("ridge_mean", "mean", lambda c: (_counts(c),), lambda c: {"strength": 0.5}, "counts"),
    Row("ridge_variance", "variance", kwargs=lambda c: {"strength": 0.5}, sizes=CHANNEL_BY_CHANNEL),
    Row(
        "lasso_mean",
        "mean",
        lambda c: (32,),
        lambda c: {"strength": 8.0},
        sizes=CHANNEL_BY_CHANNEL,
        relative=False,
        smooth=False,
    ),
    Row(
        "lasso_mean",
        "mean",
        lambda c: (_counts(c),),
        lambda c: {"strength": 1.0},
        "counts",
        relative=False,
        smooth=False,
    ),
    Row(
        "lasso_variance",
        "variance",
        kwargs=lambda c: {"strength": 1.0},
        sizes=CHANNEL_BY_CHANNEL,
        relative=False,
        smooth=False,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        sizes=ALL_SIZES,
        relative=False,
        identity_up_to=2,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (_scattered(c),),
        lambda c: {"target": 0.5},
        "number",
        relative=False,
        identity_up_to=2,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        lambda c: {"target": _scattered(c)},
        "array",
        relative=False,
        identity_up_to=2,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        lambda c: {"target": "mean"},
        "average",
        sizes=ALL_SIZES,
        relative=False,
        identity_up_to=3,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        lambda c: {"positive_part": False},
        "plain",
        relative=False,
        identity_up_to=2,
        without=("tiny",),  # the plain rule has a pole beside the target
    ),
    Row(
        "moderated_variance",
        "variance",
        lambda c: (31,),
        sizes=(1, 3, 512, 4096),  # seconds to compile
        identity_up_to=2,
    ),
    Row("moderated_variance", "variance", lambda c: (_counts(c),), label="degrees"),
)
ROW = {row.id: row for row in ROWS}
assert len(ROW) == len(ROWS)
MAIN_ROWS = tuple(row for row in ROWS if not row.label)

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
main_rows = pytest.mark.parametrize("row", MAIN_ROWS, ids=lambda row: row.id)
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


def scenarios(row: Row, channels: int) -> dict[str, np.ndarray]:
    """Named (C,) inputs, ordinary and singular, the same for every dtype (float32 numbers)."""
    rng = np.random.default_rng(channels)
    normal, wide = rng.normal(size=channels), rng.uniform(-8, 8, size=channels)
    ones, first = np.ones(channels), np.arange(channels) == 0
    if row.kind == "mean":
        cases = {
            "ordinary": normal,
            "offset": 3 + normal,
            "zeros": 0 * ones,
            "one_not_zero": 2.0 * first,
            "one_zero": normal * ~first,
            "equal": 1.2 * ones,
            "alternating": np.where(np.arange(channels) % 2, -1.0, 1.0),
            "mixed": np.sign(normal) * 10**wide,
            "one_dominates": np.where(first, 1e6, normal),
            "tiny": 1e-30 * normal,
            "huge": 1e30 * normal,
        }
    else:
        chi_square = rng.chisquare(31, size=channels) / 31
        cases = {
            "ordinary": chi_square,
            "scattered": chi_square * np.exp(normal),
            "1.44": 1.44 * ones,
            "1e-8": 1e-8 * ones,
            "1e8": 1e8 * ones,
            "nearly_equal": 1.44 + 1e-3 * normal,
            "zeros": 0 * ones,
            "one_zero": chi_square * ~first,
            "one_not_zero": 2.0 * first,
            "half_zero": chi_square * (np.arange(channels) % 2),
            "mixed": 10**wide,
            "one_dominates": np.where(first, 1e6, chi_square),
            "tiny": 1e-30 * chi_square,
            "huge": 1e30 * chi_square,
        }
    return {k: v.astype(np.float32) for k, v in cases.items() if k not in row.without}


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
        value, gradient = jax.jit(jax.vmap(both))(x)
        assert value.dtype == gradient.dtype == dtype
        value, gradient = np.asarray(value), np.asarray(gradient)
    return {
        name: {"x": x[i], "value": value[i], "weights": weights, "gradient": gradient[i]}
        for i, name in enumerate(cases)
    }


def assert_near(actual: Any, expected: np.ndarray, scale: np.ndarray, tolerance: float) -> None:
    actual, expected, scale = (np.asarray(a, np.float64) for a in (actual, expected, scale))
    error = np.abs(actual - expected)
    allowed = tolerance * np.abs(scale) + np.finfo(np.float32).tiny
    if not np.all(error <= allowed):
        worst = int(np.argmax(np.where(np.isnan(error), np.inf, error) / allowed))
        raise AssertionError(
            f"channel {worst}: got {actual.flat[worst]}, expected {expected.flat[worst]}; "
            f"error {error.flat[worst]:.2e} > {tolerance:g} of {np.abs(scale).flat[worst]:.2e}"
        )


def error_scale(row: Row, x: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(expected) if row.relative else np.abs(expected) + np.abs(x).astype(np.float64)


# ------------------------------------------------------------------------- values and gradients


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
                terms = case["weights"] * _directional_difference(row.reference, x, along)
                got = np.sum(case["gradient"].astype(np.float64) * along)
                size = np.sum(np.abs(case["gradient"] * along)) + np.sum(np.abs(terms))
                assert_near(got, np.sum(terms), size, 1e-5 if dtype == "float32" else 1e-9)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise AssertionError("\n".join(wrong))


SMOOTH = ("ordinary", "offset", "scattered", "huge")  # scenarios without kinks nearby


def _is_finite(x: np.ndarray) -> bool:
    return bool(np.all(np.isfinite(x)))


def _directional_difference(function: Callable, x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Fourth-order central difference of a float64 function."""
    step = 1e-3

    def at(k: int) -> np.ndarray:
        return function(x + k * step * direction)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


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
        expected = _directional_difference(row.reference, *point)
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
    expected = np.array([0.0, 1.0, -8.0, 8.0, -1.0]) @ first / 12e-3  # as above, fourth order
    assert_near(second[0], expected, np.full(channels, np.max(np.abs(expected)) + 1.0), 1e-7)


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
    expected = _directional_difference(
        lambda p: reference.james_stein(x, p[0], target=p[1]),
        np.stack([noise, target]),
        np.stack([u * noise, w]),
    )
    assert_near(forward, expected, np.full(5, np.max(np.abs(expected))), 1e-8)


# -------------------------------------------------------------------------------- transformations


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


# --------------------------------------------------------------------------------- what goes in


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


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, math.nan])
def test_fraction_outside_its_interval(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"fraction.*\(0, 1\].*{fraction}"):
        estimators.stein_variance(np.ones(4, np.float32), 8, fraction=fraction)


@pytest.mark.parametrize("strength", [-1e-3, -2.0, math.nan])
@pytest.mark.parametrize("name", ["ridge_mean", "ridge_variance", "lasso_mean", "lasso_variance"])
def test_negative_strength(name: str, strength: float) -> None:
    row = ROW[name]
    with pytest.raises(ValueError, match=f"strength.*{strength}"):
        getattr(estimators, name)(np.ones(4, np.float32), *row.arguments(4), strength=strength)


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


def test_bad_james_stein_targets() -> None:
    x = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"(?s)mean.*median"):
        estimators.james_stein(x, 1.0, target="median")
    with pytest.raises(ValueError, match=r"target.*\(4,\).*\(5,\)"):
        estimators.james_stein(x, 1.0, target=np.ones(5, np.float32))


# -------------------------------------------------------------------------- identities and facts


@pytest.mark.parametrize("row", [r for r in ROWS if r.identity_up_to], ids=lambda row: row.id)
def test_too_few_channels_are_left_alone(row: Row) -> None:
    for channels in range(1, row.identity_up_to + 1):
        x = np.array([1.5, 0.25, 4.0], np.float32)[:channels]
        value, pull_back = jax.vjp(row.function, x)
        np.testing.assert_array_equal(value, x)
        np.testing.assert_array_equal(pull_back(jnp.ones(channels))[0], np.ones(channels))
    more = np.array([1.5, 0.25, 4.0, 2.0], np.float32)[: row.identity_up_to + 1]
    assert not np.array_equal(row.function(more), more)


@pytest.mark.parametrize("name", ["ridge_mean", "ridge_variance", "lasso_mean", "lasso_variance"])
def test_no_strength_is_the_identity(name: str) -> None:
    row = ROW[name]
    x = scenarios(row, 17)["ordinary"]
    value = getattr(estimators, name)(x, *row.arguments(17), strength=0.0)
    np.testing.assert_array_equal(value, x)


def test_zero_means_stay_zero_and_a_zero_variance_empties_the_geometric_mean() -> None:
    zeros = np.zeros(5, np.float32)
    for name in ("stein_mean", "jsnorm_mean", "jsnorm_variance"):
        np.testing.assert_array_equal(getattr(estimators, name)(zeros), zeros)
    variance = np.array([0.0, 1.0, 2.0, 3.0, 4.0], np.float32)
    value = estimators.stein_variance(variance, 9)
    np.testing.assert_allclose(value, 0.9 * variance, rtol=1e-6)


def test_the_geometric_mean_does_not_overflow() -> None:
    """512 channels: a product in float32 would be inf at variance 1.44 and 0 at 1e-8."""
    for level in (1.44, 1e-8, 1e8):
        variance = np.full(512, level, np.float32)
        value = np.asarray(estimators.stein_variance(variance, 1, fraction=1.0), np.float64)
        expected = (1 / 2 + 4 * 511 / (2 * 2)) * float(np.float32(level))  # M = C - 1 at N = 1
        np.testing.assert_allclose(value, expected, rtol=1e-5)


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


property_test = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
positive = st.floats(2.0**-20, 2.0**20, width=32)
seven = st.lists(finite, min_size=7, max_size=7).map(lambda v: np.array(v, np.float32))
seven_positive = st.lists(positive, min_size=7, max_size=7).map(lambda v: np.array(v, np.float32))

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


@property_test
@hypothesis.given(x=seven_positive, noise=st.floats(2.0**-10, 2.0**10, width=32))
def test_james_stein_lies_between_target_and_estimate(x: np.ndarray, noise: float) -> None:
    value = np.asarray(_james_stein()(x, np.float32(noise)))
    assert np.all(value >= 0)
    assert np.all(value <= x)


@functools.cache
def _james_stein() -> Callable:
    return jax.jit(estimators.james_stein)


# ------------------------------------------------------------------------------ what is promised


def _public_functions() -> dict[str, Callable]:
    return {
        name: member
        for name, member in vars(estimators).items()
        if not name.startswith("_")
        and inspect.isfunction(inspect.unwrap(member))
        and member.__module__ == estimators.__name__
    }


def test_every_public_function_is_in_the_table() -> None:
    assert set(_public_functions()) == {row.name for row in ROWS}
    assert set(getattr(estimators, "__all__", _public_functions())) >= set(_public_functions())


@pytest.mark.parametrize("name", sorted(_public_functions()))
def test_docstrings_say_what_and_show_it(name: str) -> None:
    text = inspect.getdoc(_public_functions()[name]) or ""
    for part in ("Args:", "Returns:", ">>>", "(C,)"):
        assert part in text, f"{name}: no {part!r} in the docstring"


def test_docstring_examples_run() -> None:
    result = doctest.testmod(estimators, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted >= len(_public_functions())


def test_moderated_variance_without_degrees_of_freedom_is_finite() -> None:
    variance = jnp.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(estimators.moderated_variance(variance, 0), variance)
    degrees = jnp.array([0.0, 5.0, 5.0, 5.0])
    got = estimators.moderated_variance(variance, degrees)
    assert got[0] == 1
    np.testing.assert_allclose(got[1:], estimators.moderated_variance(variance[1:], 5), rtol=1e-5)
    gradient = jax.grad(lambda v: estimators.moderated_variance(v, degrees).sum())(variance)
    assert np.all(np.isfinite(gradient))


def test_magnitudes_near_the_largest_float_stay_in_range() -> None:
    v = jnp.array([1.0, -0.5, 0.25])
    large = 2e38 * v
    np.testing.assert_allclose(
        np.asarray(estimators.stein_mean(large)) / 2e38, estimators.stein_mean(v), rtol=1e-5
    )
    np.testing.assert_allclose(estimators.james_stein(large, 1.0), large, rtol=1e-5)
    assert np.all(np.isfinite(estimators.james_stein(jnp.full(4, 3e38), 1.0, target="mean")))
