"""The one call, quick and without figures, on a dozen images that are all right."""

import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import evaluate_robustness
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.robustness import call

SMOKE = CheckSettings(steps=2, restarts=2, square_queries=4, directions=1, difference_steps=(1e-3,))
QUIET = {"checks": False, "progress": False}
RNG = np.random.default_rng(8)
WEIGHTS = jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32)
X = RNG.uniform(size=(12, 2, 2, 3)).astype(np.float32)
Y = np.asarray(jnp.argmax(X.reshape(12, -1) @ WEIGHTS, axis=1))
PIXEL_WEIGHTS = WEIGHTS[:3]


def linear(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS


def per_pixel(x):
    return (x - 0.5) @ PIXEL_WEIGHTS


def measure(out=None, model=linear, x=X, y=Y, *, figures=False, **changes):
    """FGSM in two batches, without checks, or what is changed of it."""
    settings = {"epsilons": 0.05, "attacks": "fgsm", "batch_size": 6, **QUIET, **changes}
    with pytest.MonkeyPatch.context() as patch:
        if not figures:  # most of the time would be theirs
            patch.setattr(call, "write_figures", lambda *_: None)
        return evaluate_robustness(model, x, y, out=out, **settings)
