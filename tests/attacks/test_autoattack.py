"""The ensemble: only standing examples, the worst of each, and what it says of itself."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, autoattack, predict
from tests.attacks.problems import KEY, companions, draws

module = importlib.import_module("steinnorm.attacks.autoattack")  # the package has the function

WAVES = np.random.default_rng(5).normal(size=(25, 30)).astype(np.float32)
OUT = np.random.default_rng(6).normal(size=(30, 5)).astype(np.float32)
THREAT = Threat("linf", 0.04)
SHORT = {"threat": THREAT, "key": KEY, "steps": 10, "queries": 30}


def _network(parameters, x):
    waves, out = parameters
    return jnp.tanh(x.reshape(x.shape[0], -1) @ waves) @ out


def _single(model, x):
    return model(x)[:, 1:2] - model(x)[:, :1]


# Batches of 16 and 8 only, each size being compiled again.
COUNT, BATCH = 40, 16


def _examples(count=COUNT):
    model = jax.tree_util.Partial(_network, (jnp.asarray(WAVES), jnp.asarray(OUT)))
    x = draws(count, 5, 5, 1)
    y = jnp.argmax(predict(model, x), axis=1)
    return model, x, y.at[:5].set((y[:5] + 1) % 5)  # five are wrong from the start


@pytest.fixture(scope="module")
def found():
    return autoattack(*_examples(), **SHORT, batch_size=BATCH)


def test_each_attack_is_given_what_the_others_left(found):
    names = [stage.name for stage in found.stages]
    assert names == ["apgd-ce", "apgd-t", "fab-t", "square"]
    left = COUNT - 5
    for stage in found.stages:
        assert stage.attacked == left
        assert stage.seconds > 0
        left -= stage.broken
    assert int(found.success.sum()) == COUNT - left
    assert found.stages[0].broken > 0
    found.check(THREAT)


def test_what_was_wrong_already_is_left_alone(found):
    _, x, _ = _examples()
    np.testing.assert_array_equal(found.x_adv[:5], x[:5])
    assert found.success[:5].all()


def test_no_member_alone_is_stronger(found):
    # With the same key: the first attack of the ensemble is APGD on the same examples.
    model, x, y = _examples()
    alone = [
        apgd(model, x[i : i + BATCH], y[i : i + BATCH], threat=THREAT, key=KEY, steps=10)
        for i in range(0, COUNT, BATCH)
    ]
    assert int(found.success.sum()) >= sum(int(one.success.sum()) for one in alone) - 1


def test_an_attack_is_believed_by_its_images_not_by_its_word(monkeypatch):
    model, x, y = _examples(16)

    def liar(problem, key):
        return jnp.clip(problem.x + 0.9, 0, 1), 0

    monkeypatch.setattr(module, "_members", lambda *_: [("liar", liar)])
    with pytest.raises(AssertionError, match="liar left its ball"):
        autoattack(model, x, y, **SHORT)


def test_few_classes_and_a_single_logit():
    model, x, _ = _examples(8)
    single = jax.tree_util.Partial(_single, model)
    y = (predict(single, x)[:, 1] > 0).astype(jnp.int32)
    result = autoattack(single, x, y, threat=Threat("linf", 0.1), key=KEY, steps=5, queries=5)
    assert [stage.name for stage in result.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert result.success.any()


def test_a_batch_that_hangs_together_keeps_its_worst_batch():
    x = draws(24, 2, 2, 1)
    y = jnp.argmax(predict(companions, x), axis=1)
    told = []
    result = autoattack(
        companions,
        x,
        y,
        threat=Threat("linf", 0.05),
        key=KEY,
        steps=10,
        queries=20,
        batch_dependent=True,
        on_progress=lambda *what: told.append(what),
    )
    assert [stage.name for stage in result.stages] == ["apgd-ce", "apgd-t", "square"]
    assert [stage.attacked for stage in result.stages] == [24, 24, 24]
    assert sum(stage.broken for stage in result.stages) == int(result.success.sum()) > 0
    assert told == [(name, 24, 24) for name in ("apgd-ce", "apgd-t", "square")]
    wrong = jnp.argmax(jax.jit(companions)(result.x_adv), axis=1) != y
    np.testing.assert_array_equal(result.success, wrong)


def test_autoattack_refuses():
    model, x, y = _examples(4)
    with pytest.raises(ValueError, match="use sea"):
        autoattack(lambda x: jnp.concatenate([x, 3 - x], -1), x, jnp.zeros((4, 5, 5), int), **SHORT)
    with pytest.raises(ValueError, match="batch_size"):
        autoattack(model, x, y, **SHORT, batch_size=0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_half_precision_inputs_are_attacked_in_float32(dtype, norm):
    model, x, y = _examples(8)
    x = x.astype(dtype)
    settings = SHORT | {"threat": Threat(norm, 0.1), "steps": 3, "queries": 5}
    result = autoattack(model, x, y, **settings)
    alike = autoattack(model, x.astype(jnp.float32), y, **settings)
    assert result.x_adv.dtype == jnp.float32
    np.testing.assert_array_equal(result.x_adv, alike.x_adv)
    np.testing.assert_array_equal(result.success, alike.success)
