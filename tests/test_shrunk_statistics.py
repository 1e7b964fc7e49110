"""Inference with shrunk statistics: the rule of training first, then towards the running ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import RunningStatistics, batch_statistics
from steinnorm import shrinkage as rules
from steinnorm.functional import stein_batch_norm
from steinnorm.shrinkage_factors import shrinkage_factors
from tests import reference
from tests.test_functional import BIAS, RUNNING, SCALE, draw, jitted

SHRUNK = {"use_running_average": True, "test_statistics": "shrunk"}


@pytest.mark.parametrize("name", ["none", "stein", "stein_mean_only", "jsnorm", "ridge", "lasso"])
def test_inference_with_shrunk_statistics_is_the_rule_of_training_and_then_toward_running(name):
    x = draw()
    options = {"use_running_average": True, "test_statistics": "shrunk"}
    strong = getattr(rules, name)(0.3) if name in ("ridge", "lasso") else name
    test = jitted(shrinkage=strong, **options)(x, SCALE, BIAS, RUNNING)
    own = reference.batch_statistics(x)
    strength = {"strength": 0.3} if name in ("ridge", "lasso") else {}
    mean, variance = reference.shrink(name, own, **strength)
    noise = own.variance_noise * (variance / own.variance) ** 2
    estimated = own._replace(mean=mean, variance=variance, variance_noise=noise)
    mean, variance = reference.shrink("toward_running", estimated, *RUNNING)
    want = reference.normalise(x, mean, variance, scale=SCALE, bias=BIAS)
    np.testing.assert_allclose(test.y, want, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(test.running, RUNNING)
    single = stein_batch_norm(x[:1], SCALE, BIAS, RUNNING, **options)
    want = reference.normalise(x[:1], *RUNNING, scale=SCALE, bias=BIAS)
    np.testing.assert_allclose(single.y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["none", "stein", "jsnorm", "toward_running"])
def test_shrunk_statistics_of_a_large_batch_are_those_that_training_would_use(name):
    """What the network was trained on.  The sample statistics would be another function."""
    x = draw(shape=(2048, 2, 2, 5))
    used = {
        source: jitted(shrinkage=name, use_running_average=True, test_statistics=source)(
            x, SCALE, BIAS, RUNNING
        ).used
        for source in ("batch", "shrunk")
    }
    chex.assert_trees_all_close(used["shrunk"], used["batch"], rtol=2e-3, atol=2e-3)
    plain = batch_statistics(x)
    apart = jnp.max(jnp.abs(used["batch"].mean - plain.mean))
    assert (apart > 0.05) == (name in ("stein", "jsnorm"))


def test_factors_of_shrunk_statistics_are_those_of_the_last_step():
    x = draw(shape=(256, 2, 2, 5)) + 1
    options = {"use_running_average": True, "test_statistics": "shrunk"}
    for name in ("none", "stein", "jsnorm"):
        got = jitted(shrinkage=name, **options)(x, SCALE, BIAS, RUNNING)
        factors = shrinkage_factors(got, RUNNING)
        assert 0.99 < factors.mean < 1, name  # a shift that large is no noise
        assert 0.98 < factors.variance < 1, name
    few = jitted(shrinkage="stein", **options)(x[:2, :1, :1], SCALE, BIAS, RUNNING)
    assert shrinkage_factors(few, RUNNING).mean < 0.95


@pytest.mark.parametrize("name", ["stein", "jsnorm"])
class TestShrunkStatisticsAfterARule:
    def test_masked_values_do_not_count_and_an_empty_channel_runs(self, name):
        x = draw()
        mask = np.ones((8, 1, 1, 5), bool)
        mask[5:] = False
        mask[..., 2] = False
        wild = np.where(mask, x, 1e6)
        layer = jitted(shrinkage=name, **SHRUNK)
        got = layer(wild, SCALE, BIAS, RUNNING, mask=jnp.asarray(mask))
        assert bool(jnp.all(jnp.isfinite(got.y)))
        np.testing.assert_allclose(got.used.mean[2], RUNNING.mean[2], rtol=1e-6)
        np.testing.assert_allclose(got.used.variance[2], RUNNING.variance[2], rtol=1e-6)
        again = layer(x, SCALE, BIAS, RUNNING, mask=jnp.asarray(mask))
        chex.assert_trees_all_close(got.used, again.used, rtol=1e-6)

    def test_several_feature_axes_are_one_vector(self, name):
        x = draw(shape=(6, 4, 3, 5))
        flat = RunningStatistics(jnp.linspace(-1.0, 1.0, 20), jnp.linspace(1.0, 4.0, 20))
        grid = jax.tree.map(lambda a: a.reshape(4, 5), flat)
        options = {"shrinkage": name, **SHRUNK}
        got = stein_batch_norm(x, running=grid, axis=(1, 3), **options)
        as_one = jnp.moveaxis(x, 1, 2).reshape(6, 3, 20)
        want = stein_batch_norm(as_one, running=flat, **options)
        chex.assert_trees_all_close(
            jax.tree.map(jnp.ravel, got.used), want.used, rtol=1e-5, atol=1e-6
        )

    def test_over_a_mapped_axis(self, name):
        x = draw(shape=(8, 3, 3, 5))
        options = {"shrinkage": name, "running": RUNNING, **SHRUNK}
        parts = jax.vmap(
            lambda part: stein_batch_norm(part, axis_name="parts", **options).y, axis_name="parts"
        )(x.reshape(2, 4, 3, 3, 5))
        want = stein_batch_norm(x, **options).y
        np.testing.assert_allclose(parts.reshape(x.shape), want, rtol=1e-5, atol=1e-5)

    def test_in_bfloat16(self, name):
        x = jnp.asarray(draw(), jnp.bfloat16)
        options = {"shrinkage": name, **SHRUNK}
        got = jitted(force_float32_reductions=False, **options)(x, SCALE, BIAS, RUNNING)
        want = jitted(**options)(x.astype(jnp.float32), SCALE, BIAS, RUNNING)
        assert float(jnp.max(jnp.abs(got.y.astype(jnp.float32) - want.y))) < 0.1


def test_one_example_without_pixels_uses_the_running_statistics():
    """Rank 2: a batch of one has variance zero, and must not be normalised to nothing."""
    x = draw()[:1, 0, 0]
    options = {"use_running_average": True, "test_statistics": "shrunk"}
    got = stein_batch_norm(x, SCALE, BIAS, RUNNING, **options)
    want = reference.normalise(x, *RUNNING, scale=SCALE, bias=BIAS)
    np.testing.assert_allclose(got.y, want, rtol=1e-5, atol=1e-5)
