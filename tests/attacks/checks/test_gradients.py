"""Gradients that are missing, wrong, or right in spite of kinks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks.checks import FAIL, NOT_APPLICABLE, PASS
from steinnorm.attacks.checks.batches import independent_of_the_batch
from steinnorm.attacks.checks.gradients import gradient_matches_finite_differences, zero_gradients
from tests.attacks.checks.models import (
    EXAMPLES,
    SMALL,
    VALUES,
    batch_norm,
    batch_norm_without_its_gradient,
    centred,
    draws,
    in_bfloat16,
    linear_problem,
    network,
    partly_dead,
    quantised,
    runs_of,
    with_gradient,
)


def batch():
    return jnp.asarray(draws(EXAMPLES, VALUES, seed=11)), jnp.arange(EXAMPLES) % 3


def test_gradients_of_a_linear_model_are_there():
    model, x, y = linear_problem()
    finding = zero_gradients(runs_of(model, x, y))
    assert (finding.verdict, finding.value) == (PASS, 0.0)


def test_gradients_of_a_model_that_is_too_sure_are_not():
    model, x, y = linear_problem(scale=1e6)
    finding = zero_gradients(runs_of(model, x, y))
    assert finding.verdict == FAIL
    assert finding.value > 0.9


def test_zero_gradients_are_counted_among_the_right_ones():
    x = jnp.asarray(draws(EXAMPLES, 3, seed=2))
    wrong = np.arange(EXAMPLES) % 4 == 0
    dead = np.asarray(x[:, 0]) < 0.5
    y = jnp.asarray(wrong, jnp.int32)  # the model always says 0
    finding = zero_gradients(runs_of(partly_dead, x, y))
    assert finding.value == pytest.approx(dead[~wrong].mean())
    entries = np.where(dead[~wrong], 1, 1 / 3).mean()
    assert f"{100 * entries:.1f} % are zero" in finding.detail
    assert f"{(~wrong).sum()} examples that are classified right" in finding.detail
    enough = dataclasses.replace(SMALL, zero_gradient_share=float(dead[~wrong].mean()))
    assert zero_gradients(runs_of(partly_dead, x, y, enough)).verdict == PASS
    none_right = zero_gradients(runs_of(partly_dead, x, jnp.ones(EXAMPLES, jnp.int32)))
    assert none_right.verdict == NOT_APPLICABLE


@pytest.mark.parametrize("model", [network, batch_norm, centred])
def test_right_gradients_match_in_spite_of_kinks(model):
    finding = gradient_matches_finite_differences(runs_of(model, *batch()))
    assert finding.verdict == PASS, finding.detail
    assert finding.value < 0.02


WRONG = {
    "scaled": with_gradient(lambda g: 1.1 * g),
    "shrunk": with_gradient(lambda g: 0.9 * g),
    "other sign": with_gradient(lambda g: -g),
    "rotated": with_gradient(lambda g: jnp.roll(g, 1, axis=1)),
    "masked": with_gradient(jnp.zeros_like),
    "one value lost": with_gradient(lambda g: g.at[:, 0].set(0.0)),
    "straight through": quantised,
    "statistics held": batch_norm_without_its_gradient,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_gradients_are_found(name):
    finding = gradient_matches_finite_differences(runs_of(WRONG[name], *batch()))
    assert finding.verdict == FAIL, finding.detail
    assert finding.value > SMALL.gradient_error


def test_error_of_a_scaled_gradient_is_its_scale():
    finding = gradient_matches_finite_differences(
        runs_of(with_gradient(lambda g: 2.0 * g), *batch())
    )
    assert finding.value == pytest.approx(0.5, abs=0.02)


def test_gradients_at_the_box_and_of_equal_values_match():
    # A black background: without a step aside every ReLU would be at its kink.
    flat = jnp.zeros((EXAMPLES, VALUES))
    assert gradient_matches_finite_differences(runs_of(network, flat, batch()[1])).verdict == PASS


def test_differences_of_a_coarse_model_say_nothing():
    finding = gradient_matches_finite_differences(runs_of(in_bfloat16, *batch()))
    assert finding.verdict == NOT_APPLICABLE
    assert "bf16" in finding.detail


def test_batch_dependence():
    x, y = batch()
    alone = independent_of_the_batch(runs_of(network, x, y))
    assert (alone.verdict, alone.value) == (PASS, 0.0)
    together = independent_of_the_batch(runs_of(centred, x, y))
    assert together.verdict == FAIL
    single = np.argmax(network(jnp.zeros((1, VALUES))))  # alone, an input is its own mean
    changed = int((np.argmax(centred(x), axis=1) != single).sum())
    assert changed > 0
    assert together.value == changed
    assert f"{changed} alone" in together.detail
    one = independent_of_the_batch(runs_of(network, x[:1], y[:1]))
    assert one.verdict == NOT_APPLICABLE
