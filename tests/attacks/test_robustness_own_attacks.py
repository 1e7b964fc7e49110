"""Attacks of one's own are judged by us, and told apart by all that they depend on."""

import functools
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import evaluate_robustness, fgsm, pgd
from steinnorm.attacks.robustness import identity
from tests.attacks.one_call import QUIET, measure
from tests.attacks.three_wrong import X, Y, linear


def test_attacks_of_ones_own_are_judged_by_us():
    def mine(logits_fn, x, y, *, threat, key):
        return fgsm(logits_fn, x, y, threat=threat, key=key)

    found = evaluate_robustness(
        linear, X, Y, epsilons=0.1, attacks=(mine, "gaussian", "fgsm"), batch_size=10, **QUIET
    )
    assert found.row("mine", 0.1).value == found.row("fgsm", 0.1).value
    assert found.row("gaussian", 0.1).norm_order == ""
    assert found.row("worst", 0.1).over == "fgsm, mine"

    def outside(logits_fn, x, y, *, threat, key):
        found = fgsm(logits_fn, x, y, threat=threat, key=key)
        return found._replace(x_adv=jnp.clip(x + 0.3, 0.0, 1.0))

    with pytest.raises(AssertionError, match="left its ball or box"):
        evaluate_robustness(linear, X, Y, epsilons=0.1, attacks=outside, batch_size=10, **QUIET)
    named = functools.partial(pgd, steps=2)
    twice = evaluate_robustness(linear, X, Y, epsilons=0.1, attacks=named, batch_size=10, **QUIET)
    assert [row.attack for row in twice.rows] == ["none", "pgd", "worst"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x, "mine must return an AttackResult, or another object with x_adv; got Array"),
        (lambda x: types.SimpleNamespace(x_adv=x[:1]), r"mine must return floating x_adv of shape"),
        (lambda x: types.SimpleNamespace(x_adv=None), r"mine must return floating x_adv of shape"),
    ],
)
def test_attacks_that_return_something_else(answer, message):
    def mine(logits_fn, x, y, *, threat, key):
        return answer(x)

    with pytest.raises(ValueError, match=message):
        measure(attacks=mine)


def test_functions_of_ones_own_are_told_by_what_they_close_over():
    def made(steps, more=0):
        def attack(logits_fn, x, y, *, threat, key):
            return fgsm(logits_fn, x, y, threat=threat, key=key), steps, more

        return attack

    describe = identity.describe_attack
    assert describe(made(3)) == describe(made(3)) is not None
    assert describe(made(3)) != describe(made(4))
    assert describe(made(np.ones(3))) != describe(made(np.zeros(3)))
    assert describe(made(object())) is None  # nobody can tell: never taken from a file


SOURCE = """
import jax
import jax.numpy as jnp
import helpers
from steinnorm.attacks import fgsm
STEPS, TABLE, OTHER = 3, {"a": [1, 2]}, 0

def moved(x):
    return x + helpers.inner.LENGTH * STEPS

jitted = jax.jit(moved)

def attack(logits_fn, x, y, *, threat, key):
    def nested(z):
        return [TABLE["a"] for _ in range(2)], jitted(z)
    return fgsm(logits_fn, jnp.clip(x, 0, 1), y, threat=threat), nested, attack
"""


@pytest.fixture
def mine(monkeypatch):
    helpers, module = types.ModuleType("helpers"), types.ModuleType("mine")
    helpers.inner = types.ModuleType("helpers.inner")
    helpers.inner.LENGTH = 0.5
    monkeypatch.setitem(sys.modules, "helpers", helpers)
    exec(SOURCE, vars(module))
    return module, helpers


def test_an_attack_of_ones_own_is_told_by_the_globals_it_reads(mine):
    module, helpers = mine
    first = identity.describe_attack(module.attack)
    assert first is not None
    module.OTHER = 1  # which nothing reads
    assert identity.describe_attack(module.attack) == first
    for where, name, other in (
        (module, "STEPS", 4),
        (module, "TABLE", {"a": [1, 3]}),
        (module, "moved", lambda x: x),
        (helpers.inner, "LENGTH", 0.6),
        (module, "fgsm", pgd),
        (module, "jnp", np),
    ):
        before = getattr(where, name)
        setattr(where, name, other)
        found = identity.describe_attack(module.attack)
        # The function that was compiled is the old one, whatever has its name now.
        assert (found == first) == (name == "moved"), name
        setattr(where, name, before)
        assert identity.describe_attack(module.attack) == first
    for unknown in (object(), np.random.default_rng(0), helpers):
        module.TABLE = unknown
        assert identity.describe_attack(module.attack) is None


LENGTH = 0.01


def by_a_global(logits_fn, x, y, *, threat, key):
    found = fgsm(logits_fn, x, y, threat=threat, key=key)
    moved = x + LENGTH * jnp.sign(found.x_adv - x)
    return found._replace(x_adv=jnp.where((x > 0.1) & (x < 0.9), moved, x))


def test_results_of_another_global_are_not_reused(tmp_path, monkeypatch):
    assert measure(tmp_path, attacks=by_a_global).rows[1].max_norm == pytest.approx(0.01, abs=1e-6)
    monkeypatch.setitem(globals(), "LENGTH", 0.04)
    assert measure(tmp_path, attacks=by_a_global).rows[1].max_norm == pytest.approx(0.04, abs=1e-6)
