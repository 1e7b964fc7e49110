"""What cannot be checked is refused in words; boxes of several kinds."""

import dataclasses
import inspect
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import NotFiniteError, Threat
from steinnorm.attacks._arguments import check_key
from steinnorm.attacks.checks import (
    NOT_APPLICABLE,
    PASS,
    CheckSettings,
    attack_strength,
    run_checks,
)
from steinnorm.attacks.checks.box import box_limits, whole_box_factor
from steinnorm.attacks.checks.gradients import gradient_matches_finite_differences, zero_gradients
from tests.attacks.checks.models import EXAMPLES, THREAT, linear_problem, network, runs_of

MODEL, X, Y = linear_problem()
WRONG = {
    "key": (0, "key must be a jax.random.key; got int; write jax.random.key(0)"),
    "logits_fn": (None, "logits_fn must be a function of a batch; got None"),
    "x": (None, "x must be an array of inputs (B, ...); got None"),
    "y": ("three", "y must be an array of integer labels (B,) or (B, H, W); got 'three'"),
    "threat": (0.1, "threat must be a Threat; got 0.1: write Threat('linf', 8 / 255)"),
    "settings": ({"steps": 3}, "settings must be CheckSettings, or None; got dict"),
    "twin": (3, "twin must be a function of a batch, or None; got 3"),
}


def checked(**changes):
    arguments = {"logits_fn": MODEL, "x": X, "y": Y, "threat": THREAT, **changes}
    first = [arguments.pop(name) for name in ("logits_fn", "x", "y")]
    return run_checks(*first, **arguments)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    given, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(**{name: given})


def test_losses_must_fit_the_labels_and_count_once():
    for loss, message in (("segpgd", "is for a label per pixel"), ("dlr", "dlr needs 3 logits")):
        with pytest.raises(ValueError, match=rf"CheckSettings\.losses: .*{message}"):
            checked(settings=CheckSettings(losses=(loss,)))
    with pytest.raises(ValueError, match=r"losses must be a tuple of some of .*got \('no',\)"):
        checked(settings=CheckSettings(losses=("no",)))
    seen = runs_of(MODEL, X, Y, CheckSettings(losses=("kl", "cross_entropy", "kl")))
    assert seen.settings.losses == ("kl",)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="got list"):
        checked(x=[[0.1, 0.2], [0.3]])
    with pytest.raises(ValueError, match="key must be"):
        checked(key=jax.random.split(jax.random.key(0)))
    with pytest.raises(ValueError, match="radius 0"):
        checked(threat=Threat("linf", 0.0))
    with pytest.raises(ValueError, match="non-empty"):
        checked(x=X[:0], y=Y[:0])
    with pytest.raises(ValueError, match="integer labels"):
        checked(y=Y.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"dtype bool; use y\.astype\(int\)"):
        checked(y=Y > 0)
    with pytest.raises(ValueError, match=r"dtype bool\. Scale images to \[0, 1\] first"):
        checked(x=X > 0.5)
    with pytest.raises(ValueError, match=r"inputs \(B, ...\); got an array of dtype object"):
        checked(x=np.asarray(X).astype(object))
    with pytest.raises(NotFiniteError, match=f"NaN or infinite logits for {EXAMPLES} of"):
        checked(logits_fn=lambda x: jnp.full((len(x), 2), jnp.nan))


def test_keys_of_both_forms_and_none():
    for key in (None, jax.random.key(3), jax.random.PRNGKey(3)):
        check_key(key)
    for key in (jax.random.split(jax.random.key(3)), jnp.zeros(3, jnp.uint32)):
        with pytest.raises(ValueError, match="got an array of shape"):
            check_key(key)


def test_legacy_keys_are_those_of_the_generator_that_jax_uses():
    """Others pass for arrays to JAX, which names the data of the key in a TypeError."""
    keys = {"threefry2x32": jax.random.PRNGKey(3), "rbg": jax.random.PRNGKey(3, impl="rbg")}
    for used in keys:
        with jax.default_prng_impl(used):
            for name, key in keys.items():
                if name == used:
                    check_key(key)
                    with pytest.raises(ValueError, match=r"write jnp\.asarray\(key\)"):
                        check_key(np.asarray(key))
                    continue
                for given in (key, np.asarray(key)):
                    with pytest.raises(ValueError, match=rf"key\(seed, impl='{name}'\)"):
                        check_key(given)
    refused = pytest.raises(ValueError, match=r"shape \(4,\) .*no legacy key of JAX's default")
    with refused:
        jax.jit(lambda key: check_key(key, traced=True))(keys["rbg"])


def test_box_without_bounds():
    x = np.array([[-3.0, 5.0], [1.0, 2.0]], np.float32)
    free = SimpleNamespace(norm="linf", epsilon=0.25, bounds=None)
    low, high, width = box_limits(free, x)
    assert (low, high, width) == (-np.inf, np.inf, 8.0)
    assert box_limits(free, np.ones((2, 2)))[2] == 0.5  # all values the same: what the ball spans
    assert whole_box_factor(free, (2,)) is None


def test_box_of_several_channels():
    bounds = (np.array([0.0, -1.0]), np.array([1.0, 3.0]))
    wide = SimpleNamespace(norm="linf", epsilon=np.array([0.5, 0.25]), bounds=bounds)
    np.testing.assert_array_equal(box_limits(wide, np.zeros((1, 3, 2)))[2], [1.0, 4.0])
    assert whole_box_factor(wide, (3, 2)) == 16
    fixed = SimpleNamespace(norm="linf", epsilon=np.array([0.5, 0.0]), bounds=bounds)
    assert whole_box_factor(fixed, (3, 2)) == 2  # the other channel cannot be changed
    ball = SimpleNamespace(norm="l2", epsilon=0.5, bounds=bounds)
    assert whole_box_factor(ball, (3, 2)) == pytest.approx(np.sqrt(3 * (1 + 16)) / 0.5)


def test_checks_without_bounds():
    seen = runs_of(MODEL, 7 * X, jnp.argmax(MODEL(7 * X), axis=1), threat=Threat("linf", 0.1, None))
    huge = attack_strength.huge_radius_reaches_chance(seen)
    assert huge.verdict == NOT_APPLICABLE
    assert "no bounds" in huge.detail
    assert gradient_matches_finite_differences(seen).verdict == PASS


def test_inputs_spread_over_devices():
    mesh = jax.make_mesh((2,), ("batch",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x, y = jax.device_put(X, spread), jax.device_put(Y, spread)
    here, there = runs_of(network, X, Y), runs_of(network, x, y, batch_dependent=False)
    assert len(there.problem.x.sharding.device_set) == 2
    for check in (zero_gradients, gradient_matches_finite_differences):
        one, two = check(here), check(there)
        assert one.verdict == two.verdict == PASS
        assert two.value == pytest.approx(one.value, abs=1e-3)


def test_every_setting_has_a_meaning():
    described = inspect.getdoc(CheckSettings)  # whose indentation depends on the Python
    for field in dataclasses.fields(CheckSettings):
        assert f"\n  {field.name}: " in described
