"""Calibrated statistics in the evaluation: what they are calibrated on, and whose results count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import multihost_utils

from experiments.configs.schema import EvaluationConfig
from experiments.data.examples import Examples
from experiments.errors import ConfigError
from experiments.evaluation.attack_batch import DEPENDENT
from experiments.evaluation.calibration import Calibrating
from experiments.evaluation.identity import identity_of, is_of
from experiments.evaluation.plan import Plan
from experiments.models.norms import in_evaluation
from steinnorm.nnx import CalibrationStat, SteinBatchNorm

CONFIG = EvaluationConfig(batch_size=50, calibration_examples=120)


def examples(count, dtype=np.uint8):
    """Sorted by class, and brighter from class to class."""
    rng = np.random.default_rng(0)
    y = np.sort(rng.integers(0, 3, count)).astype(np.int32)
    x = rng.integers(0, 100, (count, 2, 2, 3)) + 50 * y.reshape(-1, 1, 1, 1)
    return Examples(x.astype(dtype), y)


@pytest.fixture
def model():
    return nnx.Sequential(SteinBatchNorm(3, rngs=nnx.Rngs(0)))


def test_all_of_a_small_training_part(model):
    train = examples(120)
    found = Calibrating(model, train, CONFIG).model("calibrated").layers[0]
    inputs = train.inputs / 255
    np.testing.assert_allclose(found.calibrated_mean[...], inputs.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.calibrated_var[...], inputs.var((0, 1, 2)), rtol=1e-4)
    assert not nnx.state(model, CalibrationStat)


def test_a_drawn_part_of_a_large_one(model):
    """Not the first, which are of one class."""
    train = examples(1000)
    calibrating = Calibrating(model, train, CONFIG)
    assert "on 120 of 1000 training examples, in inference mode and without" in str(calibrating)
    found = calibrating.model("calibrated").layers[0].calibrated_mean[...]
    assert calibrating.model("calibrated_streams") is calibrating.model("calibrated")
    inputs = train.inputs / 255
    np.testing.assert_allclose(found, inputs.mean((0, 1, 2)), rtol=0.1)
    assert np.all(np.abs(found - inputs[:120].mean((0, 1, 2))) > 0.1)
    again = Calibrating(nnx.clone(model), train, CONFIG).model("calibrated").layers[0]
    np.testing.assert_array_equal(again.calibrated_mean[...], found)


def test_every_process_has_the_calibration_of_the_first(model, monkeypatch):
    """The first one's says 7: two accelerators may choose algorithms that round differently."""
    of_first = functools.partial(jax.tree.map, lambda x: jnp.full_like(x, 7))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", of_first)
    own = Calibrating(model, examples(120), CONFIG).model("calibrated")
    shared = Calibrating(model, examples(120), CONFIG, shared=True).model("calibrated")
    for layer, is_first in ((own.layers[0], False), (shared.layers[0], True)):
        assert np.all(np.asarray(layer.calibrated_mean[...]) == 7) == is_first
    assert not nnx.state(model, CalibrationStat)


def test_other_sources_are_measured_with_the_model_as_it_is(model):
    calibrating = Calibrating(model, examples(120), CONFIG)
    for source in ("running", "batch", "shrunk"):
        assert calibrating.model(source) is model


def test_an_example_depends_on_its_batch():
    for source in ("calibrated", "calibrated_streams"):
        assert source in DEPENDENT
        assert Plan(source, batch_size=8).threat == "joint"


def test_a_model_that_is_not_finite(model):
    train = examples(120, np.float32)
    train.inputs[7] = np.nan
    with pytest.raises(ConfigError, match=r"cannot be calibrated: .* not finite"):
        Calibrating(model, train, CONFIG).model("calibrated")


@pytest.mark.parametrize("source", ["calibrated", "calibrated_streams"])
def test_in_evaluation(model, source):
    calibrated = Calibrating(model, examples(120), CONFIG).model(source)
    view = in_evaluation(calibrated, source).layers[0]
    assert (view.test_statistics, view.use_running_average) == (source, True)
    x = jnp.asarray(examples(8, np.float32).inputs) / 255
    assert np.any(np.abs(view(x * 3 + 1) - in_evaluation(calibrated, "running")(x * 3 + 1)) > 0.1)
    with pytest.raises(ValueError, match="calibrate"):
        in_evaluation(model, source)(x)


def _calibrating(model, train, count=120, size=50):
    config = dataclasses.replace(CONFIG, calibration_examples=count, batch_size=size)
    return Calibrating(model, train, config)


def _identity(model, calibrating, source="calibrated"):
    return identity_of(model, examples(8), 4, source, calibrating.inputs_digest)


def test_results_of_a_calibration_are_those_of_its_inputs_and_of_the_weights(model):
    train = examples(300)
    wanted = _identity(model, _calibrating(model, train))
    assert _identity(model, _calibrating(model, examples(300))) == wanted
    others = [
        _calibrating(model, train, count=150),
        _calibrating(model, train, size=60),  # rounds differently
        _calibrating(model, examples(301)),
    ]
    for other in others:
        assert not is_of(_identity(model, other), wanted)
        # Of other sources the calibration is no part.
        assert _identity(model, other, "running") == _identity(model, others[0], "running")
    changed = nnx.clone(model)
    changed.layers[0].mean[...] = jnp.ones(3)
    assert not is_of(_identity(changed, _calibrating(changed, train)), wanted)


def test_a_calibration_that_is_rounded_differently_is_the_same(model):
    """An accelerator that chooses algorithms by time gives last bits of its own each time."""
    calibrating = _calibrating(model, examples(300))
    calibrated = calibrating.model("calibrated")
    other = nnx.clone(calibrated)
    mean = other.layers[0].calibrated_mean
    mean[...] = jnp.nextafter(mean[...], jnp.inf)
    assert _identity(other, calibrating) == _identity(calibrated, calibrating)
    assert _identity(calibrated, calibrating) == _identity(model, calibrating)
