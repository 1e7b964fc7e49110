"""Channels that are constant, or nearly: epsilon must not magnify what is left of their mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import RunningStatistics, Shrinkage, stein_batch_norm
from steinnorm import shrinkage as rules
from steinnorm.linen import SteinBatchNorm
from tests import reference

EPSILON, CONSTANT = 1e-5, 3
NOT_TOWARDS = tuple(name for name in rules.NAMES if name != "toward_running")
FIRST = RunningStatistics(jnp.zeros(16, jnp.float32), jnp.ones(16, jnp.float32))
LATER = RunningStatistics(jnp.full(16, 0.3, jnp.float32), jnp.full(16, 2.0, jnp.float32))


def draw(deviation=0.0):
    """64 examples of 16 channels; one of them at 1, with the given deviation."""
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    x[:, CONSTANT] = 1 + deviation * x[:, CONSTANT]
    return x


@functools.cache
def program(name):
    return jax.jit(functools.partial(stein_batch_norm, shrinkage=name, momentum=0.0))


@pytest.mark.parametrize("running", [FIRST, LATER])
@pytest.mark.parametrize("name", rules.NAMES)
def test_outputs_are_those_of_a_normalised_batch(name, running):
    """The largest of 1024 normal values is about 4; issue 10 measured 251."""
    result = program(name)(draw(), running=running)
    assert np.abs(result.y).max() <= 4.5
    np.testing.assert_allclose(result.y[:, CONSTANT], 0, atol=1e-3)
    assert np.isfinite(result.y).all()


@functools.cache
def largest_derivative(name):
    """Of the outputs of one example with respect to all inputs."""

    def first_example(x):
        return stein_batch_norm(x, running=LATER, shrinkage=name).y[0]

    jacobian = jax.jit(jax.jacrev(first_example))(draw())
    assert np.isfinite(jacobian).all()
    return np.abs(jacobian).max()


@pytest.mark.parametrize("name", rules.NAMES)
def test_gradients_stay_within_those_of_batch_norm(name):
    """Those are 1/sqrt(epsilon) in the constant channel; issue 10 measured 1.5e5."""
    np.testing.assert_allclose(largest_derivative("none"), 63 / 64 / np.sqrt(EPSILON), rtol=1e-2)
    assert largest_derivative(name) <= 1.05 * largest_derivative("none")


@pytest.mark.parametrize("shape", [(1, 16), (1, 1, 1, 16)])
@pytest.mark.parametrize("name", rules.NAMES)
def test_a_globally_pooled_batch_of_one_gives_the_bias(name, shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    bias = jnp.arange(16, dtype=jnp.float32)
    for running in (FIRST, LATER):
        y = program(name)(x, bias=bias, running=running).y
        np.testing.assert_allclose(y.reshape(16), bias, atol=1e-3)


@pytest.mark.parametrize("name", NOT_TOWARDS)
def test_a_nearly_constant_channel_keeps_its_own_mean(name):
    """Variance 1e-6, a tenth of epsilon."""
    x = draw(1e-3)
    result, plain = program(name)(x, running=FIRST), program("none")(x, running=FIRST)
    assert result.used.mean[CONSTANT] == plain.used.mean[CONSTANT]
    rest = np.arange(16) != CONSTANT
    if name not in ("none", "ridge", "lasso"):  # these leave hardly anything to be seen
        assert np.all(np.abs(result.used.mean - plain.used.mean)[rest] > 0)
    if name in ("none", "stein_mean_only"):  # the variance is the same too
        np.testing.assert_array_equal(result.y[:, CONSTANT], plain.y[:, CONSTANT])
    # Of the output only the scale can differ, by the rule for the variance.
    np.testing.assert_allclose(result.y[:, CONSTANT], plain.y[:, CONSTANT], atol=1.0)
    assert np.abs(result.y[:, CONSTANT]).max() <= 1.05 * np.abs(plain.y[:, CONSTANT]).max()


@pytest.mark.parametrize("deviation", [0.01, 0.1])
@pytest.mark.parametrize("name", rules.NAMES)
def test_above_epsilon_the_formula_holds_everywhere(name, deviation):
    """Variance 1e-4, ten times epsilon, and more."""
    x = draw(deviation)
    result = program(name)(x, running=LATER)
    y, mean, variance = reference.layer(x, *LATER, shrinkage=name, momentum=0.0)
    np.testing.assert_allclose(result.y, y, rtol=2e-4, atol=2e-3)
    np.testing.assert_allclose(result.running.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.running.variance, variance, rtol=2e-4)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [(name, deviation) for name in NOT_TOWARDS for deviation in (0.0, 1e-3)],
)
def test_the_other_channels_have_the_values_of_the_formula(name, deviation):
    """The channel takes part in the rule as ever: it is only not moved itself."""
    x = draw(deviation)
    got = program(name)(x, running=LATER)
    y, mean, variance = reference.layer(x, *LATER, shrinkage=name, momentum=0.0)
    rest = np.arange(16) != CONSTANT
    np.testing.assert_allclose(got.y[:, rest], y[:, rest], rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(got.running.mean[rest], mean[rest], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.running.variance[rest], variance[rest], rtol=1e-4)


def test_the_limit_is_epsilon_of_each_channel():
    """An epsilon per channel decides for its own channel alone."""
    x = draw(0.1)
    epsilon = jnp.full(16, EPSILON).at[CONSTANT].set(1.0)
    result = stein_batch_norm(x, epsilon=epsilon)
    plain = stein_batch_norm(x)
    kept = result.used.mean == result.batch.mean
    np.testing.assert_array_equal(kept, np.arange(16) == CONSTANT)
    rest = np.arange(16) != CONSTANT
    np.testing.assert_array_equal(result.used.mean[rest], plain.used.mean[rest])
    assert not np.any(plain.used.mean == plain.batch.mean)


def test_rules_of_ones_own_are_guarded_as_well():
    halves = Shrinkage(
        "halves",
        mean=lambda batch, running: batch.mean / 2,
        variance=lambda batch, running: batch.variance,
    )
    result = stein_batch_norm(draw(), shrinkage=halves)
    own = result.batch.mean
    np.testing.assert_array_equal(
        result.used.mean, np.where(np.arange(16) == CONSTANT, own, own / 2)
    )


def test_the_layer_and_its_running_statistics():
    """Inference goes on with the mean that the channel was normalised with."""
    module, x = SteinBatchNorm(use_running_average=False, momentum=0.0), draw()
    variables = module.init(jax.random.key(0), x)
    y, updated = module.apply(variables, x, mutable=["batch_stats"])
    assert np.abs(y).max() <= 4.5
    test = module.clone(use_running_average=True, parent=None)
    again = test.apply(variables | updated, x)
    np.testing.assert_allclose(again, y, rtol=1e-5, atol=1e-4)


def test_what_the_formula_makes_of_a_constant_channel():
    """The number in docs/layer.md: what the mean rule leaves, over the root of epsilon."""
    x = draw()
    left = x.mean(0) - reference.stein_mean(x.mean(0))
    variance = reference.stein_variance(x.var(0), 64)
    y = left / np.sqrt(variance + EPSILON)
    np.testing.assert_allclose(y[CONSTANT], 260, atol=0.5)
