"""Power iteration against the whole Jacobian's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.evaluation.risk.lipschitz import margins, spectral_norm
from steinnorm import stein_batch_norm

X = jax.random.normal(jax.random.key(0), (4, 3, 3))
SCALE = jnp.array([0.5, 2.0, -1.0])
WEIGHTS = jax.random.normal(jax.random.key(1), (9, 5))


def stein(x):
    return stein_batch_norm(x, SCALE, shrinkage="stein").y


def none(x):
    return stein_batch_norm(x, SCALE, shrinkage="none").y


def mean_only(x):
    return stein_batch_norm(x, SCALE, shrinkage="stein_mean_only").y


def network(x):
    return jnp.tanh(x.reshape(len(x), -1)) @ WEIGHTS


@pytest.mark.parametrize("function", [stein, none, network])
def test_a_batchs_constant_is_the_largest_singular_value(function):
    jacobian = jax.jacobian(function)(X)
    known = np.linalg.svd(np.reshape(jacobian, (-1, X.size)), compute_uv=False)[0]
    found = spectral_norm(Partial(function), X, jax.random.key(2), per_example=False)
    assert found.value == pytest.approx(known, rel=0.01)
    assert found.value <= known * (1 + 1e-5)  # from below
    assert found.change < 1e-3


def test_each_example_has_its_own_constant_where_they_are_independent():
    found = spectral_norm(Partial(network), X, jax.random.key(2), per_example=True)
    assert found.value.shape == (4,)
    for x, value in zip(X, found.value, strict=True):
        jacobian = jax.jacobian(network)(x[None])
        known = np.linalg.svd(np.reshape(jacobian, (5, 9)), compute_uv=False)[0]
        assert value == pytest.approx(known, rel=0.01)


def test_the_rule_for_the_means_cannot_lower_a_layers_constant():
    """x - f m has norm 1 for every factor f in [0, 1]: only the variance rescales."""
    by_rule = [
        spectral_norm(Partial(f), X, jax.random.key(2), per_example=False).value
        for f in (none, mean_only)
    ]
    assert by_rule[1] >= by_rule[0] * (1 - 0.01)


def test_margins_are_leads_of_the_right_class():
    logits = np.array([[1.0, 3.0, 2.0], [1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(margins(logits, np.array([1, 2])), [1.0, -1.0])
