"""Targeted attacks on a linear model, against the exact answer of linear programming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from steinnorm.attacks import Threat, apgd, fab, pgd

CLASSES, SIZE, COUNT = 10, 20, 20


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(SIZE, CLASSES))
    x = generator.random((COUNT, SIZE))
    y = (x @ weights).argmax(axis=1)
    target = (y + generator.integers(1, CLASSES, size=COUNT)) % CLASSES
    return weights, x, y, target


def _can_be_reached(weights, x, target, radius):
    """Returns whether a point of the ball and the box has the target as its prediction, (B,)."""
    found = []
    for example, label in zip(x, target, strict=True):
        others = np.delete(np.arange(CLASSES), label)
        lead = weights[:, label, None] - weights[:, others]
        # The largest least lead s: max s subject to (example + d) @ lead >= s.
        solved = linprog(
            np.r_[np.zeros(SIZE), -1],
            A_ub=np.hstack([-lead.T, np.ones((len(others), 1))]),
            b_ub=lead.T @ example,
            bounds=[
                *zip(np.maximum(-radius, -example), np.minimum(radius, 1 - example), strict=True),
                (None, None),
            ],
        )
        found.append(-solved.fun > 1e-4)
    return np.array(found)


@pytest.mark.parametrize(("radius", "least"), [(0.2, 0.5), (0.3, 0.7), (1.0, 0.95)])
@pytest.mark.parametrize(
    "attack",
    [
        lambda *a, **k: fab(*a, steps=50, restarts=2, key=jax.random.key(0), **k),
        lambda *a, **k: pgd(*a, steps=50, loss="dlr", **k),
        lambda *a, **k: apgd(*a, steps=50, loss="dlr", **k),
    ],
    ids=["fab", "pgd-dlr", "apgd-dlr"],
)
def test_a_target_is_reached_where_it_can_be(problem, attack, radius, least):
    weights, x, y, target = problem
    exact = _can_be_reached(weights, x, target, radius)
    assert exact.sum() >= 4
    factors = jnp.asarray(weights, jnp.float32)
    result = attack(
        lambda x: x @ factors,
        jnp.asarray(x, jnp.float32),
        jnp.asarray(y),
        threat=Threat("linf", radius),
        target=jnp.asarray(target),
    )
    success = np.asarray(result.success)
    assert not (success & ~exact).any()
    assert success.sum() >= least * exact.sum()
    reached = np.asarray(result.x_adv) @ weights
    np.testing.assert_array_equal(reached.argmax(axis=1)[success], target[success])
