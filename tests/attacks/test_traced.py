"""Attacks inside jit and grad say what to use there."""

import jax
import jax.numpy as jnp
import pytest

from steinnorm.attacks import (
    Threat,
    apgd,
    autoattack,
    batch_dependence,
    evaluate_robustness,
    fab,
    fgsm,
    pgd,
    pgd_scan,
    square,
)
from steinnorm.attacks.batch_threats import independent
from tests.attacks.problems import KEY, problem

THREAT = Threat("linf", 0.1)


def test_attacks_inside_jit_say_what_to_use():
    model, _, x, y = problem()
    with pytest.raises(ValueError, match="use pgd_scan"):
        jax.jit(lambda x: pgd(model, x, y, threat=THREAT).x_adv)(x)
    with pytest.raises(ValueError, match="one array of logits"):
        fgsm(lambda x: (model(x), x), x, y, threat=THREAT)
    for change, message in (
        ({"loss": "kl"}, "needs the clean logits"),
        ({"step_size": -1.0}, "not negative"),
        ({"y": y.astype(jnp.float32)}, "integer labels"),
    ):
        with pytest.raises(ValueError, match=message):
            pgd_scan(model, x, change.pop("y", y), threat=THREAT, **change)
    with pytest.raises(ValueError, match="must be a number"):
        Threat("linf", "8/255")


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, fab, square, autoattack])
def test_whatever_is_traced_says_what_to_use(attack):
    model, _, x, y = problem()
    weights = model.args[0]

    def attacked(x=x, y=y, weights=weights, threat=THREAT, key=KEY):
        model_of_weights = jax.tree_util.Partial(model.func, weights)
        return attack(model_of_weights, x, y, threat=threat, key=key).x_adv

    for name, value in (("y", y), ("weights", weights), ("threat", THREAT), ("key", KEY)):
        with pytest.raises(ValueError, match=r"attacks cannot be traced; .* use pgd_scan"):
            jax.jit(lambda value, name=name: attacked(**{name: value}))(value)
    with pytest.raises(ValueError, match=r"use pgd_scan \(traced: logits_fn\)"):
        jax.grad(lambda weights: attacked(weights=weights).sum())(weights)


def test_other_calls_inside_jit_say_what_to_use():
    model, _, x, y = problem()
    function = model.func
    for call in (
        lambda w: pgd(lambda x: function(w, x), x, y, threat=THREAT).x_adv,
        lambda w: batch_dependence(lambda x: function(w, x), x, key=KEY).images,
        lambda w: evaluate_robustness(model, x + 0 * w.sum(), y, progress=False).rows,
        lambda w: independent(pgd, model, x, y, threat=THREAT).x_adv,
        lambda w: pgd(model, x, y, threat=THREAT, step_size=w.sum()).x_adv,
    ):
        with pytest.raises(ValueError, match="use pgd_scan"):
            jax.jit(call)(model.args[0])
    with pytest.raises(ValueError, match="traced: an array that logits_fn closes over"):
        jax.grad(lambda w: pgd(lambda x: function(w, x), x, y, threat=THREAT).x_adv.sum())(
            model.args[0]
        )
