"""Small trees of arrays for tests of checkpoints, and the marks of these tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.checkpoints import Progress

# Reading a damaged checkpoint, Orbax drops coroutines that have failed.
DAMAGE_WARNS_LATER = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("dropped_here"),
]


def tree(step, rows=2):
    return {
        "model": {"w": jnp.arange(3.0 * rows).reshape(rows, 3) + step, "n": jnp.int32(step)},
        "rest": [jnp.full((2,), step, jnp.bfloat16), jnp.array([step % 2 == 0])],
    }


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def save_step(checkpoints, step, score=None, best=(None, 0)):
    progress = Progress(step, score=score, best_score=best[0], best_step=best[1])
    checkpoints.save(tree(step), progress)
    return progress
