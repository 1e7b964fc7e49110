"""Values of any size: what a float holds of the statistics must not be lost in what leads there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import (
    BatchStatistics,
    Calibration,
    RunningStatistics,
    batch_statistics,
    stein_batch_norm,
)
from steinnorm.rules import TowardRunningMean, TowardRunningVariance
from steinnorm.statistics import Moments
from tests import reference

SHAPE = (8, 6, 6, 4)
# Squares of the examples' sums of squares leave float32 above 1e9 and below 1e-9.
SIZES = (1e-15, 1e-12, 1e-9, 1e-3, 1.0, 1e3, 1e8, 1e10, 1e15, 1e17)


def draw(size=1.0):
    rng = np.random.default_rng(0)
    by_example = np.exp(0.5 * rng.normal(size=(8, 1, 1, 4)))
    x = size * (by_example * rng.normal(size=SHAPE) + rng.normal(size=(8, 1, 1, 4)))
    return x.astype(np.float32)


def running(size):
    """A little off the batch's, so that they are believed in part."""
    x = draw().astype(np.float64)
    mean, variance = x.mean((0, 1, 2)) + 0.2, x.var((0, 1, 2)) * np.array([1.3, 0.8, 1.2, 0.9])
    return mean * size, variance * size**2


@functools.partial(jax.jit, static_argnames=("two_passes", "masked", "axis_name"))
def statistics(x, about=None, two_passes=False, masked=False, axis_name=None):
    mask = np.arange(6) < 4 if masked else None
    return batch_statistics(
        x,
        noise=True,
        reference=about,
        use_fast_variance=not two_passes,
        mask=None if mask is None else mask[:, None],
        axis_name=axis_name,
    )


class TestStatistics:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("about", [0.0, 0.3, 1e6])
    def test_noise(self, masked, about):
        for size in SIZES:
            x = draw(size)
            got = statistics(x, jnp.full(4, about * size), masked=masked)
            self.assert_right(got, x, masked)

    def test_noise_of_large_values_in_two_passes(self):
        for size in SIZES[3:]:
            self.assert_right(statistics(draw(size), two_passes=True), draw(size))

    @pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
    def test_noise_in_shard_map(self, mesh):
        spec, whole = (jax.sharding.PartitionSpec(*n) for n in (["devices"], []))
        run = functools.partial(statistics, axis_name="devices")
        mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=whole))
        for size in (1e-12, 1e12):
            self.assert_right(mapped(draw(size)), draw(size))

    @staticmethod
    def assert_right(got, x, masked=False):
        mask = (np.arange(6) < 4)[:, None] if masked else None
        want = reference.batch_statistics(x, mask=mask)
        np.testing.assert_allclose(got.variance, want.variance, rtol=1e-5)
        np.testing.assert_allclose(got.mean_noise, want.mean_noise, rtol=1e-4)
        relative = want.variance_noise / want.variance**2
        np.testing.assert_allclose(got.relative_variance_noise, relative, rtol=1e-4)
        if want.variance_noise.min() > 1e-35 and want.variance_noise.max() < 1e38:
            np.testing.assert_allclose(got.variance_noise, want.variance_noise, rtol=1e-4)


def program(**options):
    def run(x, running, calibration):
        given = {} if calibration is None else {"calibration": calibration}

        def total(x):
            result = stein_batch_norm(x, running=running, epsilon=0.0, **options, **given)
            weights = np.arange(x.size, dtype=np.float32).reshape(x.shape) % 7
            return jnp.sum(jnp.tanh(result.y) * weights), result

        gradient, result = jax.grad(total, has_aux=True)(x)
        return result.y, result.used, gradient

    return jax.jit(run)


