"""The front ends and small batches, for tests of what they take and what they refuse."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from steinnorm import RunningStatistics, linen
from steinnorm import nnx as stein_nnx

FEATURES = 4
X = np.random.default_rng(0).normal(size=(128, FEATURES)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(2, 3, 5, FEATURES)).astype(np.float32)
RUNNING = RunningStatistics(jnp.zeros(FEATURES), jnp.ones(FEATURES))
COMPLEX = jnp.asarray(X[:8] + 1j * X[8:16])
MEAN = (X[:8] + 1j * X[8:16]).mean(0)
INFERENCE = {"use_running_average": True}


def nnx_layer(**options):
    return stein_nnx.SteinBatchNorm(FEATURES, rngs=nnx.Rngs(0), **options)


def linen_layer(**options):
    return linen.SteinBatchNorm(use_running_average=False, **options)
