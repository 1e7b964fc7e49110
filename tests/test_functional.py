"""The layer as a pure function, against the float64 reference and its own promises."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import RunningStatistics, Shrinkage, batch_statistics, moderated_variance
from steinnorm import shrinkage as rules
from steinnorm.functional import stein_batch_norm
from steinnorm.shrinkage_factors import shrinkage_factors
from tests import reference
from tests.derivatives import assert_derivatives

SHAPE = (8, 3, 3, 5)
RUNNING = RunningStatistics(
    jnp.array([0.5, -0.2, 0.3, 0.0, 1.0]), jnp.array([3.0, 1.5, 2.5, 2.0, 4.0])
)
SCALE = jnp.array([1.0, 2.0, 0.5, -1.0, 1.5])
BIAS = jnp.array([0.0, 1.0, -1.0, 0.5, 2.0])


def draw(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return (rng.normal(0.7, 2.0, shape) + 0.5 * rng.normal(size=shape[-1])).astype(np.float32)


def jitted(**options):
    return jax.jit(functools.partial(stein_batch_norm, **options))


@pytest.mark.parametrize("mask_shape", [None, (8, 1, 1, 1)])
@pytest.mark.parametrize("name", rules.NAMES)
def test_training_agrees_with_the_reference(name, mask_shape):
    x = draw()
    mask = None if mask_shape is None else np.arange(8).reshape(mask_shape) % 3 > 0
    got = jitted(shrinkage=name, momentum=0.9)(x, SCALE, BIAS, RUNNING, mask=mask)
    y, mean, variance = reference.layer(
        x, *RUNNING, shrinkage=name, mask=mask, momentum=0.9, scale=SCALE, bias=BIAS
    )
    np.testing.assert_allclose(got.y, y, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(got.running.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.running.variance, variance, rtol=1e-5)


@pytest.mark.parametrize("name", rules.NAMES)
def test_inference_with_running_statistics_needs_no_shrinkage(name):
    x = draw()
    got = jitted(shrinkage=name, use_running_average=True)(x, SCALE, BIAS, RUNNING)
    want = reference.normalise(x, *RUNNING, scale=SCALE, bias=BIAS)
    np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(got.running, RUNNING)
    one = stein_batch_norm(x[:1], SCALE, BIAS, RUNNING, use_running_average=True)
    np.testing.assert_allclose(one.y, got.y[:1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["none", "stein", "jsnorm"])
def test_inference_with_batch_statistics_is_training_that_records_nothing(name):
    x = draw()
    train = jitted(shrinkage=name)(x, SCALE, BIAS, RUNNING)
    test = jitted(shrinkage=name, use_running_average=True, test_statistics="batch")(
        x, SCALE, BIAS, RUNNING
    )
    np.testing.assert_allclose(test.y, train.y, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(test.running, RUNNING)
    with np.testing.assert_raises(AssertionError):
        chex.assert_trees_all_close(train.running, RUNNING)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shrinkage", "test_statistics"),
    [("stein", "shrunk"), ("jsnorm", "shrunk"), ("none", "shrunk"), ("toward_running", "batch")],
)
def test_gradients_in_inference_are_those_of_what_is_evaluated(shrinkage, test_statistics):
    """Straight-through gradients are for training; an attack would follow them astray."""
    x = draw().astype(np.float64)
    running = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), RUNNING)
    weights = np.random.default_rng(1).normal(size=x.shape)
    along = np.random.default_rng(2).normal(size=x.shape)

    def total(x):
        y = stein_batch_norm(
            x,
            running=running,
            use_running_average=True,
            shrinkage=shrinkage,
            test_statistics=test_statistics,
        ).y
        return jnp.sum(weights * y)

    _, slope = jax.jvp(jax.jit(total), (jnp.asarray(x),), (jnp.asarray(along),))
    step = 1e-6
    difference = (total(x + step * along) - total(x - step * along)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-5)
    gradient = jax.grad(total)(x)
    np.testing.assert_allclose(jnp.sum(gradient * along), difference, rtol=1e-5)
    constant = jnp.asarray(x).at[..., 0].set(2.0)
    assert bool(jnp.all(jnp.isfinite(jax.grad(total)(constant))))


@pytest.mark.parametrize("axis", [1, (1, 3), 0])
def test_feature_axes(axis):
    x = draw(shape=(6, 4, 3, 5))
    features = tuple(np.atleast_1d(axis))
    shape = tuple(x.shape[a] for a in features)
    others = tuple(a for a in range(4) if a not in features)
    mean, variance = x.mean(others), x.var(others)
    flat = (
        reference.stein_mean(mean.ravel()).reshape(shape),
        reference.stein_variance(variance.ravel(), x.size // mean.size).reshape(shape),
    )
    got = jitted(axis=axis)(x)
    want = reference.normalise(x, *flat, axis=axis)
    np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)
    assert got.used.mean.shape == shape


@pytest.mark.usefixtures("as_users_compile")
class TestFarFromZero:
    @pytest.mark.parametrize("offset", [0.0, 1e4])
    def test_output_has_unit_deviation_whatever_the_offset(self, offset):
        x = offset + draw(shape=(64, 8, 8, 4)) / 2
        y = jitted(shrinkage="none")(x).y
        np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), 1.0, rtol=1e-2)


def test_rank_one_input_has_a_mapped_batch_axis():
    x = draw()[:, 0, 0]
    mapped = jax.vmap(
        lambda a: stein_batch_norm(a, axis_name="batch", shrinkage="none").y, axis_name="batch"
    )
    np.testing.assert_allclose(
        mapped(x), stein_batch_norm(x, shrinkage="none").y, rtol=1e-5, atol=1e-5
    )
    one = stein_batch_norm(x[0], SCALE, BIAS, RUNNING, use_running_average=True).y
    np.testing.assert_allclose(
        one, reference.normalise(x[:1], *RUNNING, scale=SCALE, bias=BIAS)[0], rtol=1e-5, atol=1e-5
    )


class TestMask:
    def test_all_false_mask_leaves_the_running_statistics_alone(self):
        x = draw()
        for name in ("none", "stein", "toward_running"):
            got = jitted(shrinkage=name)(x, SCALE, BIAS, RUNNING, mask=jnp.zeros((8, 1, 1, 1)) > 0)
            chex.assert_trees_all_equal(got.running, RUNNING)
            want = reference.normalise(x, *RUNNING, scale=SCALE, bias=BIAS)
            np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)

    def test_gradients_ignore_masked_values(self):
        x = draw()
        x[0] = 1e3
        mask = np.arange(8).reshape(8, 1, 1, 1) > 0

        def loss(x):
            y = stein_batch_norm(x, SCALE, BIAS, RUNNING, mask=mask).y
            return jnp.sum(jnp.square(y[1:]))

        gradient = jax.jit(jax.grad(loss))(x)
        assert np.all(np.isfinite(gradient))
        np.testing.assert_array_equal(gradient[0], 0)

    def test_a_channel_without_values_uses_its_running_statistics(self):
        mask = np.array([True, True, False, True, True])
        got = jitted(shrinkage="none")(draw(), None, None, RUNNING, mask=mask)
        assert got.running.mean[2] == RUNNING.mean[2]
        assert got.used.mean[2] == RUNNING.mean[2]
        assert np.all(got.running.mean[mask] != RUNNING.mean[mask])


class TestDerivatives:
    @pytest.mark.parametrize("name", ["none", "stein", "jsnorm", "ridge", "lasso"])
    def test_against_differences(self, name, x64):
        """Through a curved loss; for the paper's pair to second order."""
        x = jnp.asarray(draw(shape=(4, 2, 3)), jnp.float64)
        weights = jax.random.normal(jax.random.key(1), x.shape, jnp.float64)

        def loss(x, scale, bias):
            y = stein_batch_norm(x, scale, bias, shrinkage=name, epsilon=1e-3).y
            return jnp.sum(weights * jnp.sin(y))

        affine = (SCALE[:3].astype(jnp.float64), BIAS[:3].astype(jnp.float64))
        assert_derivatives(loss, x, *affine, second=name == "stein")

    def test_toward_running_has_the_gradient_of_batch_renormalisation(self):
        """y = r x_hat + d with r and d constant: Ioffe (2017), equation 1."""
        x, epsilon = draw(), 1e-5
        weights = jax.random.normal(jax.random.key(1), x.shape)
        options = {"shrinkage": "toward_running", "epsilon": epsilon}
        used = stein_batch_norm(x, SCALE, BIAS, RUNNING, **options).used
        own = batch_statistics(x)
        r = jnp.sqrt((own.variance + epsilon) / (used.variance + epsilon))
        d = (own.mean - used.mean) / jnp.sqrt(used.variance + epsilon)

        def ours(x):
            return jnp.sum(weights * stein_batch_norm(x, SCALE, BIAS, RUNNING, **options).y)

        def renormalised(x):
            mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
            x_hat = (x - mean) / jnp.sqrt(variance + epsilon)
            wide = (1, 1, 1, 5)
            y = (x_hat * r.reshape(wide) + d.reshape(wide)) * SCALE.reshape(wide)
            return jnp.sum(weights * (y + BIAS.reshape(wide)))

        value, gradient = jax.jit(jax.value_and_grad(ours))(x)
        wanted_value, wanted = jax.jit(jax.value_and_grad(renormalised))(x)
        np.testing.assert_allclose(value, wanted_value, rtol=1e-4)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", rules.NAMES)
    def test_finite_on_constant_and_zero_inputs(self, name):
        for x in (jnp.zeros((4, 6)), jnp.full((4, 6), 3.0), jnp.eye(4, 6)):

            def loss(x, name=name):
                y = stein_batch_norm(
                    x, shrinkage=name, running=RunningStatistics(jnp.zeros(6), jnp.ones(6))
                ).y
                return jnp.sum(jnp.square(y))

            value, gradient = jax.jit(jax.value_and_grad(loss))(x)
            assert np.isfinite(value)
            assert np.all(np.isfinite(gradient))


