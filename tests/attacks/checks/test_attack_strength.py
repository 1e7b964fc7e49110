"""For every check a model on which it passes and one on which it must fail."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from steinnorm.attacks import LeftThreatError, Threat
from steinnorm.attacks.checks import FAIL, NOT_APPLICABLE, PASS, attack_strength, runs
from steinnorm.attacks.checks.paired import BrokenLabels
from tests.attacks.checks.models import (
    EXAMPLES,
    SMALL,
    THREAT,
    VALUES,
    crowded,
    dead_outside,
    draws,
    linear_problem,
    needle,
    point,
    runs_of,
    squashed,
    sure_brightness,
    trapping,
)

ALL = [
    attack_strength.iterative_not_weaker,
    attack_strength.larger_radius_not_weaker,
    attack_strength.huge_radius_reaches_chance,
    attack_strength.twice_the_steps,
    attack_strength.more_restarts,
    attack_strength.margin_not_stronger,
    attack_strength.square_not_stronger,
    attack_strength.transfer_not_stronger,
]


@pytest.fixture(scope="module")
def plain():
    model, x, y = linear_problem()
    return runs_of(model, x, y, twin=model)


@pytest.fixture(scope="module")
def masked():
    """A softmax of sure logits inside, so that no loss has a gradient; its twin is without both."""
    model, x, y = linear_problem(scale=1e6, last=squashed)
    patient = dataclasses.replace(SMALL, square_queries=300)
    return runs_of(model, x, y, patient, twin=linear_problem()[0])


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
        assert found == pytest.approx(best_possible(radius * THREAT.epsilon))
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
    assert finding.value == pytest.approx(expected)
    assert expected > 0.3


def test_model_that_no_radius_breaks_is_found():
    x = np.where(np.arange(EXAMPLES)[:, None] % 2, 0.9, 0.1) + draws(EXAMPLES, 60, high=0.05)
    x, y = jnp.asarray(x, jnp.float32), jnp.arange(EXAMPLES, dtype=jnp.int32) % 2
    finding = attack_strength.huge_radius_reaches_chance(runs_of(sure_brightness, x, y))
    assert finding.verdict == FAIL
    assert finding.value > 0.7


def _lost_and_fragile(x):
    """Logits of 2 x 5 pixels of which 4 are lost, the more the larger the input; 6 fall near 0."""
    level = x.reshape(len(x), 1, 1)
    lost = jnp.arange(10).reshape(1, 2, 5) < 4
    margin = jnp.where(lost, -40 * (level + 0.1), 4 * (level - 0.2))
    return jnp.stack([margin, jnp.zeros_like(margin)], axis=-1)


def test_huge_radius_is_reached_on_pixels_where_the_cross_entropy_keeps_to_those_that_are_lost():
    x = jnp.asarray(draws(8, 1, 1, 1, low=0.4, high=0.6))
    seen = runs_of(_lost_and_fragile, x, jnp.zeros((8, 2, 5), jnp.int32))
    assert seen.pgd(SMALL.steps, radius=seen.widest).accuracy == pytest.approx(0.6)
    finding = attack_strength.huge_radius_reaches_chance(seen)
    assert (finding.verdict, finding.value) == (PASS, 0.0)
    assert "on the pixels still right with decreasing steps" in finding.detail


def _right_but_near_the_middle(x):
    """Logits of ten classes, the first of which is wrong for inputs within 0.015 of 0.5."""
    lead = 40 * (jnp.abs(x - 0.5) - 0.015)
    others = jnp.where(jnp.arange(9) == 0, 0.0, -100.0)
    return jnp.concatenate([lead[..., None], jnp.broadcast_to(others, (*x.shape, 9))], axis=-1)


@pytest.mark.parametrize("shape", [(), (2, 5)], ids=["classes", "pixels"])
def test_huge_radius_is_reached_by_decreasing_steps_where_constant_ones_jump_across(shape):
    def model(x):
        return _right_but_near_the_middle(x.reshape(len(x), *shape))

    x = jnp.asarray(draws(EXAMPLES, *(shape or (1,)), low=0.0, high=1.0))
    seen = runs_of(model, x, jnp.zeros((EXAMPLES, *shape), jnp.int32))
    jumping = seen.pgd(SMALL.steps, radius=seen.widest).accuracy
    finding = attack_strength.huge_radius_reaches_chance(seen)
    assert jumping > 0.4
    assert finding.verdict == PASS, finding.detail
    assert finding.value < 0.2
    assert "with decreasing steps" in finding.detail


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_huge_radius_holds_the_whole_box(norm):
    model, x, y = linear_problem()
    seen = runs_of(model, x, y, threat=Threat(norm, 0.2))
    farthest = 1 if norm == "linf" else np.sqrt(VALUES)
    assert seen.widest * 0.2 == pytest.approx(farthest)
    wide = runs_of(model, x, y, threat=Threat(norm, 0.2, (-1.0, 3.0)))
    assert wide.widest * 0.2 == pytest.approx(4 * farthest)


@pytest.mark.parametrize("check", [attack_strength.twice_the_steps, attack_strength.more_restarts])
def test_attack_that_has_not_converged_is_found(check):
    finding = check(runs_of(needle, *point()))
    assert finding.verdict == FAIL
    assert finding.value > 0.1


def with_broken(**broken):
    """Runs of 100 examples of which each attack has broken those at the given positions."""

    class Fake:
        settings, size = SMALL, "100 examples"
        labelled_examples, joint = broken.pop("labelled_examples", 100), broken.pop("joint", False)
        problem = SimpleNamespace(label_axes=0, threat=THREAT)
        known_labels, why_no_gradient = np.ones(100, int), ""

        def _of(self, name):
            wrong = np.zeros(100, int)
            wrong[list(broken.get(name, ()))] = 1
            return BrokenLabels(wrong, np.ones(100, int))

        def fgsm(self):
            return self._of("fgsm")

        def square(self):
            return self._of("square")

        def pgd(self, steps, *, radius=1.0, restarts=1, loss="cross_entropy"):
            if loss != "cross_entropy":
                return self._of(loss)
            if restarts > 1:
                return self._of("restarts")
            name = "once" if steps == SMALL.steps else "twice"
            return self._of({0.5: "half", 1.0: name, 2.0: "double"}[radius])

        def white_box(self):
            return [self._of(name) for name in ("fgsm", "once", "twice", "restarts")]

    return Fake()


COMPARED = [
    (attack_strength.iterative_not_weaker, "fgsm", ("once",)),
    (attack_strength.larger_radius_not_weaker, "once", ("double",)),
    (attack_strength.larger_radius_not_weaker, "half", ("once",)),
    (attack_strength.twice_the_steps, "twice", ("once",)),
    (attack_strength.more_restarts, "restarts", ("once",)),
    (attack_strength.margin_not_stronger, "margin", ("fgsm", "once", "twice", "restarts")),
    (attack_strength.square_not_stronger, "square", ("fgsm", "once", "twice", "restarts")),
]
NESTED = (attack_strength.margin_not_stronger, attack_strength.square_not_stronger)


@pytest.mark.parametrize(("check", "ahead", "behind"), COMPARED)
def test_verdict_is_one_sided_and_by_an_interval(check, ahead, behind):
    def verdict(more, fewer):
        base = set(range(40))
        sets = {"half": set(), "once": base, "double": base | {98, 99}}
        sets |= {"fgsm": base, "twice": base, "restarts": base}
        both = {"half", "once"} if ahead == "half" else {"once"}
        sets |= dict.fromkeys(behind if ahead != "once" else both, base)
        if ahead == "half":
            sets["double"] = set(range(100))
        if ahead == "once":
            sets["once"], sets["double"] = base, base
        lost = set(range(fewer))
        sets[ahead] = (base - lost) | set(range(40, 40 + more))
        return check(with_broken(**sets))

    assert verdict(1, 0).verdict == PASS  # one example of a hundred is no finding
    assert verdict(7, 0).verdict == FAIL
    assert verdict(7, 0).value == pytest.approx(0.07)
    assert verdict(0, 30).verdict == PASS  # the other direction never is
    if check not in NESTED:
        assert verdict(17, 10).verdict == PASS  # as many more, but it might be chance
        assert "10 against" in verdict(17, 10).detail
        # Student's t with 99 degrees of freedom, by hand.
        spread = np.std(np.repeat([1, -1, 0], [17, 10, 73]), ddof=1) / 10
        share = 0.975 if check is attack_strength.larger_radius_not_weaker else 0.95
        low = 0.07 - stats.t.ppf(share, 99) * spread
        assert f"interval {100 * low:+.1f} points" in verdict(17, 10).detail


def test_square_must_find_nothing_that_the_gradient_misses():
    found = {"fgsm": range(30), "once": range(60), "twice": range(60), "restarts": range(60)}
    # Fewer on the whole, and still ten that only a masked gradient can have missed.
    square = set(range(20)) | set(range(80, 90))
    alone = attack_strength.square_not_stronger(with_broken(**found, square=square))
    assert (alone.verdict, alone.value) == (FAIL, pytest.approx(0.1))
    assert "10 examples broken by Square alone" in alone.detail
    # A batch that depends on itself is attacked as a whole: there is no best of each example.
    whole = attack_strength.square_not_stronger(with_broken(**found, square=square, joint=True))
    assert (whole.verdict, whole.value) == (PASS, pytest.approx(-0.3))
    whole = attack_strength.square_not_stronger(with_broken(**found, square=range(70), joint=True))
    assert (whole.verdict, whole.value) == (FAIL, pytest.approx(0.1))


def test_loss_that_is_the_wrong_one_is_found():
    seen = runs_of(crowded, *point())
    finding = attack_strength.margin_not_stronger(seen)
    assert finding.verdict == FAIL
    assert seen.pgd(SMALL.steps, restarts=SMALL.restarts).accuracy == 1.0
    # Where the margin begins nearer to the crowd's edge, it goes there too: half of the starts.
    assert finding.value == pytest.approx(1 - seen.pgd(SMALL.steps, loss="margin").accuracy)
    assert 0.2 < finding.value < 0.8
    assert "the attacks on cross_entropy together 100.0 %; " in finding.detail


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_loss_of_the_evaluation_is_not_another_one(loss):
    settings = dataclasses.replace(SMALL, losses=("kl", loss))
    finding = attack_strength.margin_not_stronger(runs_of(crowded, *point(), settings))
    assert (finding.verdict, finding.value) == (NOT_APPLICABLE, None)
    assert f"itself: {', '.join(sorted(['kl', loss]))}" in finding.detail


def test_what_is_compared_with_is_the_worst_case_of_all():
    found = {"fgsm": range(30), "once": range(20, 60), "margin": range(10, 60)}
    finding = attack_strength.margin_not_stronger(with_broken(**found))
    assert (finding.verdict, finding.value) == (PASS, 0.0)
    assert "leaves 50.0 %, the attacks on cross_entropy together 40.0 %" in finding.detail
    whole = attack_strength.margin_not_stronger(with_broken(**found, joint=True))
    assert (whole.verdict, whole.value) == (FAIL, pytest.approx(0.1))
    assert "the best attack on cross_entropy 60.0 %, both of the whole batch" in whole.detail


def test_all_losses_of_the_evaluation_are_compared_with():
    def best(*losses):
        seen = runs_of(crowded, *point(), dataclasses.replace(SMALL, losses=losses))
        return min(outcome.accuracy for outcome in seen.white_box())

    assert best() == 1.0
    assert best("margin") < 0.8


def test_search_without_gradients_that_wins_is_found(masked):
    finding = attack_strength.square_not_stronger(masked)
    assert finding.verdict == FAIL
    assert finding.value > 0.1
    never = np.ones(EXAMPLES, bool)
    for outcome in masked.white_box():
        never &= outcome.broken == 0
    alone = int((masked.square().broken[never] > 0).sum())
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
            chosen = (settings.get("steps"), settings.get("restarts"), settings.get("loss"))
            calls.append((attack.__name__, *chosen, settings["threat"].epsilon))
            return attack(*args, **settings)

        return call

    for name in ("fgsm", "pgd", "square"):
        monkeypatch.setattr(runs, name, counted(getattr(runs, name)))
    seen = runs_of(model, x, y)
    for check in ALL:
        check(seen)
    assert sorted(epsilon for _, steps, *_, epsilon in calls if steps == SMALL.steps) == (
        pytest.approx([0.05, 0.1, 0.1, 0.1, 0.2, 1.0])  # also with restarts, and on the margin
    )
    assert len(calls) == len(set(calls)) == 9  # and twice the steps, FGSM, Square


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
        whole = runs_of(model, x, y, batch_dependent=known)
        assert whole.joint is known
        whole.pgd(3)
        whole.square()
        assert given == [(EXAMPLES, known, THREAT)] * 2
        given.clear()


@pytest.mark.parametrize("check", dict.fromkeys(row[0] for row in COMPARED))
def test_a_single_example_has_no_interval(check):
    finding = check(with_broken(labelled_examples=1))
    assert (finding.verdict, finding.value) == (NOT_APPLICABLE, None)
    assert "single example" in finding.detail


def test_restarts_are_judged_exactly_where_each_example_keeps_its_worst():
    # Four of a hundred: by the exact interval of a share enough, by Student's not.
    sets = {"once": range(40), "restarts": range(44), "twice": range(44)}
    assert attack_strength.more_restarts(with_broken(**sets)).verdict == FAIL
    assert attack_strength.more_restarts(with_broken(**sets, joint=True)).verdict == PASS
    assert attack_strength.twice_the_steps(with_broken(**sets)).verdict == PASS
