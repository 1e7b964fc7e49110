"""Random models: the attack on the mean prediction, judged by draws that it has not seen."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import (
    BatchDependenceWarning,
    RandomLogitsWarning,
    Threat,
    apgd,
    autoattack,
    expected_over_randomness,
    fab,
    pgd,
    predict,
)
from tests.attacks.problems import draws

WEIGHTS = draws(16, 4) - 0.5
X = 0.2 + 0.6 * draws(40, 16)
Y = jnp.argmax(X @ WEIGHTS, axis=1)
THREAT = Threat("linf", 0.05)


def dropping(weights, key, x):
    """Most inputs are dropped: the gradient of one draw is zero at all of these."""
    kept = jax.random.bernoulli(key, 0.2, x.shape)
    return 5 * jnp.where(kept, x - 0.5, 0) @ weights


MODEL = jax.tree_util.Partial(dropping, WEIGHTS)


@jax.jit
def probabilities(key, x):
    return jax.nn.softmax(MODEL(key, x))


def mean_accuracy(x, seed):
    """By the mean of 400 fresh draws, in NumPy."""
    total = 0.0
    for key in jax.random.split(jax.random.key(seed), 400):
        total += np.asarray(probabilities(key, x))
    return (total.argmax(axis=1) == np.asarray(Y)).mean()


def test_the_mean_is_that_of_the_draws():
    key = jax.random.key(1)
    model = expected_over_randomness(MODEL, key, samples=5, by_example=False)
    each = [jax.nn.softmax(MODEL(k, X)) for k in jax.random.split(key, 5)]
    np.testing.assert_allclose(jnp.exp(model(X)), np.mean(each, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(model(X), model(X))
    model = expected_over_randomness(MODEL, key, samples=5)
    alone = [
        jnp.concatenate([jax.nn.softmax(MODEL(k, X[i : i + 1])) for i in (0, 1, 39)])
        for k in jax.random.split(key, 5)
    ]
    got = jnp.exp(model(X))[jnp.array([0, 1, 39])]
    np.testing.assert_allclose(got, np.mean(alone, axis=0), rtol=1e-5)
    single = expected_over_randomness(lambda key, x: MODEL(key, x)[:, :1], key, samples=2)
    assert single(X).shape == (40, 2)


def test_draws_stay_with_the_example_wherever_it_is():
    model = expected_over_randomness(MODEL, jax.random.key(1), samples=2)
    there = predict(model, X)
    for some in (np.array([7, 3, 39]), np.array([5])):
        np.testing.assert_allclose(predict(model, X[some]), there[some], rtol=1e-5, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(model, X, Y, threat=THREAT, steps=1)


def test_the_stages_of_autoattack_follow_the_function_that_judges_them():
    """Where survivors saw other draws, stages claimed successes that the judgement took back."""
    model = expected_over_randomness(MODEL, jax.random.key(1), samples=2)
    y = jnp.argmax(predict(model, X), axis=1)
    found = autoattack(model, X, y, threat=THREAT, steps=10, queries=20)
    assert sum(stage.broken for stage in found.stages) == int(found.success.sum()) > 10


def test_draws_of_whole_batches_keep_the_batch_whole():
    model = expected_over_randomness(MODEL, jax.random.key(1), samples=2, by_example=False)
    with pytest.warns(BatchDependenceWarning, match="its place in the batch"):
        pgd(model, X, Y, threat=THREAT, steps=1)
    with pytest.raises(ValueError, match="fab minimises the distance of each example"):
        fab(model, X, Y, threat=THREAT, steps=1)


def _centred(key, x):
    return MODEL(key, x - x.mean(axis=0, keepdims=True))


def _centred_in_groups(key, x):
    groups = x.reshape(-1, min(len(x), 4), 16)
    return MODEL(key, (groups - groups.mean(axis=1, keepdims=True)).reshape(x.shape))


@pytest.mark.parametrize("centred", [_centred, _centred_in_groups])
def test_a_model_that_needs_its_batch_is_not_given_single_examples(centred):
    """It would be another model: alone, every example is its own mean."""
    alone, whole = (
        expected_over_randomness(centred, jax.random.key(1), samples=2, by_example=by_example)
        for by_example in (True, False)
    )
    with pytest.raises(ValueError, match="pass by_example=False"):
        pgd(alone, X, Y, threat=THREAT, steps=1)
    pgd(alone, X, Y, threat=THREAT, steps=1, batch_dependent=False)
    pgd(whole, X, Y, threat=THREAT, steps=1, batch_dependent=True)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_the_mean_is_attacked_more_strongly_than_one_draw(attack):
    left = {}
    for samples in (1, 24):
        model = expected_over_randomness(MODEL, jax.random.key(2, impl="rbg"), samples=samples)
        found = attack(model, X, Y, threat=THREAT, steps=15)
        left[samples] = mean_accuracy(found.x_adv, seed=9)
    assert left[24] < left[1] - 0.2


def test_a_model_that_draws_by_itself_is_noticed():
    seeds = itertools.count()
    with pytest.warns(RandomLogitsWarning, match="an attack on its mean answer"):
        pgd(lambda x: MODEL(jax.random.key(next(seeds)), x), X, Y, threat=THREAT, steps=1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        expected_over_randomness(MODEL, jax.random.key(0), samples=0)
    with pytest.raises(ValueError, match=r"must be a jax.random.key"):
        expected_over_randomness(MODEL, 0)
    with pytest.raises(ValueError, match=r"got NoneType; write jax\.random\.key\(0\)"):
        expected_over_randomness(MODEL, None)
    with pytest.raises(ValueError, match=r"samples must be an integer; got 2\.5"):
        expected_over_randomness(MODEL, jax.random.key(0), samples=2.5)
