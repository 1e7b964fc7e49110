"""What the tests of calibrating share: batches, a layer, and how calibrations are compared."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from steinnorm._calibration import totals_of
from steinnorm.nnx import SteinBatchNorm

CHANNELS = 4
SIZE = (3, 2, CHANNELS)


def population(seed, examples, size):
    """Examples with means and deviations of their own; channels that differ in everything."""
    rng = np.random.default_rng(seed)
    per_channel = np.random.default_rng(99)
    level, across, within = (per_channel.uniform(0.5, 2, size[-1]) for _ in range(3))
    shape = (examples,) + (1,) * (len(size) - 1) + (size[-1],)
    gain = np.exp(0.3 * rng.normal(size=shape))
    noise = rng.normal(size=(examples, *size))
    return (level + across * rng.normal(size=shape) + within * gain * noise).astype(np.float32)


X = population(0, 120, SIZE)
ATTRIBUTES = ("calibrated_mean", "calibrated_var", "mean_spread", "var_spread")
NAMES = ("mean", "var", "mean_spread", "var_spread")
HALVES = (60, 60)  # sizes of batches for which one program is compiled


def batches(x=X, sizes=(59, 1, 59, 1)):
    """Batches of two sizes, for each of which a model is compiled."""
    return np.split(x, np.cumsum(sizes)[:-1])


def assert_calibration(found, want, tolerance=2e-5):
    for name, a, b in zip(NAMES, found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def of_layer(layer):
    return [getattr(layer, name)[...] for name in ATTRIBUTES]


def of_collection(held):
    return [held[name] for name in NAMES]


def norm(**options):
    """A layer whose running statistics and parameters are not as they were made."""
    layer = SteinBatchNorm(CHANNELS, rngs=nnx.Rngs(0), **options)
    layer.mean[...] = jnp.arange(4.0)
    layer.var[...] = jnp.array([1.0, 2.0, 0.5, 3.0])
    layer.scale[...] = jnp.array([1.0, 2.0, -0.5, 1.0])
    return layer


@jax.jit
def counted(x, mask=None):
    """What one call of a layer counts."""
    return totals_of(
        x,
        axis=-1,
        mask=mask,
        axis_name=None,
        axis_index_groups=None,
        use_fast_variance=True,
        reference=jnp.zeros(x.shape[-1]),
        epsilon=1e-5,
    )
