"""Test statistics judged by a calibration: the rule, against its equations in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steinnorm import stein_batch_norm
from steinnorm.shrinkage_factors import shrinkage_factors
from tests import reference
from tests.calibrated_layers import (
    CHANNELS,
    EPSILON,
    KINDS,
    KNOWN,
    RUNNING,
    SIZE,
    assert_is_reference,
    layer,
    library,
    population,
    shifted,
)


class TestEquations:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("examples", [1, 2, 16])
    def test_agrees_with_the_reference(self, kind, examples):
        for gain, offset in ((1.0, 0.0), (1.6, 1.0), (0.3, -0.5)):
            assert_is_reference(shifted(examples, gain, offset), kind)

    @given(
        gain=st.floats(0.05, 5),
        offset=st.floats(-5, 5),
        seed=st.integers(0, 1000),
        kind=st.sampled_from(KINDS),
    )
    def test_agrees_with_the_reference_whatever_happens_to_the_batch(
        self, gain, offset, seed, kind
    ):
        got = assert_is_reference(shifted(4, gain, offset, seed), kind, tolerance=1e-4)
        assert all(0 <= factor <= 1 for factor in got.factors)

    def test_without_epsilon_it_is_what_the_two_equations_say(self):
        """Written down once more, as plainly as they stand, for a batch that both move."""
        x = shifted(5).astype(np.float64)
        m, v, size = x.mean((0, 1, 2)), x.var((0, 1, 2)), 5
        m0, v0, rho, kappa = KNOWN
        k, noise = 1 + 1.5 / size, (CHANNELS - 2) / size
        corrected = v / (1 - rho / size)
        z, change = (m - m0) / np.sqrt(corrected), np.log(corrected / v0)
        a = max(0, 1 - k * noise * rho.mean() / np.sum(z**2))
        b = max(0, 1 - k * noise * kappa.mean() / np.sum(change**2))
        assert 0.1 < a < 0.99
        assert 0.1 < b < 0.99
        mean, variance = m0 + a * (m - m0), v0 * (corrected / v0) ** b
        want = ((x - mean) * np.sqrt(v0 / variance) + m0 - RUNNING[0]) / np.sqrt(RUNNING[1])
        got = stein_batch_norm(
            x.astype(np.float32),
            use_running_average=True,
            test_statistics="calibrated",
            epsilon=0.0,
            **library(),
        )
        np.testing.assert_allclose(got.y, want, rtol=3e-5, atol=3e-5)
        np.testing.assert_allclose(got.factors, (a, b), rtol=1e-4)
        own = (x - np.asarray(got.used.mean)) / np.sqrt(np.asarray(got.used.variance))
        np.testing.assert_allclose(got.y, own, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_noise_that_explains_everything_leaves_the_running_statistics(self, kind):
        noisy = KNOWN._replace(
            mean_spread=KNOWN.mean_spread / 2, variance_spread=KNOWN.variance_spread * 1e6
        )
        x = population(2, 3)
        got = layer(x, kind, values=library(noisy))
        np.testing.assert_array_equal(got.factors[1], 0)
        if got.factors[0] == 0:
            want = reference.normalise(x, *RUNNING, epsilon=EPSILON)
            np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)

    def test_one_clean_example_is_normalised_with_the_running_statistics(self):
        x = np.broadcast_to(KNOWN.mean, (1, *SIZE)) + np.float32(0)
        swing = np.where(np.arange(4) % 2, 1, -1).reshape(1, 4, 1, 1)
        x = (x + swing * np.sqrt(KNOWN.variance * (1 - KNOWN.mean_spread))).astype(np.float32)
        got = layer(x)  # mean m0 and corrected variance v0: nothing has moved
        np.testing.assert_allclose(got.factors, 0, atol=1e-6)
        want = reference.normalise(x, *RUNNING, epsilon=EPSILON)
        np.testing.assert_allclose(got.y, want, rtol=1e-4, atol=1e-4)

    def test_many_examples_that_moved_are_believed_and_aligned(self):
        """The output is then what the clean inputs' would be, not of mean 0 and deviation 1."""
        clean, moved = population(3, 400), population(3, 400) * 3 + 5
        want = reference.normalise(clean, *RUNNING, epsilon=EPSILON)
        got = layer(moved.astype(np.float32))
        assert min(got.factors) > 0.99
        np.testing.assert_allclose(got.y.mean((0, 1, 2)), want.mean((0, 1, 2)), atol=0.1)
        np.testing.assert_allclose(got.y.std((0, 1, 2)), want.std((0, 1, 2)), rtol=0.1)

    def test_scale_and_bias(self):
        x = shifted(3)
        scale, bias = jnp.arange(1.0, 9.0), jnp.arange(8.0) - 3
        got = stein_batch_norm(
            x, scale, bias, use_running_average=True, test_statistics="calibrated", **library()
        )
        want = np.asarray(layer(x).y) * np.asarray(scale) + np.asarray(bias)
        np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("axis", [1, (1, 3)])
    def test_feature_axes(self, axis):
        x = np.random.default_rng(0).normal(1, 2, (40, 3, 5, 4)).astype(np.float32)
        known = reference.calibration(x, axis=axis)
        values = library(known, (known.mean, known.variance))
        got = layer(x[:4] * 2, values=values, axis=axis)
        y, *factors = reference.calibrated(
            x[:4] * 2, known, known.mean, known.variance, epsilon=EPSILON, axis=axis
        )
        np.testing.assert_allclose(got.y, y, rtol=3e-5, atol=3e-5)
        np.testing.assert_allclose(got.factors, factors, rtol=1e-3)

    def test_batch_and_running_statistics_are_reported_as_they_are(self):
        x = shifted(4)
        got = layer(x)
        np.testing.assert_allclose(got.batch.mean, x.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(got.running.mean, np.float32(RUNNING[0]))
        assert got.batch.examples == 4
        assert got.shrinkage is None
        np.testing.assert_array_equal(shrinkage_factors(got), got.factors)


class TestStreams:
    def test_examples_that_are_alike_are_believed_less(self):
        """Ten copies of one example: how it differs from others is its own, and no shift."""
        for seed in range(4):
            alike = np.repeat(population(seed, 1), 10, axis=0)
            plain, careful = (assert_is_reference(alike, kind).factors for kind in KINDS)
            np.testing.assert_array_less(np.array(careful), np.array(plain) - 0.1)

    def test_one_example_is_the_same_in_both(self):
        x = shifted(1)
        np.testing.assert_array_equal(layer(x, KINDS[1]).y, layer(x).y)

    def test_examples_that_differ_enough_are_the_same_in_both(self):
        x = shifted(64, gain=1.0)
        factors = np.array([layer(x, kind).factors for kind in KINDS])
        np.testing.assert_allclose(factors[1], factors[0], atol=0.25)


class TestChannelsThatCannotBeJudged:
    def test_dense_layers_with_one_example(self):
        """One value a channel shows no variance, so the scale is that of the running statistics."""
        clean = population(5, 300, (CHANNELS,))
        known = reference.calibration(clean)
        np.testing.assert_allclose(known.mean_spread, 1, rtol=1e-6)
        for offset in (0, 3):
            got = assert_is_reference(clean[:1] + np.float32(offset), known=known)
            assert got.factors[1] == 0
        assert got.factors[0] > 0.5
        assert_is_reference(clean[:2] * 2, known=known)
        first, second = (layer(x, values=library(known)).y for x in (clean[:1], clean[1:2]))
        assert np.any(np.abs(first - second) > 0.1)  # the answer still depends on the input

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_channel_that_was_constant_uses_the_running_statistics(self, kind):
        def zero(a):
            return np.where(np.arange(CHANNELS) == 2, 0, a)

        known = KNOWN._replace(
            variance=zero(KNOWN.variance),
            mean_spread=zero(KNOWN.mean_spread),
            variance_spread=zero(KNOWN.variance_spread),
        )
        x = shifted(4)
        got = assert_is_reference(x, kind, known=known)
        running = reference.normalise(x, *RUNNING, epsilon=EPSILON)
        np.testing.assert_allclose(got.y[..., 2], running[..., 2], rtol=1e-5, atol=1e-5)
        x[..., 2] = 1e4  # nor does it decide for the others
        others = np.arange(CHANNELS) != 2
        again = layer(x, kind, values=library(known))
        np.testing.assert_allclose(again.y[..., others], got.y[..., others], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_channel_that_is_constant_in_the_batch_keeps_its_scale(self, kind):
        x = shifted(4)
        x[..., 2] = 1.5
        got = assert_is_reference(x, kind)
        scale = np.sqrt(got.used.variance[2] / np.float32(RUNNING[1][2]))
        np.testing.assert_allclose(scale, 1, rtol=1e-5)

    def test_next_to_no_variance_is_not_magnified_without_bound(self):
        x = shifted(4)
        x[..., 2] = 1.5 + 1e-6 * x[..., 2]
        got = layer(x)
        most = np.sqrt((KNOWN.variance[2] + EPSILON) / EPSILON / RUNNING[1][2])
        assert np.ptp(got.y[..., 2]) <= most * np.ptp(x[..., 2]) * 1.01

    @pytest.mark.parametrize("channels", [1, 2])
    def test_one_or_two_channels_have_to_move_by_more_than_their_noise(self, channels):
        known = reference.Calibration(*(a[:channels] for a in KNOWN))
        values = library(known, tuple(a[:channels] for a in RUNNING))
        near = (known.mean + 0.1 * np.sqrt(known.variance * known.mean_spread)).astype(np.float32)
        swing = np.where(np.arange(4) % 2, 1, -1).reshape(1, 4, 1) * np.sqrt(known.variance)
        got = [
            layer((swing + near + offset).astype(np.float32), values=values).factors[0]
            for offset in (0, 3, 30)
        ]
        assert got[0] == 0
        assert got[2] > 0.9
        assert got[0] <= got[1] <= got[2] < 1

    @pytest.mark.parametrize("shape", [(0, *SIZE), (3, 0, 2, 8)])
    def test_an_empty_batch(self, shape):
        for kind in KINDS:
            got = layer(np.zeros(shape, np.float32), kind)
            assert got.y.shape == shape
            np.testing.assert_array_equal(got.factors, 0)
            np.testing.assert_array_equal(got.used.mean, np.float32(RUNNING[0]))

    def test_nothing_is_known(self):
        """A calibration of a dead layer: inference with running statistics."""
        dead = KNOWN._replace(variance=np.zeros(CHANNELS))
        x = shifted(4)
        got = layer(x, values=library(dead))
        want = reference.normalise(x, *RUNNING, epsilon=EPSILON)
        np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)


class TestMasks:
    @pytest.mark.parametrize("kind", KINDS)
    def test_masked_examples_are_as_if_they_were_not_there(self, kind):
        x = shifted(8)
        there = np.arange(8) % 3 > 0
        x[~there] = np.nan
        got = layer(x, kind, there.reshape(8, 1, 1, 1))
        alone = layer(x[there], kind)
        np.testing.assert_allclose(got.y[there], alone.y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.factors, alone.factors, rtol=1e-4)
        assert int(got.batch.examples) == there.sum()

    @pytest.mark.parametrize("kind", KINDS)
    def test_masks_of_single_values(self, kind):
        mask = np.random.default_rng(0).random((4, *SIZE)) < 0.7
        mask[1:, ..., 3] = False  # one example of this channel
        mask[..., 5] = False  # none of this one
        mask[:2, 1:3] = False
        x = np.where(mask, shifted(4), np.nan)
        got = layer(x, kind, mask)
        np.testing.assert_array_equal(got.batch.examples, [4, 4, 4, 1, 4, 0, 4, 4])
        y, a, b = reference.calibrated(
            np.where(mask, x, 0), KNOWN, *RUNNING, epsilon=EPSILON, mask=mask
        )
        if kind == KINDS[0]:
            np.testing.assert_allclose(got.factors, (a, b), rtol=1e-3)
            np.testing.assert_allclose(got.y[mask], y[mask], rtol=3e-5, atol=3e-5)
        assert np.all(np.isfinite(got.y[mask]))

    def test_one_mask_for_all_examples(self):
        x, mask = shifted(4), (np.arange(4) < 3).reshape(4, 1, 1)
        got = layer(x, mask=mask)
        assert got.batch.examples == 4
        alone = layer(x[:, :3])
        np.testing.assert_allclose(got.y[:, :3], alone.y, rtol=1e-5, atol=1e-5)

    def test_nothing_valid_is_inference_with_running_statistics(self):
        x = shifted(4)
        got = layer(x, mask=np.zeros((4, 1, 1, 1), bool))
        want = reference.normalise(x, *RUNNING, epsilon=EPSILON)
        np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)
