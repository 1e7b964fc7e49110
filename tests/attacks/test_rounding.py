"""What counts as rounding: judged by the numbers of each channel, not by the largest of all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import LeftThreatError, Threat, autoattack, fgsm, gaussian, pgd
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._rounding import outside_ball, outside_box

KEY = jax.random.key(0)
BOUNDS = np.array([-1000.0, 0.0]), np.array([1000.0, 1e-3])
RADII = np.array([50.0, 5e-5])


def _inputs(count=20):
    """Two features, of which one is a million times as large as the other."""
    rng = np.random.default_rng(0)
    columns = rng.uniform(-500, 500, count), rng.uniform(2e-4, 8e-4, count)
    return jnp.asarray(np.stack(columns, axis=1), jnp.float32)


def _model(x):
    return jnp.stack([-x[:, 0] - 1e5 * (x[:, 1] - 5e-4), x[:, 0]], axis=1)


def _problem(threat):
    x = _inputs()
    return Problem.of(_model, x, np.argmax(_model(x), axis=1), threat)


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize(("radii", "accepted"), [(1.0, True), (1.001, False), (3.0, False)])
def test_each_channel_is_held_to_its_own_radius(channel, radii, accepted):
    problem = _problem(Threat("linf", RADII, BOUNDS))
    moved = problem.x.at[:, channel].add(radii * RADII[channel])
    if accepted:
        found = problem.result(moved)
        assert found.outside_ball == found.outside_box == 0
        return
    with pytest.raises(LeftThreatError, match="left its ball"):
        problem.result(moved)
    excess = outside_ball(moved, problem.x, "linf", RADII, BOUNDS)
    assert float(excess) == pytest.approx((radii - 1) * RADII[channel], rel=0.01)


def test_a_small_channel_is_held_to_a_radius_that_all_channels_share():
    problem = _problem(Threat("linf", 5e-5, BOUNDS))
    problem.result(problem.x.at[:, 1].add(5e-5))
    with pytest.raises(LeftThreatError):
        problem.result(problem.x.at[:, 1].add(6e-5))


def test_each_channel_is_held_to_its_own_box():
    threat = Threat("linf", 100.0, BOUNDS)
    problem = _problem(threat)
    with pytest.raises(LeftThreatError, match=r"left by 0\.0002"):
        problem.result(problem.x.at[:, 1].set(1.2e-3))
    outside = _inputs().at[3, 1].set(1.001e-3)
    for attack in (fgsm, lambda *a, **k: gaussian(KEY, a[1], 0.1, BOUNDS)):
        with pytest.raises(ValueError, match="x must lie in"):
            attack(_model, outside, jnp.zeros(20, jnp.int32), threat=threat)
    # The rounding of a normalisation that was undone is taken, and clipped.
    rounded = _inputs().at[3, 1].set(1e-3 * (1 + 4e-7)).at[4, 0].set(-1000 * (1 + 2e-7))
    assert Problem.of(_model, rounded, jnp.zeros(20, jnp.int32), threat).x[3, 1] == np.float32(1e-3)


@pytest.mark.parametrize("attack", [pgd, autoattack])
def test_attacks_stay_within(attack):
    problem = _problem(Threat("linf", RADII, BOUNDS))
    settings = {"queries": 20} if attack is autoattack else {}
    x, y = problem.x, problem.criterion.y
    found = attack(_model, x, y, threat=problem.threat, key=KEY, steps=5, **settings)
    change = np.abs(np.asarray(found.x_adv, np.float64) - np.asarray(x, np.float64))
    spacings = 4 * np.spacing(np.abs(np.asarray(x)).max(axis=0))
    assert (change <= RADII + spacings).all()
    assert found.success.any()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None, (np.zeros(3), np.ones(3))])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_have_the_rounding_of_their_largest_value(norm, bounds):
    """Dark values too: they may come from a computation with larger ones, as a normalisation."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (4, 64, 64, 3)), jnp.float32)
    x = x.at[:, :, 0].set(1e-6)
    epsilon = 0.01
    step = jnp.full_like(x, epsilon if norm == "linf" else epsilon / np.sqrt(64 * 64 * 3))
    mean, std = jnp.float32(0.49), jnp.float32(0.23)
    undone = ((x + step - mean) / std) * std + mean  # rounds at the size of the mean
    assert outside_ball(undone, x, norm, epsilon, bounds) == 0
    # Beyond that nothing is taken.
    assert outside_ball(x + 1.01 * step, x, norm, epsilon, bounds) > 0.9e-4


def test_nothing_is_outside_an_empty_batch_or_no_box():
    empty = jnp.zeros((0, 3))
    assert outside_box(empty, (0.0, 1.0)) == 0
    assert outside_ball(empty, empty, "linf", 0.1, None) == 0
    assert outside_box(jnp.full((2, 3), 1e9), None) == 0


def test_a_radius_of_zero_allows_no_change_in_its_channel():
    problem = _problem(Threat("linf", np.array([50.0, 0.0]), BOUNDS))
    problem.result(problem.x.at[:, 0].add(50.0))
    with pytest.raises(LeftThreatError):
        problem.result(problem.x.at[:, 1].add(1e-6))
