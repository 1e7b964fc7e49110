"""Balls and boxes: radii and bounds per channel, none at all, tolerances, what is refused."""

import copy
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import (
    AttackResult,
    LeftThreatError,
    RadiusWarning,
    Threat,
    apgd,
    autoattack,
    fab,
    fgsm,
    pgd,
    pgd_scan,
    predict,
    square,
)
from steinnorm.attacks._inputs import Problem
from tests.attacks.problems import KEY, draws, problem

THREAT = Threat("linf", 0.1)
SHAPE = (8, 4, 4, 3)
WEIGHTS = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)
MODEL = jax.tree_util.Partial(
    lambda w, x: jnp.tanh((x.reshape(len(x), -1) - 0.5) @ w), jnp.asarray(WEIGHTS)
)


def shifted(model, x):
    return model(x - 100)


ATTACKS = {
    "fgsm": (fgsm, {}),
    "pgd": (pgd, {"steps": 5, "restarts": 2}),
    "apgd": (apgd, {"steps": 10}),
    "fab": (fab, {"steps": 20}),
    "square": (square, {"queries": 40}),
    "autoattack": (autoattack, {"steps": 5, "queries": 10}),
}


def inputs():
    x = 0.3 + 0.4 * draws(*SHAPE)
    return x, jnp.argmax(predict(MODEL, x), axis=1)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_radius_for_each_channel(name):
    attack, settings = ATTACKS[name]
    x, y = inputs()
    radius = np.array([0.0, 0.1, 0.2], np.float32)
    found = attack(MODEL, x, y, threat=Threat("linf", radius), key=KEY, **settings)
    change = np.abs(np.asarray(found.x_adv - x)).max(axis=(0, 1, 2))
    assert change[0] == 0
    assert (change <= radius + 1e-6).all()
    if name != "fab":  # which goes no farther than it must
        np.testing.assert_allclose(change[1:], radius[1:], atol=1e-6)
    assert found.max_norm <= 1 + 1e-5  # in multiples of the radius
    assert found.success.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_equal_radii_are_one_radius(name):
    attack, settings = ATTACKS[name]
    x, y = inputs()
    one = attack(MODEL, x, y, threat=Threat("linf", 0.0625), key=KEY, **settings)
    each = attack(MODEL, x, y, threat=Threat("linf", np.full(3, 0.0625)), key=KEY, **settings)
    np.testing.assert_allclose(one.x_adv, each.x_adv, atol=1e-6)
    assert each.max_norm == pytest.approx(one.max_norm / 0.0625, abs=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bounds_for_each_channel_and_none(name, norm):
    attack, settings = ATTACKS[name]
    x, y = inputs()
    low, high = np.array([0.29, 0.0, 0.2]), np.array([0.71, 1.0, 0.72])
    radius = 0.1 if norm == "linf" else 0.4
    found = attack(MODEL, x, y, threat=Threat(norm, radius, (low, high)), key=KEY, **settings)
    values = np.asarray(found.x_adv)
    assert (values >= low.astype(np.float32)).all()
    assert (values <= high.astype(np.float32)).all()
    far = 100 + x  # where a box of any size would have rounded the ball away
    moved = jax.tree_util.Partial(shifted, MODEL)
    y = jnp.argmax(predict(moved, far), axis=1)
    free = attack(moved, far, y, threat=Threat(norm, radius, None), key=KEY, **settings)
    assert free.outside_box == 0
    distance = Threat(norm, radius, None).distance(free.x_adv, far)
    assert float(distance.max()) <= radius + 1e-4  # numbers near 100 are 8e-6 apart
    assert free.success.any()


def test_a_threat_is_a_pytree_with_a_static_norm():
    threat = Threat("linf", 0.1)
    leaves, structure = jax.tree.flatten(threat)
    assert leaves == [0.1, 0.0, 1.0]
    assert jax.tree.unflatten(structure, leaves) == threat == copy.deepcopy(threat)
    assert pickle.loads(pickle.dumps(threat)) == threat
    assert len({threat, Threat("linf", 0.1)}) == 1
    traces = []

    @jax.jit
    def attacked(x, y, threat):
        traces.append(threat.norm)
        return pgd_scan(MODEL, x, y, threat=threat, steps=2)

    x, y = inputs()
    for epsilon in (0.1, 0.2):
        found = attacked(x, y, Threat("linf", epsilon))
        expected = pgd(MODEL, x, y, threat=Threat("linf", epsilon), steps=2).x_adv
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert traces == ["linf"]


@pytest.mark.parametrize("bounds", [(-1e9, 1e9), None])
def test_a_wide_box_does_not_widen_the_ball(bounds):
    """The ball's tolerance is that of the inputs' numbers, not of the box's."""
    threat = Threat("linf", 0.05, bounds)
    x, y = inputs()
    found = pgd(MODEL, x, y, threat=threat, steps=3)
    found.check(threat)
    for excess in (1e-5, 0.01, 100.0):
        with pytest.raises(LeftThreatError, match="left its ball"):
            found._replace(max_norm=0.05 + excess).check(threat)


def test_large_images_in_the_euclidean_ball():
    """The rounding of 150,000 values is no excess."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (1, 224, 224, 3)), jnp.float32)
    model = jax.tree_util.Partial(lambda x: jnp.mean(x, axis=(1, 2)))
    y = jnp.argmax(predict(model, x), axis=1)
    for epsilon in (0.5, 3.0):
        pgd(model, x, y, threat=Threat("l2", epsilon), steps=3, batch_dependent=False)


@pytest.mark.parametrize(
    ("threat", "warns"),
    [
        (Threat("linf", 8.0), True),
        (Threat("linf", 1.0), True),
        (Threat("linf", 8.0, (0.0, 255.0)), False),
        (Threat("linf", 8.0, None), False),
        (Threat("linf", 0.9), False),
        (Threat("l2", 6.9), False),
        (Threat("l2", 7.0), True),  # sqrt(48) is 6.93
        (Threat("linf", np.array([1.0, 1.0, 0.5])), False),
    ],
)
def test_a_radius_in_other_units_warns(threat, warns):
    x, y = inputs()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fgsm(MODEL, x, y, threat=threat)
    found = [w for w in caught if issubclass(w.category, RadiusWarning)]
    assert bool(found) == warns
    if found:
        assert "8/255" in str(found[0].message)
        assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linf", np.array([0.1, -0.1, 0.2])), "not negative"),
        (("l2", np.array([0.1, 0.1, 0.2])), "radius per channel needs the norm linf"),
        (("linf", "8/255"), "epsilon must be a number"),
        (("linf", True), "epsilon must be a number"),
        (("linf", 0.1, 1.0), r"bounds must be \(low, high\) or None"),
        (("linf", 0.1, (0.0, np.array([1.0, 0.0]))), "low < high"),
        (("linf", 0.1, (0.0, np.inf)), "bounds must be finite"),
        (("linf", 1j), "epsilon must be a number"),
        (("linf", np.array([1j])), "must be real"),
        (("l7", 0.1), "norm must be one of"),
    ],
)
def test_bad_threats_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Threat(*arguments)


def test_numbers_that_do_not_fit_the_inputs_are_refused():
    x, y = inputs()
    with pytest.raises(ValueError, match="epsilon must be a number or broadcast"):
        fgsm(MODEL, x, y, threat=Threat("linf", np.ones(4)))
    with pytest.raises(ValueError, match="upper bound must be a number or broadcast"):
        fgsm(MODEL, x, y, threat=Threat("linf", 0.1, (0.0, np.ones((8, 1, 1, 1)))))
    with pytest.raises(ValueError, match="x must be finite"):
        fgsm(MODEL, x.at[0].set(jnp.nan), y, threat=Threat("linf", 0.1, None))
    with pytest.raises(ValueError, match="threat must be a Threat"):
        fgsm(MODEL, x, y, threat=0.1)


def test_results_are_short_to_read():
    result = AttackResult(jnp.zeros((4, 2)), jnp.array([True, False, True, True]), 0.1, 0, 0, 0, 0)
    assert repr(result) == str(result)
    assert "25.00 % of 4 examples left" in repr(result)
    assert len(repr(result)) < 150
    assert result.robust_accuracy == 0.25
    assert result._replace(labels=6).robust_accuracy == 0.5


def test_numbers_that_float32_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"at most 3\.4e\+38 in linf"):
        Threat("linf", 1e39, None)
    with pytest.raises(ValueError, match="at most"):
        Threat("linf", np.array([0.1, 1e39]), None)
    with pytest.raises(ValueError, match=r"at most 1\.84e\+19 in l2"):  # the square is infinite
        Threat("l2", 1e30)
    with pytest.raises(ValueError, match="bounds must be finite in float32"):
        Threat("linf", 0.1, (0, 1e39))
    x, y = inputs()
    found = square(MODEL, x, y, threat=Threat("l2", 1e19, None), key=KEY, queries=5)
    assert np.isfinite(found.max_norm)


def test_a_threat_is_made_of_traced_numbers():
    made = jax.jit(lambda e, low: Threat("linf", e, (low, low + 1)).scaled(2.0))(0.1, 0.0)
    assert (float(made.epsilon), *map(float, made.bounds)) == pytest.approx((0.2, 0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x + 0.100002, "largest change 0.1"),
        (lambda x: x.at[0, 0].set(1.000002), "values in"),
        (lambda x: x.at[0, 0].set(jnp.nan), "1 not finite"),
    ],
)
def test_a_result_outside_its_threat_fails_loudly(change, message):
    x = jnp.full((3, 2), 0.95) if "values" in message else jnp.full((3, 2), 0.5)
    model = jax.tree_util.Partial(lambda x: 5 * x)
    given = Problem.of(model, x, jnp.zeros(3, jnp.int32), THREAT)
    with pytest.raises(LeftThreatError, match=message):
        given.result(change(x))
    result = given.result(x + 0.04)
    result.check(THREAT)
    with pytest.raises(LeftThreatError, match="an attack left its ball"):
        result.check(Threat("linf", 0.03), "an attack")


@pytest.mark.parametrize(
    ("bounds", "excess"),
    [((0.0, 1.0), 2e-6), ((-1.0, 1.0), 2e-6), ((0.0, 255.0), 1e-4), ((-1e5, 1e5), 0.1)],
)
def test_what_leaves_the_ball_is_void_in_boxes_of_any_size(bounds, excess):
    threat = Threat("linf", 0.01, bounds)
    result = AttackResult(jnp.zeros((1, 1)), jnp.zeros(1), 0.01 + excess, 0.0, 0.0, 0, 0)
    with pytest.raises(LeftThreatError, match="left its ball"):
        result.check(threat)
    result._replace(max_norm=0.01).check(threat)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_box_far_from_zero(norm):
    threat = Threat(norm, 0.05, (1000.0, 1001.0))
    x = 1000 + draws(4, 3, 3, 1)
    weights = draws(9, 3)
    y = jnp.array([0, 1, 2, 0])
    model = lambda x: (x.reshape(4, 9) - 1000) @ weights  # noqa: E731
    assert pgd(model, x, y, threat=threat, steps=3).max_norm > 0.04


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bytes_as_floats_keep_their_ball(norm):
    # x + 8 is rounded by up to 8e-6 near 255: to be on the safe side is the projection's task.
    model, _, x, y = problem()
    wide = jax.tree_util.Partial(lambda model, x: model(x / 255), model)
    threat = Threat(norm, 8.0 if norm == "linf" else 90.0, bounds=(0.0, 255.0))
    result = pgd(wide, 255 * x, y, threat=threat, key=KEY, steps=5)
    assert result.max_norm <= threat.epsilon * (1 + 1e-6)
    small = Threat(norm, threat.epsilon / 255)
    again = pgd(model, x, y, threat=small, key=KEY, steps=5)
    np.testing.assert_array_equal(result.success, again.success)


def test_a_box_without_an_end_is_refused():
    for bounds in ((-np.inf, np.inf), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="bounds must be finite"):
            Threat("linf", 0.1, bounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "l1", "epsilon": 0.1}, "linf, l2"),
        ({"norm": "linf", "epsilon": -0.1}, "negative"),
        ({"norm": "linf", "epsilon": float("nan")}, "finite"),
        ({"norm": "linf", "epsilon": 0.1, "bounds": (1.0, 0.0)}, "low < high"),
    ],
)
def test_threat_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Threat(**arguments)


def test_a_number_for_a_threat_is_refused_in_words():
    model, _, x, y = problem()
    for attack in (fgsm, pgd, apgd, square, autoattack):
        with pytest.raises(ValueError, match=r"threat must be a Threat; got float: write Threat\("):
            attack(model, x, y, threat=8 / 255)