@pytest.mark.usefixtures("as_users_compile")
class TestMemory:
    """The backward pass must not keep arrays of the size of the activation."""

    @pytest.mark.parametrize("name", ["none", "stein", "jsnorm"])
    @pytest.mark.parametrize("shape", [(16, 16, 16, 32), (2, 16, 16, 16, 16)])
    def test_temporaries_are_small(self, name, shape):
        x, weights = jnp.zeros(shape), jnp.ones(shape)
        features = jnp.ones(shape[-1])

        def loss(x, scale, bias):
            return jnp.sum(weights * stein_batch_norm(x, scale, bias, shrinkage=name).y)

        compiled = (
            jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(x, features, features)
        ).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= 0.1 * x.nbytes


class TestShrinkageFactors:
    def test_is_the_factor_of_a_multiplying_rule(self):
        x = draw()
        result = stein_batch_norm(x, shrinkage="stein_mean_only")
        factors = shrinkage_factors(result)
        mean = x.mean((0, 1, 2))
        np.testing.assert_allclose(factors.mean, (reference.stein_mean(mean) / mean)[0], rtol=1e-5)
        np.testing.assert_allclose(factors.variance, 1.0, rtol=1e-6)

    def test_is_measured_from_the_running_statistics_where_they_are_the_target(self):
        result = stein_batch_norm(draw(), None, None, RUNNING, shrinkage="toward_running")
        factors = shrinkage_factors(result, RUNNING)
        share = (result.used.mean - RUNNING.mean) / (result.batch.mean - RUNNING.mean)
        np.testing.assert_allclose(factors.mean, share[0], rtol=1e-3)


