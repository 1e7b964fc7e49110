"""Attacks under ``jax.disable_jit``, as one debugs a model: they do what they do compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import (
    Threat,
    apgd,
    autoattack,
    fab,
    fgsm,
    pgd,
    pgd_scan,
    sea,
    segpgd,
    square,
)
from tests.attacks.problems import KEY, problem

MODEL, _, X, Y = problem()


def per_pixel(x):
    return jnp.concatenate([x, 1 - x, 0.5 * x + 0.1], axis=-1)


MAPS = X[:2, :3, :3]
LABEL_MAPS = jnp.argmax(per_pixel(MAPS), axis=-1)

CLASSES = {
    "fgsm": fgsm,
    "pgd": functools.partial(pgd, steps=2, restarts=2),
    "apgd": functools.partial(apgd, steps=2),
    "fab": functools.partial(fab, steps=2),
    "square": functools.partial(square, queries=3),
    "autoattack": functools.partial(autoattack, steps=2, queries=3),
}
PIXELS = {
    "segpgd": functools.partial(segpgd, steps=2),
    "sea": functools.partial(sea, steps=4),
}


def same_without_jit(attack, model, x, y):
    call = functools.partial(attack, model, x, y, threat=Threat("linf", 0.05), key=KEY)
    with jax.disable_jit():
        plain = call()
    compiled = call()
    np.testing.assert_array_equal(plain.success, compiled.success)
    np.testing.assert_allclose(plain.x_adv, compiled.x_adv, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_attacks_on_classes(name):
    same_without_jit(CLASSES[name], MODEL, X, Y)


@pytest.mark.parametrize("name", PIXELS)
def test_attacks_on_label_maps(name):
    same_without_jit(PIXELS[name], per_pixel, MAPS, LABEL_MAPS)


def test_pgd_in_one_scan():
    call = functools.partial(pgd_scan, MODEL, X, Y, threat=Threat("linf", 0.05), steps=2)
    with jax.disable_jit():
        plain = call()
    np.testing.assert_allclose(plain, call(), atol=1e-6)