class TestLayer:
    @pytest.mark.parametrize(
        "options",
        [
            {"shrinkage": "toward_running"},
            {"shrinkage": "none", "use_running_average": True, "test_statistics": "shrunk"},
            {"shrinkage": "stein", "use_running_average": True, "test_statistics": "shrunk"},
        ],
        ids=str,
    )
    def test_rules_that_read_the_noise(self, options):
        run = program(**options)
        want_gradient = None
        for size in (1.0, *SIZES):
            x, (mean, variance) = draw(size), running(size)
            y, used, gradient = run(
                x, RunningStatistics(*(jnp.asarray(a, jnp.float32) for a in (mean, variance))), None
            )
            s = reference.batch_statistics(x)
            if options["shrinkage"] == "stein":
                means, variances = reference.shrink("stein", s)
                noise = s.variance_noise * (variances / s.variance) ** 2
                s = s._replace(mean=means, variance=variances, variance_noise=noise)
                # The means' noise in units of the batch's variances, as the rule has them.
            want = reference.toward_running(s, mean, variance)
            np.testing.assert_allclose(used.variance, want[1], rtol=2e-4)
            np.testing.assert_allclose(y, reference.normalise(x, *want, epsilon=0), atol=2e-4)
            scaled = np.asarray(gradient, np.float64) * size
            want_gradient = scaled if want_gradient is None else want_gradient
            if size > 1e-12:  # below, batch norm's own slopes by the variance leave the range too
                assert np.isfinite(gradient).all()
            if 1e-12 < size < 1e12:
                np.testing.assert_allclose(scaled, want_gradient, rtol=1e-4, atol=1e-4)

    def test_far_from_running_statistics_as_they_were_set(self):
        """A running mean of 0.1 and variance of 1: the batch is believed entirely."""
        held = RunningStatistics(jnp.full(4, 0.1), jnp.ones(4))
        run = program(shrinkage="toward_running")
        for size in (1e6, 1e8, 1e9, 1e15, 1e16):
            y, _, gradient = run(draw(size), held, None)
            np.testing.assert_allclose(np.std(y, (0, 1, 2)), 1, rtol=2e-3)
            assert np.isfinite(gradient).all()

    @pytest.mark.parametrize("kind", ["calibrated", "calibrated_streams"])
    def test_calibrated_statistics(self, kind):
        x1 = draw()
        spreads = reference.calibration(x1)
        run = program(use_running_average=True, test_statistics=kind)
        for size in (1.0, 1e-9, 1e8, 1e10, 1e15):
            x, (mean, variance) = draw(size), running(size)
            known = reference.Calibration(mean, variance, *spreads[2:])
            y, _, gradient = run(
                x,
                RunningStatistics(
                    jnp.asarray(mean, jnp.float32), jnp.asarray(variance, jnp.float32)
                ),
                Calibration(*(jnp.asarray(a, jnp.float32) for a in known)),
            )
            want, *_ = reference.calibrated(
                x, known, mean, variance, streams=kind == "calibrated_streams"
            )
            np.testing.assert_allclose(y, want, atol=2e-4)
            assert np.isfinite(gradient).all()

    @pytest.mark.parametrize("name", ["none", "stein", "toward_running"])
    def test_a_variance_that_is_no_float(self, name):
        """Nothing can be told of such a channel; Flax's layer gives zeros too."""
        held = RunningStatistics(jnp.full(4, 0.1), jnp.ones(4))
        result = stein_batch_norm(draw(4e18), running=held, shrinkage=name)
        np.testing.assert_array_equal(result.y, np.zeros(SHAPE))


def test_a_channel_whose_noise_is_no_float_takes_no_part():
    """Statistics that a caller made."""
    batch = BatchStatistics(
        mean=jnp.array([1.0, 2.0, 3.0, 4.0]),
        variance=jnp.array([1.0, 1.0, 1.0, 1e25]),
        count=jnp.float32(64),
        mean_noise=jnp.array([0.1, 0.1, 0.1, np.inf]),
        variance_noise=jnp.array([0.1, 0.1, 0.1, np.inf]),
        examples=jnp.float32(8),
    )
    held = Moments(jnp.zeros(4), jnp.full(4, 2.0))
    mean, variance = TowardRunningMean()(batch, held), TowardRunningVariance()(batch, held)
    assert mean[3] == 4
    assert variance[3] == np.float32(1e25)
    assert np.all(mean[:3] < batch.mean[:3])
    assert np.all((variance[:3] > 1) & (variance[:3] < 2))


def test_noise_that_a_caller_replaces_counts():
    changes = {"variance_noise": jnp.full(4, 3.0)}
    batch = batch_statistics(draw(1.0), noise=True)
    held = Moments(jnp.zeros(4), jnp.full(4, 20.0))
    given = batch._asdict() | {"relative_variance_noise": None} | changes
    want = TowardRunningVariance()(BatchStatistics(**given), held)
    replaced = batch._replace(**changes)
    assert type(replaced) is BatchStatistics
    np.testing.assert_array_equal(TowardRunningVariance()(replaced, held), want)
    stale = replaced._replace(relative_variance_noise=batch.relative_variance_noise)
    assert not np.allclose(TowardRunningVariance()(stale, held), want, rtol=1e-3)


def test_variances_further_apart_than_the_range_of_an_exponential():
    batch = BatchStatistics(
        mean=jnp.zeros(4),
        variance=jnp.full(4, 10.0),
        count=jnp.float32(64),
        mean_noise=jnp.full(4, 0.1),
        variance_noise=jnp.full(4, 1.0),
        examples=jnp.float32(8),
    )
    variance = TowardRunningVariance()(batch, Moments(jnp.zeros(4), jnp.zeros(4)))
    np.testing.assert_allclose(variance, 10, rtol=1e-4)


@pytest.mark.parametrize("rule", ["none", "stein", "stein_mean_only", "jsnorm", "toward_running"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_channel_that_is_not_finite_costs_no_other(rule, bad):
    """Neither the values nor the gradients of the other channels."""
    x = np.random.default_rng(0).normal(1, 2, (16, 6)).astype(np.float32)
    x[2, 3] = bad
    good = np.array([0, 1, 2, 4, 5])
    running = RunningStatistics(jnp.zeros(6), jnp.ones(6))

    def loss(x):
        result = stein_batch_norm(x, running=running, shrinkage=rule)
        return jnp.sum(jnp.sin(result.y[:, good])), result

    gradient, result = jax.grad(loss, has_aux=True)(jnp.asarray(x))
    for found in (result.y[:, good], *(a[good] for a in result.running), gradient[:, good]):
        assert np.isfinite(found).all()
    if rule in ("none", "stein_mean_only"):  # no common factor can be told, so means stay
        others = x[:, good].astype(np.float64)
        wanted = (others - others.mean(0)) / np.sqrt(others.var(0) + 1e-5)
        np.testing.assert_allclose(result.y[:, good], wanted, atol=2e-6)
