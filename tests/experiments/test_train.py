"""The training loop on models small enough to know the answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.config import ConfigError, TrainConfig
from experiments.models.norms import norm_factory
from experiments.train import steps_in, train

CONFIG = TrainConfig(epochs=4, batch_size=16, learning_rate=0.05, weight_decay=0.0)


class _Tiny(nnx.Module):
    """A norm and a linear layer."""

    def __init__(self, norm="stein"):
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
        self.norm = norm_factory(norm)(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 70).astype(np.int32)
    images = generator.normal(size=(70, 3, 3, 4)).astype(np.float32)
    images[..., 0] += 4 * labels[:, None, None]
    return images, labels


def test_it_learns_reports_and_leaves_the_given_model_alone(problem):
    model = _Tiny()
    before = jax.tree.map(np.array, nnx.state(model))
    calls = []
    trained = train(model, *problem, CONFIG, seed=0, on_step=lambda *call: calls.append(call))
    assert steps_in(70, CONFIG) == len(calls) == 16
    assert [row.step for row in trained.history] == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert trained.history[-1].epoch == 4
    assert trained.history[-1].loss < 0.6 * trained.history[0].loss
    factors = trained.history[-1].factors["norm"]
    assert 0 <= factors["mean_factor"] < 1
    assert factors["variance_factor"] > 0
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(model)))
    # running statistics were recorded in training
    assert np.abs(trained.model.norm.mean[...]).max() > 0.1


def test_batch_norm_has_factor_one_and_group_norm_none(problem):
    short = dataclasses.replace(CONFIG, epochs=1)
    batch = train(_Tiny("batch"), *problem, short, seed=0).history[-1]
    assert batch.factors["norm"] == {"mean_factor": 1, "variance_factor": 1}
    assert train(_Tiny("group"), *problem, short, seed=0).history[-1].factors == {}


def test_the_seed_decides_the_order_and_nothing_else(problem):
    def weights(seed):
        return np.asarray(train(_Tiny(), *problem, CONFIG, seed=seed).model.head.kernel[...])

    np.testing.assert_array_equal(weights(0), weights(0))
    assert not np.array_equal(weights(0), weights(1))


def test_weight_decay_reaches_weights_but_not_norms(problem):
    decay = dataclasses.replace(CONFIG, weight_decay=3.0)
    plain = train(_Tiny(), *problem, CONFIG, seed=0).model
    decayed = train(_Tiny(), *problem, decay, seed=0).model
    assert np.linalg.norm(decayed.head.kernel[...]) < 0.5 * np.linalg.norm(plain.head.kernel[...])
    assert np.all(np.asarray(decayed.norm.scale[...]) > 0.8)


def test_a_loss_that_is_not_finite_stops_with_the_step(problem):
    images, labels = problem
    images = images.copy()
    images[:] = np.inf
    with pytest.raises(FloatingPointError, match="at step 1 of 16"):
        train(_Tiny(), images, labels, CONFIG, seed=0)


def test_less_than_a_batch_is_an_error(problem):
    images, labels = problem
    with pytest.raises(ConfigError, match="10 images in batches of 16"):
        train(_Tiny(), images[:10], labels[:10], CONFIG, seed=0)
