"""Networks and norms: every name works, modes do what they say, data are what they should be."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.configs import presets
from experiments.data import digits
from experiments.errors import ConfigError
from experiments.models.norms import NORMS, in_evaluation, norm_factory, sources
from experiments.models.resnet import ResNet


def _net(norm, stage_sizes=(1,)):
    return ResNet(
        norm_factory(norm, total_steps=1),
        channels_in=1,
        outputs=4,
        width=4,
        stage_sizes=stage_sizes,
        rngs=nnx.Rngs(jax.random.key(0, impl="rbg")),
    )


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(8, 6, 6, 1)), jnp.float32)


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_runs_and_evaluation_records_nothing(norm, images):
    model = _net(norm)
    assert model(images).shape == (8, 4)
    before = jax.tree.map(np.array, nnx.state(model))
    outputs = {}
    for source in sources(norm, ("running", "batch")):
        outputs[source] = in_evaluation(model, source)(images)
        assert bool(jnp.all(jnp.isfinite(outputs[source])))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(model)))
    if norm == "group":
        assert set(outputs) == {"none"}
    else:
        assert not np.allclose(outputs["running"], outputs["batch"])


@pytest.mark.parametrize("norm", ["stein", "jsnorm", "toward_running"])
def test_plain_batch_norm_stands_in_for_every_norm_with_running_statistics(norm, images):
    model = _net(norm)
    model(images)
    itself = nnx.view(model, use_running_average=True, test_statistics="running")(images)
    np.testing.assert_allclose(in_evaluation(model, "running")(images), itself, atol=1e-5)


def test_running_statistics_do_not_look_at_companions_and_batch_statistics_do(images):
    model = _net("stein")
    model(images)
    for source, alone in (("running", True), ("batch", False)):
        view = in_evaluation(model, source)
        assert np.allclose(view(images)[:3], view(images[:3]), atol=1e-5) == alone


def test_norms_differ_in_training(images):
    outputs = {norm: np.asarray(_net(norm)(images)) for norm in ("batch", "stein", "jsnorm")}
    assert not np.allclose(outputs["batch"], outputs["stein"])
    assert not np.allclose(outputs["stein"], outputs["jsnorm"])


def test_stages_halve_the_image_and_double_the_channels(images):
    model = _net("group", stage_sizes=(1, 2))
    assert len(model.blocks) == 3
    assert model.blocks[1](model.blocks[0](model.stem(images))).shape == (8, 3, 3, 8)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"batch, stein, .*group"):
        norm_factory("layer")
    with pytest.raises(ValueError, match="digits"):
        presets.load("mnist")


def test_digits_split():
    config = presets.load("digits").data
    data = digits.load(config)
    assert data.train.inputs.shape == (1297, 8, 8, 1)
    assert data.test.inputs.shape == (500, 8, 8, 1)
    assert data.train.inputs.dtype == np.float32
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 1)
    np.testing.assert_allclose(np.bincount(data.test.targets), 50, atol=2)
    # stratified, but not sorted: every batch of 100 has every class
    assert all(len(np.unique(data.test.targets[i : i + 100])) == 10 for i in range(0, 500, 100))
    again = digits.load(config)
    np.testing.assert_array_equal(data.test.inputs, again.test.inputs)
    other = digits.load(dataclasses.replace(config, split_seed=1))
    assert not np.array_equal(data.test.inputs, other.test.inputs)
    rows = {image.tobytes() for image in data.train.inputs}
    shared = sum(image.tobytes() in rows for image in data.test.inputs)
    assert shared == 0
    with pytest.raises(ConfigError, match="1797"):
        digits.load(dataclasses.replace(config, train_examples=1500))


def test_digits_that_are_cached_need_no_scikit_learn(tmp_path, monkeypatch):
    config = presets.load("digits").data
    first = digits.load(config, tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # cannot be imported
    again = digits.load(config, tmp_path)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, part).inputs, getattr(again, part).inputs)
        np.testing.assert_array_equal(getattr(first, part).targets, getattr(again, part).targets)
    with pytest.raises(ImportError):
        digits.load(dataclasses.replace(config, split_seed=1), tmp_path)
