"""The reference that a GPU samples, on the CPU: the branch for GPUs is taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import batch_statistics
from tests import reference


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, cuda, **_: cuda(*a))
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("as_on_a_gpu")
class TestMasked:
    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("noise", [False, True])
    def test_sequences_that_are_shorter_than_half_the_padding(self, side, noise):
        rng = np.random.default_rng(0)
        length, place = rng.integers(3, 15, (16, 1)), np.arange(32)
        mask = (place < length if side == "right" else place >= 32 - length)[..., None]
        for offset in (0.0, 1e3, 1e4):
            x = (offset + rng.normal(size=(16, 32, 5))).astype(np.float32)
            self.assert_right(np.where(mask, x, 0), mask, noise)

    @pytest.mark.parametrize("channels_too", [False, True])
    def test_images_that_are_padded(self, channels_too):
        rng = np.random.default_rng(0)
        x = (1e3 + rng.normal(size=(8, 9, 7, 5))).astype(np.float32)
        mask = np.zeros((8, 9, 7, 1), bool)
        mask[:, :4, :3] = True
        if channels_too:
            mask = mask & (rng.random((8, 9, 7, 5)) < 0.9)
        self.assert_right(x, mask, False)

    def test_a_mask_of_examples(self):
        x = (1e3 + np.random.default_rng(0).normal(size=(8, 9, 7, 5))).astype(np.float32)
        self.assert_right(x, np.arange(8).reshape(8, 1, 1, 1) % 2 > 0, False)

    @staticmethod
    def assert_right(x, mask, noise):
        got = jax.jit(lambda x, mask: batch_statistics(x, mask=mask, noise=noise))(x, mask)
        want = reference.batch_statistics(x, mask=mask)
        np.testing.assert_allclose(got.mean, want.mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got.variance, want.variance, rtol=1e-5)
        if noise:
            np.testing.assert_allclose(got.mean_noise, want.mean_noise, rtol=1e-3)
            np.testing.assert_allclose(got.variance_noise, want.variance_noise, rtol=1e-3)


@pytest.mark.usefixtures("as_on_a_gpu")
class TestAsElsewhere:
    def test_without_a_mask_the_running_mean_has_no_say(self):
        x = (1e4 + np.random.default_rng(0).normal(size=(8, 6, 6, 5))).astype(np.float32)
        want = reference.batch_statistics(x)
        for far in (0.0, 1e8, np.nan):
            got = batch_statistics(x, reference=jnp.full(5, far))
            np.testing.assert_allclose(got.variance, want.variance, rtol=1e-5)

    def test_noise_of_large_values(self):
        x = (1e12 * np.random.default_rng(0).normal(size=(8, 6, 6, 5))).astype(np.float32)
        want = reference.batch_statistics(x)
        got = batch_statistics(x, noise=True)
        relative = want.variance_noise / want.variance**2
        np.testing.assert_allclose(got.relative_variance_noise, relative, rtol=1e-4)

    @pytest.mark.parametrize("place", [(32, 32, 16), (16, 16, 8)])
    @pytest.mark.parametrize("shape", [(64, 64, 32), (256, 512, 1), (16, 32, 1)])
    def test_one_volume_in_which_a_pixel_that_is_sampled_is_an_outlier(self, shape, place):
        """One centre at 1e4 made the variance 0."""
        x = np.random.default_rng(0).normal(size=(1, *shape, 1)).astype(np.float32)
        x[(0, *(s * p // q for s, p, q in zip(shape, place, (64, 64, 32), strict=True)))] = 1e4
        want = reference.batch_statistics(x)
        # Squares of 1 are added to one of 1e8: the XLA of JAX 0.8 adds them one by one, and is up
        # to 2e-4 off in two passes too.
        tolerance = 1e-4 if jax.__version_info__ >= (0, 9) else 1e-3
        for fast in (True, False):
            got = batch_statistics(x, use_fast_variance=fast)
            np.testing.assert_allclose(got.variance, want.variance, rtol=tolerance)

    def test_an_outlier_at_the_centre_of_a_small_image(self):
        x = np.random.default_rng(0).normal(size=(1, 15, 17, 1)).astype(np.float32)
        x[:, 7, 8] = 1e6
        want = reference.batch_statistics(x)
        np.testing.assert_allclose(batch_statistics(x).variance, want.variance, rtol=1e-3)
