"""The risk on feature maps where the answer is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.evaluation.risk import exact, feature_maps
from experiments.evaluation.risk.rules import RUNNING, SAMPLE
from experiments.models import recording
from experiments.models.norms import norm_factory
from experiments.models.resnet import ResNet
from steinnorm import batch_statistics
from steinnorm.shrinkage import RunningStatistics

CHANNELS = 16
BATCH = 32
BATCHES = 300
ALTERNATING = np.where(np.arange(CHANNELS) % 2, 1.0, -1.0)


def _layer(means, seed=0, name="layer"):
    """Independent normal values of unit variance: 4,000 images of one pixel."""
    values = np.random.default_rng(seed).normal(size=(4000, 1, 1, CHANNELS)) + means
    running = RunningStatistics(jnp.full(CHANNELS, 0.5), jnp.full(CHANNELS, 2.0))
    return recording.NormLayer(name, values.astype(np.float32), running)


def _measure(*layers):
    moments = [feature_maps.image_moments(layer.inputs) for layer in layers]
    return feature_maps.ratios(list(layers), moments, moments, BATCH, BATCHES, seed=0)


def _all_layers(rows):
    return {(r["target"], r["estimator"]): r for r in rows if r["layer"] == feature_maps.ALL_LAYERS}


@pytest.mark.parametrize("size", [0.2, 0.5])
def test_james_stein_has_its_known_risk(size):
    found = _all_layers(_measure(_layer(size * ALTERNATING)))["mean", "james_stein"]
    known = exact.james_stein_ratio(CHANNELS, CHANNELS * size**2 * BATCH)
    # The positive part helps a little more, the estimated noise costs a little.
    assert found["ratio"] == pytest.approx(known, rel=0.1)
    assert found["ci_low"] < found["ratio"] < found["ci_high"] < 1


def test_stein_mean_loses_by_its_bias_where_channel_means_differ():
    found = _all_layers(_measure(_layer(ALTERNATING)))
    # The means average to zero, so all of them is taken for noise: the factor is near
    # 3 / (C + 1), and the bias (1 - factor) * mean outweighs what it saves of the noise 1 / N.
    factor = 3 / (CHANNELS + 1)
    known = (1 - factor) ** 2 * BATCH + factor**2
    assert found["mean", "stein"]["ratio"] == pytest.approx(known, rel=0.1)
    assert found["mean", "stein"]["ci_low"] > 1


def test_the_sample_statistics_are_one_and_running_ones_ignore_the_batch():
    layer = _layer(ALTERNATING)
    rows = _measure(layer)
    for row in rows:
        if row["estimator"] == SAMPLE:
            for name in ("ratio", "lowest", "highest", "ci_low", "ci_high"):
                assert row[name] == 1
    running = [row for row in rows if row["estimator"] == RUNNING and row["risk"] is not None]
    truth = layer.inputs.astype(np.float64)[:, 0, 0]
    known = {
        "mean": np.sum((0.5 - truth.mean(0)) ** 2),
        "variance": np.sum((2 - truth.var(0)) ** 2),
    }
    assert {row["target"]: row["risk"] for row in running} == pytest.approx(known)


def test_statistics_of_batches_are_the_librarys():
    inputs = np.random.default_rng(0).gamma(2.0, size=(20, 3, 2, 4)).astype(np.float32)
    moments = feature_maps.image_moments(inputs)
    np.testing.assert_allclose(moments.variance, inputs.var(axis=(0, 1, 2)), rtol=1e-5)
    for size in (1, 5):
        indices = feature_maps.draw(20, size, 3, seed=3)
        found = feature_maps.batch_draws(moments, indices, moments)
        for i, index in enumerate(indices):
            known = batch_statistics(inputs[index], noise=True)
            for name in ("mean", "variance", "mean_noise", "variance_noise"):
                np.testing.assert_allclose(
                    getattr(found, name)[i], getattr(known, name), rtol=1e-4, atol=1e-7
                )
        assert (found.values, found.examples) == (size * 6, size)


def test_batches_are_distinct_images_and_seeded():
    first = feature_maps.draw(50, 40, 6, seed=1)
    assert all(len(set(batch)) == 40 for batch in first.tolist())
    np.testing.assert_array_equal(first, feature_maps.draw(50, 40, 6, seed=1))
    assert (first != feature_maps.draw(50, 40, 6, seed=2)).any()
    assert (first[0] != first[1]).any()


def test_layers_are_summarised_by_geometric_mean_and_range():
    rows = _measure(_layer(0.2 * ALTERNATING, name="a"), _layer(ALTERNATING, seed=1, name="b"))
    ratios = {
        r["layer"]: r["ratio"] for r in rows if (r["target"], r["estimator"]) == ("mean", "stein")
    }
    summary = _all_layers(rows)["mean", "stein"]
    assert ratios["a"] < ratios["b"]
    assert (summary["lowest"], summary["highest"]) == (ratios["a"], ratios["b"])
    assert summary["ratio"] == pytest.approx(math.sqrt(ratios["a"] * ratios["b"]))
    assert summary["risk"] is None


def test_every_norm_layer_is_recorded_and_the_network_is_left_alone():
    model = ResNet(
        norm_factory("batch"),
        channels_in=1,
        outputs=3,
        width=4,
        stage_sizes=(1, 1),
        rngs=nnx.Rngs(jax.random.key(0, impl="rbg")),  # quick to compile
    )
    images = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
    layers = {layer.name: layer for layer in recording.norm_layers(model, images)}
    assert set(layers) == {
        "stem_norm",
        "blocks/0/norm1",
        "blocks/0/norm2",
        "blocks/1/norm1",
        "blocks/1/norm2",
        "blocks/1/shortcut_norm",
    }
    np.testing.assert_allclose(
        layers["stem_norm"].inputs, model.stem(jnp.asarray(images)), rtol=1e-5, atol=1e-6
    )
    assert layers["blocks/1/norm2"].inputs.shape == (6, 4, 4, 8)
    assert not model.stem_norm.use_running_average
    assert type(model.stem_norm).__name__ == "SteinBatchNorm"
