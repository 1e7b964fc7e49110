"""The experimental option of our training steps, against XLA's defaults."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.compile import _Compared, compiled, compiler_options, jitted
from tests.experiments.models.networks import hrnet, resnet


def _times_ones(x):
    return x.reshape(x.shape[0], -1) @ jnp.ones((3072, 5))


def _times(x, weights):
    return x.reshape(x.shape[0], -1) @ weights


@pytest.mark.parametrize("build", [resnet, hrnet])
def test_training_steps_are_those_of_the_defaults(build):
    graphdef, state, rest = nnx.split(build(), nnx.Param, ...)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(4, 16, 16, 3)), jnp.float32)
    shape = (4,) if build is resnet else (4, 16, 16)
    y = jnp.asarray(rng.integers(0, 5, shape), jnp.int32)

    def gradients(state, rest, x):
        def loss(state):
            logits = nnx.merge(graphdef, state, rest, copy=True)(x)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

        return jax.value_and_grad(loss)(state)

    plain = jax.jit(gradients)(state, rest, x)
    fast = jax.jit(gradients, compiler_options=compiler_options(4))(state, rest, x)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(fast), strict=True):
        scale = max(float(np.abs(a).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(b) / scale, np.asarray(a) / scale, atol=2e-4)


def test_the_fast_form_is_taken_only_where_it_gives_the_same():
    """The option reads memory that nobody wrote for a product with one number, repeated."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(40, 32, 32, 3)), jnp.float32)
    features = x.reshape(len(x), -1)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3072, 5)), jnp.float32)
    for shift in (0.0, 1.0):  # the first call compares, the second uses what it found
        got = compiled(_times_ones, x)(x + shift)
        expected = np.repeat(np.asarray(features + shift).sum(axis=1, keepdims=True), 5, axis=1)
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        np.testing.assert_allclose(
            compiled(_times, x)(x + shift, weights), (features + shift) @ weights, atol=1e-3
        )


def test_the_fast_form_is_used_where_it_may():
    if not compiler_options(4):
        pytest.skip("this device or version of XLA has no such options")
    x = jnp.ones((40, 32, 32, 3))
    calls = []

    def plain(x):
        calls.append("plain")
        return x

    def fast(x):
        calls.append("fast")
        return x * (1 + 1e-7)

    def wrong(x):
        calls.append("wrong")
        return x.at[7].mul(1.1)  # a single example

    def nan(x):
        return x.at[7, 0, 0, 0].set(jnp.nan)

    def off_by_little(x):
        return 1e-12 * x  # as gradients of a model that is very sure

    right = _Compared(plain, fast)
    right(x), right(x)
    assert calls == ["fast", "plain", "fast", "fast"]
    right(x[:8])  # another shape is another question
    assert calls[4:] == ["fast", "plain", "fast"]
    calls.clear()
    for other in (wrong, nan):
        careful = _Compared(plain, other)
        for _ in range(2):
            np.testing.assert_array_equal(careful(x), x)
    assert calls == ["wrong", "plain", "wrong", "plain", "plain", "plain"]
    lucky = iter([x * 7, x])  # right only behind the plain form, whose memory it finds
    careful = _Compared(plain, lambda x: next(lucky))
    for _ in range(2):
        np.testing.assert_array_equal(careful(x), x)
    sure = _Compared(lambda x: 2e-12 * x, off_by_little)
    np.testing.assert_allclose(sure(x), 2e-12)


def test_infinities_may_be_the_same():
    start = jnp.full((4, 2), jnp.inf)
    kept = _Compared(lambda x: x, lambda x: x + 0)
    np.testing.assert_array_equal(kept(start), start)
    assert list(kept._chosen.values()) == [kept._fast]


def test_small_batches_are_not_compiled_twice():
    assert compiled(_times_ones, jnp.ones((8, 32, 32, 3))) is jitted(_times_ones, ())


def test_functions_of_others_are_compiled_without_options():
    def constant(x):
        return x @ jnp.ones((192, 5))

    x = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 192)), jnp.float32)
    expected = np.repeat(np.asarray(x).sum(axis=1, keepdims=True), 5, axis=1)
    np.testing.assert_allclose(jitted(constant)(x), expected, rtol=1e-5)
