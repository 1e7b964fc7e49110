"""For every check a model on which it passes and one on which it must fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks.checks import FAIL, NOT_APPLICABLE, PASS, attack_strength, runs
from steinnorm.attacks.threat import LeftThreatError, Threat
from tests.attacks.checks.models import (
    EXAMPLES,
    SMALL,
    VALUES,
    dead_outside,
    draws,
    linear_problem,
    needle,
    point,
    runs_of,
    sure_brightness,
    trapping,
)

ALL = [
    attack_strength.iterative_not_weaker,
    attack_strength.larger_radius_not_weaker,
    attack_strength.huge_radius_reaches_chance,
    attack_strength.twice_the_steps,
    attack_strength.more_restarts,
    attack_strength.square_not_stronger,
    attack_strength.transfer_not_stronger,
]


@pytest.fixture(scope="module")
def plain():
    model, x, y = linear_problem()
    return runs_of(model, x, y, twin=model)


@pytest.fixture(scope="module")
def masked():
    """So sure that the cross-entropy has no gradient; its twin is the same without the scale."""
    model, x, y = linear_problem(scale=1e6)
    return runs_of(model, x, y, twin=linear_problem()[0])


def best_possible(epsilon):
    """Accuracy of a linear model under the best linf attack, in float64: away from the box."""
    model, x, y = linear_problem()
    weights = np.asarray(model.args[0], np.float64)
    x, y = np.asarray(x, np.float64), np.asarray(y)
    away = (weights[:, 1] - weights[:, 0]) * np.where(y == 0, 1, -1)[:, None]
    worst = np.clip(x + epsilon * np.sign(away), 0, 1)
    return np.mean((worst * away).sum(axis=1) < 0)


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_a_linear_model_passes(plain, check):
    finding = check(plain)
    assert finding.verdict == PASS, finding.detail
    assert finding.name == check.__name__
    assert f"{EXAMPLES} examples" in finding.detail


def test_accuracies_are_those_of_the_best_attack_on_a_linear_model(plain):
    for radius in (0.5, 1.0, 2.0):
        found = plain.pgd(SMALL.steps, radius=radius).accuracy
        assert found == pytest.approx(best_possible(radius * SMALL.epsilon))
    assert 0 < plain.pgd(SMALL.steps).accuracy < 1  # else the checks above show nothing


def test_single_step_that_beats_many_is_found():
    finding = attack_strength.iterative_not_weaker(runs_of(trapping, *point(8)))
    assert finding.verdict == FAIL
    assert finding.value > 0.9


def test_larger_ball_that_helps_the_model_is_found():
    seen = runs_of(dead_outside, *point())
    finding = attack_strength.larger_radius_not_weaker(seen)
    assert finding.verdict == FAIL
    expected = seen.pgd(SMALL.steps, radius=2.0).accuracy - seen.pgd(SMALL.steps).accuracy
    assert finding.value == expected > 0.3


def test_model_that_no_radius_breaks_is_found():
    x = np.where(np.arange(EXAMPLES)[:, None] % 2, 0.9, 0.1) + draws(EXAMPLES, 60, high=0.05)
    x, y = jnp.asarray(x, jnp.float32), jnp.arange(EXAMPLES, dtype=jnp.int32) % 2
    finding = attack_strength.huge_radius_reaches_chance(runs_of(sure_brightness, x, y))
    assert finding.verdict == FAIL
    assert finding.value > 0.7


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_huge_radius_holds_the_whole_box(norm):
    model, x, y = linear_problem()
    seen = runs_of(model, x, y, dataclasses.replace(SMALL, norm=norm))
    farthest = 1 if norm == "linf" else np.sqrt(VALUES)
    assert seen.widest * SMALL.epsilon == pytest.approx(farthest)
    wide = runs.Runs(
        runs.Target(model, bounds=(-1.0, 3.0)), x, y, config=SMALL, key=jax.random.key(0)
    )
    assert wide.widest * SMALL.epsilon == pytest.approx(4)


@pytest.mark.parametrize("check", [attack_strength.twice_the_steps, attack_strength.more_restarts])
def test_attack_that_has_not_converged_is_found(check):
    finding = check(runs_of(needle, *point()))
    assert finding.verdict == FAIL
    assert finding.value > 0.1


def test_converged_is_less_than_one_point_and_not_weaker_is_one_at_most():
    def with_accuracies(**accuracies):
        class Fake:
            config, size = SMALL, "100 examples"

            def fgsm(self):
                return runs.Outcome(np.zeros(1, bool), runs.Tally(accuracies["fgsm"], 100))

            def pgd(self, steps, **_):
                hits = accuracies["once" if steps == SMALL.steps else "twice"]
                return runs.Outcome(np.zeros(1, bool), runs.Tally(hits, 100))

        return Fake()

    one_apart = with_accuracies(fgsm=29, once=30, twice=29)
    assert attack_strength.iterative_not_weaker(one_apart).verdict == PASS
    assert attack_strength.twice_the_steps(one_apart).verdict == FAIL
    two_apart = with_accuracies(fgsm=28, once=30, twice=30)
    assert attack_strength.iterative_not_weaker(two_apart).verdict == FAIL
    assert attack_strength.twice_the_steps(two_apart).verdict == PASS


def test_search_without_gradients_that_wins_is_found(masked):
    finding = attack_strength.square_not_stronger(masked)
    assert finding.verdict == FAIL
    assert finding.value > 0.1
    never = np.ones(EXAMPLES, bool)
    for outcome in masked.white_box():
        never &= ~outcome.broken
    alone = int((masked.square().broken & never).sum())
    assert alone > 0
    assert f"{alone} examples broken by Square alone" in finding.detail


def test_transfer_that_wins_is_found(masked):
    finding = attack_strength.transfer_not_stronger(masked)
    assert finding.verdict == FAIL
    assert finding.value > 0.1


def test_what_cannot_be_checked_says_why():
    model, x, y = linear_problem()
    bare = dataclasses.replace(SMALL, restarts=1, square_queries=0)
    seen = runs_of(model, x, y, bare, reason="the model is its own twin")
    for check, reason in [
        (attack_strength.more_restarts, "one restart"),
        (attack_strength.square_not_stronger, "no queries"),
        (attack_strength.transfer_not_stronger, "its own twin"),
    ]:
        finding = check(seen)
        assert (finding.verdict, finding.value) == (NOT_APPLICABLE, None)
        assert reason in finding.detail


def test_every_attack_is_run_once(monkeypatch):
    model, x, y = linear_problem()
    calls = []

    def counted(attack):
        def call(*args, **settings):
            chosen = (settings.get("steps"), settings.get("restarts"))
            calls.append((attack.__name__, *chosen, settings["threat"].epsilon))
            return attack(*args, **settings)

        return call

    for name in ("fgsm", "pgd", "square"):
        monkeypatch.setattr(runs, name, counted(getattr(runs, name)))
    seen = runs_of(model, x, y)
    for check in ALL:
        check(seen)
    assert sorted(epsilon for _, steps, _, epsilon in calls if steps == SMALL.steps) == (
        pytest.approx([0.05, 0.1, 0.1, 0.2, 1.0])  # 0.1 twice: also with restarts
    )
    assert len(calls) == len(set(calls)) == 8  # and twice the steps, FGSM, Square


def test_attack_that_leaves_its_ball_is_not_a_finding(monkeypatch):
    model, x, y = linear_problem()

    def cheating(logits_fn, x, y, **settings):
        wider = Threat("linf", 2 * settings["threat"].epsilon)
        return runs.Problem.of(logits_fn, x, y, wider).result(jnp.clip(x + wider.epsilon, 0, 1))

    monkeypatch.setattr(runs, "pgd", cheating)
    with pytest.raises(LeftThreatError, match="pgd"):
        attack_strength.twice_the_steps(runs_of(model, x, y, twin=model))
    with pytest.raises(LeftThreatError, match="twin"):
        attack_strength.transfer_not_stronger(runs_of(model, x, y, twin=model))


def test_batch_that_hangs_together_is_attacked_and_kept_as_a_whole(monkeypatch):
    model, x, y = linear_problem()
    given = []

    def seen(*args, **settings):
        given.append((len(args[1]), settings["batch_dependent"], settings["threat"]))
        return runs.Problem.of(*args, Threat("linf", 0.1)).result(args[1])

    monkeypatch.setattr(runs, "pgd", seen)
    monkeypatch.setattr(runs, "square", seen)
    for known in (True, False):
        target = runs.Target(model, batch_dependent=known)
        whole = runs.Runs(target, x, y, config=SMALL, key=jax.random.key(0))
        assert whole.joint is known
        whole.pgd(3)
        whole.square()
        assert given == [(EXAMPLES, known, Threat("linf", 0.1))] * 2
        given.clear()