def test_a_rule_of_ones_own():
    moderated = Shrinkage(
        name="moderated",
        mean=lambda batch, running: batch.mean,
        variance=lambda batch, running: moderated_variance(batch.variance, batch.count - 1),
    )
    x = draw()
    got = jitted(shrinkage=moderated)(x)
    variance = reference.moderated_variance(x.var((0, 1, 2)), 71)
    want = reference.normalise(x, x.mean((0, 1, 2)), variance)
    np.testing.assert_allclose(got.y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_low_precision_input_gets_float32_statistics(in_dtype):
    x = jnp.asarray(draw(), in_dtype)
    got = stein_batch_norm(x, SCALE, BIAS, RUNNING)
    chex.assert_type([got.y, got.used.mean, got.running.mean], jnp.float32)
    want, *_ = reference.layer(x.astype(jnp.float32), *RUNNING, scale=SCALE, bias=BIAS)
    np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)
    assert stein_batch_norm(x, SCALE, BIAS, RUNNING, dtype=in_dtype).y.dtype == in_dtype


def test_compiles_once():
    traced = jax.jit(chex.assert_max_traces(lambda x: stein_batch_norm(x).y, n=1))
    traced(draw(0))
    traced(draw(1))


def test_transforms_agree(key):
    x = jax.random.normal(key, (3, 8, 5))
    one_by_one = jnp.stack([stein_batch_norm(a).y for a in x])
    np.testing.assert_allclose(
        jax.vmap(lambda a: stein_batch_norm(a).y)(x), one_by_one, rtol=1e-5, atol=1e-6
    )
    scanned = jax.lax.scan(lambda c, a: (c, jax.remat(lambda a: stein_batch_norm(a).y)(a)), 0, x)[1]
    np.testing.assert_allclose(scanned, one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {"shrinkage": "stain"}, ValueError, "got 'stain'"),
        ((), {"momentum": 1.5}, ValueError, r"momentum must be in \[0, 1\].*got 1.5"),
        ((), {"epsilon": -1.0}, ValueError, "epsilon must be finite and at least 0; got -1.0"),
        (
            (),
            {"test_statistics": "test"},
            ValueError,
            "shrunk, calibrated, calibrated_streams; got 'test'",
        ),
        ((), {"use_running_average": True}, ValueError, "running must be given"),
        ((), {"shrinkage": "toward_running"}, ValueError, "running must be given"),
        ((jnp.ones(4),), {}, ValueError, r"scale must have the shape .*\(5,\); got \(4,\)"),
        ((None, None, RunningStatistics(jnp.ones(3), jnp.ones(5))), {}, ValueError, "running.mean"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        stein_batch_norm(draw(), *arguments, **options)


def test_complex_input_needs_no_shrinkage():
    x = jnp.asarray(draw() + 1j * draw(1), jnp.complex64)
    y = stein_batch_norm(x, shrinkage="none").y
    np.testing.assert_allclose(jnp.var(y, axis=(0, 1, 2)), 1.0, rtol=1e-4)
    with pytest.raises(TypeError, match="complex64"):
        stein_batch_norm(x, shrinkage="stein")


def test_a_rule_of_the_wrong_shape_is_named():
    wrong = Shrinkage("wrong", lambda batch, running: batch.mean[:2], rules.none().variance)
    with pytest.raises(
        ValueError, match=r"mean rule of shrinkage 'wrong' must return shape \(5,\)"
    ):
        stein_batch_norm(draw(), shrinkage=wrong)
