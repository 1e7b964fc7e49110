"""Inputs, labels and targets: what does not fit is refused with a way out, the rest is attacked."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, autoattack, fgsm, pgd, square
from tests.attacks.problems import CLASSES, EXAMPLES, draws, problem

THREAT = Threat("linf", 0.1)


def test_soft_labels_are_refused_with_a_way_out():
    model, _, x, y = problem()
    for soft in (jax.nn.one_hot(y, CLASSES), jax.nn.one_hot(y, CLASSES, dtype=jnp.int32)):
        with pytest.raises(ValueError, match=r"soft and one-hot labels are not supported.*argmax"):
            fgsm(model, x, soft, threat=THREAT)


def test_normalised_inputs_are_refused_with_a_way_out():
    # Normalising outside the model makes a radius mean something else, and the box wrong.
    model, _, x, y = problem()
    with pytest.raises(ValueError, match=r"normalise inside logits_fn, or set the threat's bounds"):
        fgsm(model, (x - 0.47) / 0.25, y, threat=THREAT)
    # The round-off of undoing a normalisation is let pass, and mended.
    close = x.at[0, 0, 0, 0].set(-3e-8)
    assert fgsm(model, close, y, threat=THREAT).min >= 0


def test_labels_of_pixels_may_be_void_but_not_targets():
    per_pixel = jax.tree_util.Partial(lambda x: jnp.concatenate([x, 2 - x], axis=-1))
    x, y = draws(2, 3, 4, 1), jnp.zeros((2, 3, 4), jnp.int32).at[0, 0, 0].set(255)
    result = fgsm(per_pixel, x, y, threat=THREAT)
    assert result.success.shape == y.shape
    assert not result.success[0, 0, 0]
    np.testing.assert_array_equal(result.x_adv[0, 0, 0], x[0, 0, 0])  # no gradient comes from it
    with pytest.raises(ValueError, match=r"or 255 \(void\)"):
        fgsm(per_pixel, x, y.at[0, 0, 1].set(7), threat=THREAT)
    with pytest.raises(ValueError, match=r"target must lie in \[0, 2\)"):
        pgd(per_pixel, x, y, threat=THREAT, target=y)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_inputs_are_attacked_in_single_precision(dtype):
    model, _, x, y = problem()
    single = jax.tree_util.Partial(lambda model, x: model(x.astype(jnp.float32)), model)
    result = pgd(single, x.astype(dtype), y, threat=Threat("linf", 1.0), steps=5)
    assert result.x_adv.dtype == jnp.float32
    assert result.success.all()


def test_more_classes_than_labels_in_a_map_are_refused():
    many = jax.tree_util.Partial(lambda x: jnp.broadcast_to(x, (*x.shape[:3], 300)))
    with pytest.raises(ValueError, match="at most 255 classes per pixel"):
        fgsm(many, draws(2, 3, 4, 1), jnp.zeros((2, 3, 4), jnp.int32), threat=THREAT)


@pytest.mark.parametrize("attack", [square, autoattack])
def test_without_a_key_the_numbers_are_the_same_at_every_call(attack):
    model, _, x, y = problem()
    more = {"steps": 3} if attack is autoattack else {}
    one, two = (attack(model, x, y, threat=THREAT, queries=10, **more) for _ in range(2))
    np.testing.assert_array_equal(one.x_adv, two.x_adv)


def test_labels_that_32_bits_cannot_hold_are_refused():
    x, y = draws(3, 4), np.array([0, 1, 2])
    weights = draws(4, 3)
    with pytest.raises(ValueError, match=r"y must lie in \[0, 3\); got labels in \[4294967296"):
        pgd(lambda x: x @ weights, x, y + 2**32, threat=THREAT, steps=1, step_size=0.1)
    with pytest.raises(ValueError, match="target must lie in"):
        pgd(lambda x: x @ weights, x, y, threat=THREAT, target=y + 2**32, steps=1, step_size=0.1)


def test_the_right_label_is_no_target():
    x, y = draws(3, 4), np.array([0, 1, 2])
    weights = draws(4, 3)
    with pytest.raises(ValueError, match="1 of 3 targets are the true label"):
        fgsm(lambda x: x @ weights, x, y, threat=THREAT, target=np.array([0, 2, 1]))


def test_labels_of_a_single_logit_are_told_their_form():
    model, _, x, _ = problem()
    single = jax.tree_util.Partial(lambda model, x: model(x)[:, :1], model)
    y = np.arange(EXAMPLES) % 2
    for labels, hint in (
        (y[:, None], "y.squeeze(-1)"),
        (y.astype(np.float32), "y.astype(int)"),
        (y[:, None] == 1, "y.squeeze(-1).astype(int)"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"; use {hint}") + "$"):
            fgsm(single, x, labels, threat=THREAT)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_is_refused_in_large_inputs_too(bounds, value):
    """On CPUs the largest value of a large array passes over NaN."""
    x = np.full((2, 5000), 0.5, np.float32)
    x[1, 7] = value
    with pytest.raises(ValueError, match="x must be finite; got NaN or infinite values"):
        fgsm(lambda x: x[:, :3], x, np.zeros(2, int), threat=Threat("linf", 0.1, bounds))
