"""Models whose head has padded or masked classes, with logits far below all others."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steinnorm
from steinnorm import attacks
from steinnorm.attacks import Threat
from steinnorm.attacks._competing import without_unreachable
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks.robustness.identity import Fingerprint

THREAT = Threat("linf", 0.1)
PADDED = (-1e4, -1e9, -1e30)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    weights = jnp.asarray(generator.normal(size=(12, 5)), jnp.float32)
    x = jnp.asarray(generator.random((20, 2, 2, 3)), jnp.float32)
    return weights, x


def _linear(weights):
    return lambda x: x.reshape(len(x), -1) @ weights


def _with_test_batch_statistics(weights):
    return lambda x: steinnorm.stein_batch_norm(_linear(weights)(x), shrinkage="none").y


def _padded(model, value):
    return lambda x: jnp.concatenate([model(x), jnp.full((len(x), 3), value)], axis=1)


def test_the_logits_of_classes_that_compete_stay_as_they_are():
    logits = np.array([[3.0, 1.0, -4.0, -1e9], [0.0, 0.5, -20.0, -np.inf]])
    # The largest lead is 2, so that 20 behind the largest is the end.
    expected = [[3.0, 1.0, -4.0, -17.0], [0.0, 0.5, -19.5, -19.5]]
    np.testing.assert_array_equal(without_unreachable(logits), expected)
    np.testing.assert_array_equal(
        without_unreachable(logits[1:] + 1, like=logits), np.array(expected[1:]) + 1
    )
    assert np.isnan(without_unreachable(np.array([[np.nan, 1.0, 2.0], [0.0, 1.0, 2.0]]))[0]).all()


@pytest.mark.parametrize("value", PADDED)
def test_attacks_leave_what_they_leave_without_padding(data, value):
    weights, x = data
    model = _linear(weights)
    y = jnp.argmax(model(x), axis=-1)
    for attack in (attacks.fab, attacks.apgd):
        plain, padded = (
            attack(f, x, y, threat=THREAT, steps=20).success for f in (model, _padded(model, value))
        )
        assert plain.any()
        np.testing.assert_array_equal(plain, padded)


@pytest.mark.parametrize("value", PADDED)
def test_dependence_on_the_batch_is_found(data, value):
    weights, x = data
    model = _padded(_with_test_batch_statistics(weights), value)
    y = jnp.argmax(model(x), axis=-1)
    with pytest.warns(attacks.BatchDependenceWarning):
        attacks.pgd(model, x, y, threat=THREAT, steps=1)
    with pytest.warns(attacks.BatchDependenceWarning):
        result = attacks.autoattack(model, x, y, threat=THREAT, steps=2, queries=2)
    assert "fab-t" not in [stage.name for stage in result.stages]
    assert attacks.batch_dependence(model, x, key=jax.random.key(0)).companions.logit > 0.05


def test_padding_makes_no_model_depend_on_the_batch(data):
    weights, x = data
    y = jnp.argmax(_linear(weights)(x), axis=-1)
    added = jnp.array([[0.0] * 4 + [-1e9]])  # rounds the class that it masks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.pgd(lambda x: _linear(weights)(x) + added, x, y % 4, threat=THREAT, steps=1)


@pytest.mark.parametrize("value", PADDED)
def test_random_logits_are_found(data, value):
    weights, x = data
    generator = np.random.default_rng(0)

    def random(x):
        noise = jax.pure_callback(
            lambda: generator.normal(size=(len(x), 5)).astype(np.float32),
            jax.ShapeDtypeStruct((len(x), 5), jnp.float32),
        )
        return _linear(weights)(x) + noise

    y = jnp.argmax(_linear(weights)(x), axis=-1)
    with pytest.warns(attacks.RandomLogitsWarning):
        attacks.pgd(_padded(random, value), x, y, threat=THREAT, steps=1, batch_dependent=False)


@pytest.mark.parametrize("value", PADDED)
def test_another_model_is_recognised_as_another(data, value):
    weights, x = data
    y = jnp.zeros(len(x), jnp.int32)
    # Added to all logits alike, it changes no gradient.
    one, other = (
        Fingerprint.of(
            Problem.of(_padded(lambda x, b=b: _linear(weights)(x) + b, value), x, y, THREAT)
        )
        for b in (0.0, 1e-2)
    )
    assert one.is_like(one)
    assert not one.is_like(other)
