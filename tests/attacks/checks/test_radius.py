"""The checks of an evaluation are made where they can tell something."""

import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import evaluate_robustness
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.checks.radius import radius_with_room

QUICK = CheckSettings(steps=2, restarts=1, square_queries=0, directions=1, difference_steps=(1e-2,))


@pytest.mark.parametrize(
    ("left", "clean", "wanted"),
    [
        ({0.1: 0.9, 0.2: 0.4, 0.3: 0.0}, 0.9, 0.2),
        ({0.1: 0.3, 0.2: 0.0}, 0.9, 0.1),  # nothing is left of the larger ball
        ({0.1: 0.9, 0.2: 0.8}, 0.9, 0.2),  # nothing is taken by the smaller one
        ({0.1: 0.5, 0.2: 0.4}, 0.9, 0.2),  # equally near
        ({0.1: 0.0, 0.2: 0.0}, 0.9, 0.2),
    ],
)
def test_it_is_the_radius_where_half_of_the_clean_accuracy_is_left(left, clean, wanted):
    assert radius_with_room(left, clean) == wanted


def test_an_evaluation_is_checked_where_its_attacks_leave_something():
    # One input per example, whose distance to the threshold is its place in the batch.
    x = jnp.asarray(0.5 + np.linspace(0.01, 0.1, 16)[:, None], jnp.float32)
    found = evaluate_robustness(
        lambda x: 10 * jnp.concatenate([x, 1 - x], axis=1),
        x,
        jnp.zeros(16, jnp.int32),
        epsilons=(0.002, 0.05, 0.4),
        attacks="fgsm",
        checks=QUICK,
        progress=False,
    )
    left = {row.epsilon: row.value for row in found.rows if row.attack == "fgsm"}
    assert left[0.4] == 0 < left[0.05] < left[0.002] == 1
    (larger,) = (f for f in found.checks if f.name == "larger_radius_not_weaker")
    assert "the radius 0.05" in larger.detail
