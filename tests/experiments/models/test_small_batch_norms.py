"""Batch Renormalization and the rule with learnt noise, against float64 by their papers' words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.norms import in_evaluation, norm_factory
from experiments.models.small_batch_norms import BatchRenorm, LearntNoise, renormalised
from steinnorm import RunningStatistics, stein_batch_norm
from steinnorm.nnx import SteinBatchNorm

EPSILON = 1e-3


def _batch(seed=0, shape=(3, 4, 4, 5), mean=0.0, scale=1.0):
    x = np.random.default_rng(seed).normal(mean, scale, shape)
    return x * np.linspace(0.5, 3, shape[-1]) + np.linspace(-1, 2, shape[-1])


def _renormalised(x, running, largest_scale, largest_shift):
    """Returns y of Ioffe's algorithm 1 in float64, without scale and bias, and r and d."""
    mean, deviation = x.mean((0, 1, 2)), np.sqrt(x.var((0, 1, 2)) + EPSILON)
    of_running = np.sqrt(running.variance + EPSILON)
    r = np.clip(deviation / of_running, 1 / largest_scale, largest_scale)
    d = np.clip((mean - running.mean) / of_running, -largest_shift, largest_shift)
    return (x - mean) / deviation * r + d, r, d


@pytest.mark.parametrize(("largest_scale", "largest_shift"), [(1.0, 0.0), (1.5, 0.5), (3.0, 5.0)])
def test_renormalisation_is_that_of_the_paper_with_its_gradient(largest_scale, largest_shift):
    x = _batch()
    running = RunningStatistics(np.linspace(-0.5, 1, 5), np.linspace(0.3, 4, 5))
    rule = renormalised(largest_scale, largest_shift, EPSILON)

    def ours(x):
        running32 = jax.tree.map(jnp.float32, running)
        return stein_batch_norm(x, None, None, running32, shrinkage=rule, epsilon=EPSILON).y

    wanted, r, d = _renormalised(x, running, largest_scale, largest_shift)
    np.testing.assert_allclose(ours(jnp.float32(x)), wanted, rtol=1e-5, atol=1e-5)
    assert largest_shift == 0 or np.any(np.abs(d) == largest_shift) or np.any(r > 1)

    def fixed(x):  # r and d are constants to the gradient
        mean = jnp.mean(x, (0, 1, 2), keepdims=True)
        deviation = jnp.sqrt(jnp.var(x, (0, 1, 2), keepdims=True) + EPSILON)
        scale, shift = (jnp.float32(v).reshape(1, 1, 1, -1) for v in (r, d))
        return (x - mean) / deviation * scale + shift

    weights = jnp.float32(_batch(1))
    gradients = [
        jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(jnp.float32(x)) for f in (ours, fixed)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_limits_widen_with_the_training():
    layer = BatchRenorm(5, total_steps=160, epsilon=EPSILON, rngs=nnx.Rngs(0))
    limits = {}
    step = nnx.jit(lambda layer, x: layer(x))
    for number in range(60):
        rule = layer.rule()
        limits[number] = (float(rule.mean.largest_scale), float(rule.mean.largest_shift))
        step(layer, jnp.float32(_batch(number)))
    assert limits[0] == limits[5] == (1.0, 0.0)
    assert limits[15] == pytest.approx((1 + 2 * 10 / 35, 2.5))
    assert limits[25] == pytest.approx((1 + 2 * 20 / 35, 5.0))
    assert limits[40] == limits[59] == pytest.approx((3.0, 5.0))


def test_the_running_statistics_record_the_batch_itself():
    x = _batch(mean=2.0)
    for layer in (
        BatchRenorm(5, total_steps=1, momentum=0.9, rngs=nnx.Rngs(0)),
        LearntNoise(5, momentum=0.9, rngs=nnx.Rngs(0)),
    ):
        layer(jnp.float32(x))
        np.testing.assert_allclose(layer.norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(layer.norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-5)


def test_learnt_noise_is_the_average_of_the_batches_estimates():
    layer = LearntNoise(5, momentum=0.9, rngs=nnx.Rngs(0))
    weights, estimates = [], []
    for number in range(4):
        x = _batch(number)
        layer(jnp.float32(x))
        per_example = (x - x.mean((0, 1, 2))).sum((1, 2)) / 16
        of_mean = 3 / 2 * np.sum(per_example**2, 0) / 9  # B/(B-1) sum t_b^2 / N^2
        estimates.append(np.mean(3 * of_mean / x.var((0, 1, 2))))
        weights.append(0.1 * 0.9 ** (3 - number))
    found = layer.mean_noise[...] / layer.weight[...]
    np.testing.assert_allclose(found, np.average(estimates, weights=weights), rtol=1e-5)


def test_learnt_noise_decides_how_much_of_a_batch_is_kept():
    """Against the rule's formula in float64: one factor 1 - (C - 2) noise / distance."""
    layer = LearntNoise(5, momentum=0.5, epsilon=EPSILON, rngs=nnx.Rngs(0))
    layer(jnp.float32(_batch(0)))
    running = layer.norm.mean[...], layer.norm.var[...]
    noise = [float(n[...] / layer.weight[...]) for n in (layer.mean_noise, layer.variance_noise)]
    x = _batch(1)
    y = layer(jnp.float32(x))

    own_mean, own_variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    to_mean, to_variance = (np.asarray(r, np.float64) for r in running)
    squares = np.sum((own_mean - to_mean) ** 2 / own_variance)
    kept = max(1 - 3 * noise[0] / 3 / squares, 0)
    logarithms = np.log(own_variance / to_variance)
    kept_variance = max(1 - 3 * noise[1] / 3 / np.sum(logarithms**2), 0)
    assert 0 < kept < 1
    assert 0 < kept_variance < 1
    mean = to_mean + kept * (own_mean - to_mean)
    variance = to_variance * np.exp(kept_variance * logarithms)
    wanted = (x - mean) / np.sqrt(variance + EPSILON)
    np.testing.assert_allclose(y, wanted, rtol=2e-4, atol=2e-4)


def test_batches_of_one_teach_no_noise():
    layer = LearntNoise(5, rngs=nnx.Rngs(0))
    assert np.isfinite(layer(jnp.float32(_batch(shape=(1, 4, 4, 5))))).all()
    assert float(layer.weight[...]) == 0


@pytest.mark.parametrize("name", ["batch_renorm", "learnt_noise"])
def test_in_inference_they_are_batch_norm(name):
    model = nnx.Sequential(norm_factory(name, total_steps=10)(5, rngs=nnx.Rngs(0)))
    model(jnp.float32(_batch(0)))
    plain = SteinBatchNorm(5, shrinkage="none", rngs=nnx.Rngs(0))
    for part in ("mean", "var"):
        getattr(plain, part)[...] = getattr(model.layers[0].norm, part)[...]
    x = jnp.float32(_batch(1))
    for statistics in ("running", "shrunk"):
        wanted = nnx.view(plain, use_running_average=True, test_statistics=statistics)(x)
        np.testing.assert_array_equal(in_evaluation(model, statistics)(x), wanted)


def test_renormalisation_wants_the_length_of_the_training():
    with pytest.raises(ValueError, match="give total_steps"):
        norm_factory("batch_renorm")
