"""Gradients that are missing, wrong, or right in spite of kinks."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, pgd
from steinnorm.attacks.checks import FAIL, NOT_APPLICABLE, PASS, CheckSettings
from steinnorm.attacks.checks.batches import independent_of_the_batch
from steinnorm.attacks.checks.gradients import gradient_matches_finite_differences, zero_gradients
from tests.attacks.checks.models import (
    EXAMPLES,
    SMALL,
    VALUES,
    all_in_bfloat16,
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
    squashed,
    with_gradient,
)


def batch():
    return jnp.asarray(draws(EXAMPLES, VALUES, seed=11)), jnp.arange(EXAMPLES) % 3


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_sure_logits_alone_hide_no_gradient(scale):
    finding = zero_gradients(runs_of(*linear_problem(scale)))
    assert (finding.verdict, finding.value) == (PASS, 0.0)


def several_classes(scale, last):
    """A linear model of seven classes whose logits go through ``last`` inside, and its batch."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(30, 7)), jnp.float32)
    x = jnp.asarray(draws(100, 30, seed=1))
    return lambda x: last(scale * (x @ weights)), x, jnp.argmax(x @ weights, axis=1)


def cut_off(logits):
    return jnp.log(jax.nn.softmax(logits) + 1e-12)


@pytest.mark.parametrize(
    ("last", "scale"), [(squashed, 30.0), (squashed, 1e4), (cut_off, 30.0), (jnp.tanh, 30.0)]
)
def test_answers_that_saturate_inside_the_model_are_found(last, scale):
    finding = zero_gradients(runs_of(*several_classes(scale, last)))
    assert finding.verdict == FAIL
    assert finding.value > 0.2


@pytest.mark.parametrize(("last", "scale"), [(squashed, 30.0), (squashed, 1e4), (cut_off, 30.0)])
def test_what_saturates_does_mislead_attacks(last, scale):
    """The premise of the test above: the same predictions fall where nothing saturates."""
    threat, left = Threat("linf", 0.15), []
    for model, x, y in (several_classes(scale, last), several_classes(1.0, lambda z: z)):
        result = pgd(model, x, y, threat=threat, loss="margin", steps=10)
        left.append(1 - np.asarray(result.success).mean())
    assert left[0] > left[1] + 0.03


def test_rounding_of_either_sign_is_told_from_zero():
    seen = runs_of(*several_classes(30.0, squashed))
    finding = zero_gradients(seen)
    rounding = float(re.search(r"rounding in ([\d.]+) %", finding.detail)[1])
    zero = float(re.search(r"all zero in ([\d.]+) %", finding.detail)[1])
    assert rounding > 40 > zero > 0
    assert finding.value == pytest.approx((rounding + zero) / 100)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_log_softmax_inside_hides_nothing(scale):
    # Differences of its logits are exact, and so is the margin's gradient through it.
    threat = Threat("linf", 0.02)
    inside = runs_of(*several_classes(scale, jax.nn.log_softmax), threat=threat)
    assert zero_gradients(inside).verdict == PASS
    plain = runs_of(*several_classes(1.0, lambda z: z), threat=threat)
    broken = [
        np.asarray(pgd(s.problem.model, s.x, s.y, threat=threat, loss="margin", steps=10).success)
        for s in (inside, plain)
    ]
    assert np.sum(broken[0] != broken[1]) <= 1


@pytest.mark.parametrize("model", [network, batch_norm, centred, in_bfloat16, all_in_bfloat16])
def test_honest_networks_have_gradients(model):
    finding = zero_gradients(runs_of(model, *batch()))
    assert (finding.verdict, finding.value) == (PASS, 0.0), finding.detail


@pytest.mark.parametrize("common", [0.0, 3.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_all_logits_share_is_not_taken_for_rounding(common, dtype):
    def model(x):
        return all_in_bfloat16(x, dtype, common)

    assert zero_gradients(runs_of(model, *batch())).verdict == PASS


@pytest.mark.parametrize(
    "model",
    [lambda x: network(jnp.round(15 * x) / 15), lambda x: network(jax.lax.stop_gradient(x))],
)
def test_quantised_or_stopped_inputs_have_none(model):
    finding = zero_gradients(runs_of(model, *batch()))
    assert (finding.verdict, finding.value) == (FAIL, 1.0)


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


def test_a_right_gradient_that_turns_within_short_steps_matches():
    # A sine of 6000 x: its central differences over 1e-4 are sin(0.6) / 0.6 - 1 = 6 % off.
    def waves(x):
        return jnp.sin(6000 * x).reshape(len(x), -1)[:, :3]

    def error(*steps):
        settings = dataclasses.replace(CheckSettings(), difference_steps=steps)
        return gradient_matches_finite_differences(runs_of(waves, *batch(), settings)).value

    assert error(1e-2, 1e-3, 1e-4) > 0.05
    finding = gradient_matches_finite_differences(runs_of(waves, *batch(), CheckSettings()))
    assert finding.verdict == PASS, finding.detail
    assert finding.value < 0.01


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
