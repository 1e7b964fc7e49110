"""What a model answers: not finite, probabilities, at random, or otherwise than before."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import (
    NotFiniteError,
    ProbabilitiesWarning,
    RandomLogitsWarning,
    Threat,
    apgd,
    fab,
    fgsm,
    pgd,
    predict,
    square,
)
from tests.attacks.problems import EXAMPLES, KEY, draws, problem

THREAT = Threat("linf", 0.1)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    model, _, x, y = problem()
    broken = jax.tree_util.Partial(lambda model, x: model(x).at[2, 1].set(bad), model)
    with pytest.raises(ValueError, match=f"NaN or infinite logits for 1 of {EXAMPLES} clean"):
        pgd(broken, x, y, threat=THREAT)


def test_logits_that_are_not_finite_are_no_randomness():
    x, y = draws(3, 4), np.array([0, 1, 2])
    weights = draws(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotFiniteError, match="clean examples"):
            fgsm(lambda x: (x @ weights).at[0, 0].set(jnp.nan), x, y, threat=THREAT)


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, square])
def test_logits_that_are_not_finite_on_the_way_are_no_robustness(attack):
    model, _, x, y = problem(low=0.4, high=0.6)
    far = jax.tree_util.Partial(
        lambda model, x: jnp.where(jnp.max(jnp.abs(x - 0.5)) > 0.15, jnp.nan, model(x)), model
    )
    more = {"queries": 9, "key": KEY} if attack is square else {}
    with pytest.raises(NotFiniteError, match="NaN or infinite for"):
        attack(far, x, y, threat=Threat("linf", 0.3), **more)


def _with_broken_gradient(model, x):
    z = model(x)
    return z + jnp.sqrt(jnp.maximum(0 * z, 0))


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, fab])
def test_gradients_that_are_not_finite_are_no_robustness(attack):
    model, _, x, y = problem()
    broken = jax.tree_util.Partial(_with_broken_gradient, model)
    more = {} if attack is fgsm else {"steps": 3}
    with pytest.raises(NotFiniteError, match=f"gradients are NaN or infinite for {EXAMPLES} of"):
        attack(broken, x, y, threat=THREAT, **more)


def test_probabilities_instead_of_logits_warn():
    model, _, x, y = problem()
    softmax = jax.tree_util.Partial(lambda model, x: jax.nn.softmax(model(x)), model)
    with pytest.warns(ProbabilitiesWarning, match="hides gradients"):
        fgsm(softmax, x, y, threat=THREAT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fgsm(model, x, y, threat=THREAT)


def test_a_sigmoid_for_a_single_logit_warns():
    model, _, x, _ = problem()
    single = jax.tree_util.Partial(lambda model, x: jax.nn.sigmoid(model(x)[:, :1]), model)
    with pytest.warns(ProbabilitiesWarning, match="0 is the threshold of a single logit"):
        fgsm(single, x, jnp.ones(EXAMPLES, jnp.int32), threat=THREAT)


def test_a_model_that_answers_at_random_warns():
    model, _, x, y = problem()
    generator = np.random.default_rng(0)

    def noisy(x):
        return model(x) + jnp.float32(generator.normal())

    with pytest.warns(RandomLogitsWarning, match="attack on its mean answer"):
        fgsm(noisy, x, y, threat=THREAT)


def test_a_function_is_attacked_as_it_is_now_not_as_it_was_compiled():
    model, _, x, y = problem()
    held = {"sign": 1.0}

    def changing(x):
        return held["sign"] * model(x)

    still = Threat("linf", 0.0)
    assert not pgd(changing, x, y, threat=still, steps=1).success.any()
    held["sign"] = -1.0
    assert pgd(changing, x, y, threat=still, steps=1).success.all()
    held["sign"] = 1.0
    assert not pgd(changing, x, y, threat=still, steps=1).success.any()


def test_a_defence_that_leaves_the_logits_alone_is_attacked_as_it_is_now():
    model, _, x, y = problem()
    held = {"hide": True}

    def defended(x):
        return model(jax.lax.stop_gradient(x) if held["hide"] else x)

    threat = Threat("linf", 0.5)
    hidden = pgd(defended, x, y, threat=threat, steps=3)
    assert hidden.zero_gradients == len(x)
    held["hide"] = False
    shown = pgd(defended, x, y, threat=threat, steps=3)
    fresh = pgd(lambda x: defended(x), x, y, threat=threat, steps=3)  # noqa: PLW0108
    np.testing.assert_array_equal(shown.x_adv, fresh.x_adv)
    assert shown.success.all()


def test_constants_in_a_function_are_compiled_right():
    # With an experimental option of XLA that our training uses, this product was NaN.
    x, y = draws(4, 8, 8, 3), jnp.zeros(4, jnp.int32)

    def grey(x):
        return (x.reshape(4, -1) @ jnp.ones((192, 5))) * jnp.arange(5.0)[None]

    expected = np.asarray(x).reshape(4, -1).sum(axis=1)[:, None] * np.arange(5)[None]
    np.testing.assert_allclose(predict(grey, x), expected, rtol=1e-5)
    assert fgsm(grey, x, y, threat=THREAT).success.all()
