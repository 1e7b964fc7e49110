"""Models whose arrays are bound to a device, as those of a checkpoint are, compile once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, fgsm, pgd, square

THREAT = Threat("linf", 0.1)
COMPILED = []


@jax.monitoring.register_event_duration_secs_listener
def _note(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(duration)


def _logits(weights, x):
    return x @ weights


def _attacked(attack, weights, x, y, **settings):
    """How many programs an attack compiles, and the attacked inputs."""
    jax.clear_caches()
    before = len(COMPILED)
    model = jax.tree_util.Partial(_logits, weights)
    x_adv = attack(model, x, y, threat=THREAT, **settings).x_adv
    return len(COMPILED) - before, x_adv


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (fgsm, {}),
        (pgd, {"steps": 3}),
        (apgd, {"steps": 3}),
        (square, {"queries": 3, "key": jax.random.key(0)}),
    ],
)
def test_a_bound_model_compiles_no_more_programs_than_one_that_is_not(attack, settings):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    x = jnp.asarray(rng.uniform(size=(5, 6)), jnp.float32)
    y = jnp.argmax(x @ weights, axis=-1)
    free, expected = _attacked(attack, weights, x, y, **settings)
    device = jax.devices()[-1]
    bound, found = _attacked(attack, jax.device_put(weights, device), x, y, **settings)
    assert free > 0
    assert bound <= free + 1  # one program more may bring the inputs to the device
    assert found.devices() == {device}
    np.testing.assert_array_equal(found, expected)
