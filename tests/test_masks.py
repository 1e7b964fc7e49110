"""Masks: which shapes and values are taken, and how far they reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import batch_statistics, stein_batch_norm
from tests.front_ends import FEATURES, IMAGES, RUNNING, X


class TestMasks:
    @pytest.mark.parametrize(
        ("shape", "hint"),
        [((2, 3, 5), r"mask\[..., None\]"), ((2,), r"mask.reshape\(2, 1, 1, 1\)")],
    )
    def test_missing_axes_are_named(self, shape, hint):
        with pytest.raises(ValueError, match=f"as in NumPy.*{hint}"):
            stein_batch_norm(IMAGES, mask=np.ones(shape, bool))

    def test_as_many_as_channels_are_channels(self):
        """Also where the batch has as many examples (docs/layer.md)."""
        mask = np.array([True, False, True, True])
        np.testing.assert_array_equal(batch_statistics(X[:4], mask=mask).count, [4, 0, 4, 4])
        assert batch_statistics(X[:4], mask=mask[:, None]).count == 3

    def test_numbers_count_where_they_are_not_zero(self):
        mask = np.array([0.5, 0.0, 2.0, 1.0], np.float32)[:, None]
        assert stein_batch_norm(X[:4], mask=mask).batch.count == 3

    def test_lists(self):
        assert stein_batch_norm(X[:3], mask=[[True], [False], [True]]).batch.count == 2

    def test_nothing_and_no_running_statistics(self):
        used = stein_batch_norm(X[:4], mask=np.zeros((4, 1), bool)).used
        np.testing.assert_array_equal(used.mean, 0)
        np.testing.assert_array_equal(used.variance, 1)


@pytest.mark.parametrize("outside", [np.nan, np.inf])
def test_what_lies_outside_a_mask_reaches_gradients_by_the_output(outside):
    """As the layers' documentation of ``mask`` says, with the remedy."""
    mask = (np.arange(8) < 7)[:, None]
    x = jnp.asarray(np.where(mask, X[:8], outside))

    def loss(x, scale):
        y = stein_batch_norm(x, scale, None, RUNNING, mask=mask).y
        return jnp.sum(jnp.where(mask, y, 0) ** 3)

    def gradients(x):
        return jax.grad(loss, (0, 1))(x, jnp.ones(FEATURES))

    assert np.isfinite(loss(x, jnp.ones(FEATURES)))
    assert not any(np.isfinite(g).all() for g in gradients(x))
    assert all(np.isfinite(g).all() for g in gradients(jnp.where(mask, x, 0)))
