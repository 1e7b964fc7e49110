"""Where a running mean is far from the batch: it decides what is read again, not the result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from steinnorm import Calibration, RunningStatistics, batch_statistics, stein_batch_norm
from steinnorm import nnx as stein_nnx
from steinnorm import shrinkage as rules
from tests import reference
from tests.calibrations import X, of_layer

FAR = (1e2, 1e4, 1e6, 1e8, 9e11, 9e14, 1e30, np.nan)
SHAPE = (16, 4, 4, 5)


def draw(deviation=1.0, mean=0.0, shape=SHAPE):
    rng = np.random.default_rng(0)
    by_example = rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1))
    return (mean + deviation * (rng.normal(size=shape) + by_example)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("noise", "use_fast_variance", "axis_name"))
def statistics(x, about, mask=None, epsilon=0.0, **options):
    return batch_statistics(x, mask=mask, reference=about, epsilon=epsilon, **options)


def assert_right(got, x, mask=None, tolerance=2e-6):
    """Means to so many standard deviations, all else relative."""
    want = reference.batch_statistics(x, mask=mask)
    error = np.abs(np.asarray(got.mean, np.float64) - want.mean) / np.sqrt(want.variance)
    assert error.max() <= tolerance
    np.testing.assert_allclose(got.variance, want.variance, rtol=tolerance)
    if got.mean_noise is not None:
        np.testing.assert_allclose(got.mean_noise, want.mean_noise, rtol=5 * tolerance)
        np.testing.assert_allclose(got.variance_noise, want.variance_noise, rtol=5 * tolerance)


class TestStatistics:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("noise", [False, True])
    def test_any_reference_will_do(self, noise, masked):
        x = draw()
        mask = np.random.default_rng(1).random((16, 4, 4, 1)) < 0.7 if masked else None
        for far in FAR:
            # One channel's reference is near, and one that is a little far needs the squares alone.
            about = np.full(5, far, np.float32) * [1, -1, 0, 0, 1] + np.array([0, 0, 0, 5, 0])
            got = statistics(x, about.astype(np.float32), mask, noise=noise)
            assert_right(got, x, mask)

    @pytest.mark.parametrize("deviation", [1e-10, 1e-3, 1e5])
    def test_values_of_any_size(self, deviation):
        x = draw(deviation)
        assert_right(statistics(x, jnp.full(5, 1.0)), x)

    def test_a_mean_of_its_own_beside_a_far_reference(self):
        """The mean is known to its last digits, and no better."""
        x = draw(mean=1e3)
        assert_right(statistics(x, jnp.full(5, -1e8)), x, tolerance=1e-4)

    @pytest.mark.parametrize("far", [1e2, 1e8])
    def test_a_constant_channel_has_no_variance_without_an_epsilon_too(self, far):
        x = draw()
        x[..., 3] = 0.7
        got = statistics(x, jnp.full(5, far))
        assert got.mean[3] == np.float32(0.7)
        assert got.variance[3] == 0

    def test_complex_values(self):
        x = (draw() + 1j * draw(2.0)[::-1]).astype(np.complex64)
        got = statistics(x, jnp.full(5, 1e6 - 1e7j, jnp.complex64))
        want = x.astype(np.complex128)
        np.testing.assert_allclose(got.mean, want.mean((0, 1, 2)), atol=2e-6)
        np.testing.assert_allclose(got.variance, want.var((0, 1, 2)), rtol=2e-6)

    @pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
    @pytest.mark.parametrize("noise", [False, True])
    @pytest.mark.parametrize("how", ["jit", "shard_map", "pmap"])
    def test_several_devices(self, mesh, how, noise):
        x, about = draw(), jnp.full(5, 1e6)
        spec = jax.sharding.PartitionSpec("devices")
        run = functools.partial(statistics, about=about, noise=noise)
        if how == "jit":
            got = run(jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)))
        elif how == "shard_map":
            mapped = functools.partial(run, axis_name="devices")
            whole = jax.sharding.PartitionSpec()
            got = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=whole))(x)
        else:
            mapped = functools.partial(run, axis_name="devices")
            parts = jax.pmap(mapped, axis_name="devices")(x.reshape(4, 4, *SHAPE[1:]))
            got = jax.tree.map(lambda a: a[-1], parts)
        assert_right(got, x)

    def test_groups_of_devices_of_which_one_is_far(self):
        """All read as often as the one that must read most."""
        x = draw()
        x[8:] += 1e6
        got = jax.pmap(
            lambda x: batch_statistics(
                x,
                axis_name="devices",
                axis_index_groups=[[0, 1], [2, 3]],
                reference=jnp.full(5, 1e6),
            ),
            axis_name="devices",
        )(x.reshape(4, 4, *SHAPE[1:]))
        assert_right(jax.tree.map(lambda a: a[0], got), x[:8])
        assert_right(jax.tree.map(lambda a: a[3], got), x[8:], tolerance=0.05)


class TestLayer:
    @pytest.mark.parametrize("name", rules.NAMES)
    def test_every_rule(self, name):
        x = draw(shape=(64, 16))
        run = jax.jit(functools.partial(stein_batch_norm, shrinkage=name, momentum=0.0))
        # Beyond, m + f (x - m) of the reference has not the digits either, in float64.
        for far in (1e2, 1e4, 1e6, 1e8, 1e9 if name == "toward_running" else 1e12):
            running = RunningStatistics(jnp.full(16, far), jnp.ones(16))
            result = run(x, running=running)
            want, *recorded = reference.layer(x, *running, shrinkage=name, momentum=0.0)
            np.testing.assert_allclose(result.y, want, rtol=0, atol=3e-6)
            for got, value in zip(result.running, recorded, strict=True):
                np.testing.assert_allclose(got, value, rtol=3e-6, atol=1e-6)

    @pytest.mark.parametrize("deviation", [1e-6, 1e-4, 1e-3, 1e-2, 1.0])
    def test_channels_beside_epsilon(self, deviation):
        """What is not summed again must not matter beside an epsilon of 1e-5."""
        x = draw(deviation, shape=(64, 5))
        run = jax.jit(functools.partial(stein_batch_norm, shrinkage="none"))
        want = reference.normalise(x, *reference.batch_statistics(x)[:2])
        for far in (0.01, 0.03, 0.1, 0.3, 1.9 * deviation):
            y = run(x, running=RunningStatistics(jnp.full(5, far), jnp.ones(5))).y
            np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)

    def test_after_one_bad_batch(self):
        """A thousand steps after a spike of 1e9 the running mean is still 4e2."""
        layer = stein_nnx.SteinBatchNorm(5, shrinkage="none", rngs=nnx.Rngs(0))
        run = nnx.jit(lambda layer, x: layer(x))
        run(layer, draw() + np.float32(1e9))
        x = draw()
        want = reference.normalise(x, *reference.batch_statistics(x)[:2])
        for mean in (None, 3.7e6, 6.6e4, 4.3e2):
            if mean is not None:
                layer.mean[...] = jnp.full(5, mean)
            np.testing.assert_allclose(run(layer, x), want, rtol=0, atol=2e-6)

    def test_a_calibration_far_from_the_batch(self):
        x = draw(shape=(64, 16))
        known = reference.Calibration(*np.broadcast_to([[1e6], [1.0], [1.0], [2.0]], (4, 16)))
        running = RunningStatistics(jnp.full(16, 1e6), jnp.ones(16))
        y = stein_batch_norm(
            x,
            running=running,
            use_running_average=True,
            test_statistics="calibrated",
            calibration=Calibration(*(jnp.asarray(a, jnp.float32) for a in known)),
        ).y
        want, *_ = reference.calibrated(x, known, *running, epsilon=1e-5)
        np.testing.assert_allclose(y, want, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:a calibration from:UserWarning")
def test_calibrating_with_a_running_mean_that_is_far():
    want = reference.calibration(X)
    for far in (1e4, 1e8):
        layer = stein_nnx.SteinBatchNorm(4, rngs=nnx.Rngs(0))
        layer.mean[...] = jnp.full(4, far)
        found = of_layer(stein_nnx.calibrate(layer, [X[:60], X[60:]]))
        for got, value in zip(found, want, strict=True):
            np.testing.assert_allclose(got, value, rtol=5e-6)
