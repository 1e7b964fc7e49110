"""The experimental option of our training steps, against XLA's defaults."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.models.hrnet import HRNetSize
from experiments.training.xla_options import compiler_options
from tests.experiments.models.networks import hrnet, resnet

# Two branches have every kind of convolution; a third would only repeat them.
_TWO_BRANCHES = HRNetSize((1, 1), 1, 2, (2, 3), (1,), 1)


@pytest.mark.parametrize(
    "build", [resnet, functools.partial(hrnet, size=_TWO_BRANCHES)], ids=["resnet", "hrnet"]
)
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
    fast = jax.jit(gradients, compiler_options=compiler_options(4, "cpu"))(state, rest, x)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(fast), strict=True):
        scale = max(float(np.abs(a).max()), 1e-3)
        np.testing.assert_allclose(np.asarray(b) / scale, np.asarray(a) / scale, atol=2e-4)


def test_options_are_those_of_the_devices_that_are_compiled_for():
    assert compiler_options(4, "tpu") == compiler_options(4, "gpu") == {}
    assert compiler_options(5, "cpu") == {}
