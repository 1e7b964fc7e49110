"""Twenty-five images of which a linear model has three wrong from the start."""

import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import AttackSettings

COUNT, CLASSES, RADII = 25, 4, (0.02, 0.1)
RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(12, CLASSES)).astype(np.float32)
X = RNG.uniform(size=(COUNT, 2, 2, 3)).astype(np.float32)
CENTRED = X.reshape(COUNT, -1) - np.float32(0.5)
Y = np.argmax(CENTRED @ WEIGHTS, axis=1).astype(np.int32)
Y[:3] = (Y[:3] + 1) % CLASSES  # three are wrong from the start
PGD = AttackSettings("pgd", "pgd", steps=3, random_start=True)


def linear(x):
    return (x.reshape(x.shape[0], -1) - 0.5) @ jnp.asarray(WEIGHTS)


def batches(size=10):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, COUNT, size)]
