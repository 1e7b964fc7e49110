"""Small problems that the tests of the attacks share."""

import jax
import jax.numpy as jnp
import numpy as np

EXAMPLES, SIDE, CLASSES = 6, 5, 3
# Of a generator that compiles fast; the default one is that of whoever passes no key.
KEY = jax.random.key(7, impl="rbg")


def draws(*shape):
    # NumPy's, because JAX's default generator compiles for seconds per shape on a CPU, and put on
    # the device, because jnp.asarray compiles a program for every shape.
    return jax.device_put(np.random.default_rng(3).uniform(size=shape).astype(np.float32))


def linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


def problem(scale=1.0, low=0.0, high=1.0, seed=0):
    """A linear model, inputs away from nothing in particular, and labels it gets right."""
    generator = np.random.default_rng(seed)
    weights = scale * generator.normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
    x = generator.uniform(low, high, size=(EXAMPLES, SIDE, SIDE, 1)).astype(np.float32)
    y = np.argmax(x.reshape(EXAMPLES, -1) @ weights, axis=1).astype(np.int32)
    model = jax.tree_util.Partial(linear, jax.device_put(weights))
    return model, weights.astype(np.float64), jax.device_put(x), jax.device_put(y)


@jax.jit
def companions(x):
    """Logits that depend on the other examples of the batch, as under batch statistics."""
    flat = x.reshape(x.shape[0], -1)
    centred = flat - 0.9 * jnp.mean(flat, axis=0, keepdims=True) * 1.5
    return jnp.stack([centred[:, 0] ** 2 + centred[:, 1], centred[:, 1] ** 2 - centred[:, 2]], 1)
