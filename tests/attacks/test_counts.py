"""Counts that attacks are given: what is none is refused by name, before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, autoattack, evaluate_robustness, fab, pgd, sea, square

X, Y = jnp.array([[0.75, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
MAPS = (jnp.full((1, 4, 4, 1), 0.8), jnp.ones((1, 4, 4), int))
THREAT = Threat("linf", 0.25)
COUNTS = [
    *((pgd, name) for name in ("steps", "restarts")),
    *((apgd, name) for name in ("steps", "restarts", "target_classes")),
    *((fab, name) for name in ("steps", "restarts", "target_classes")),
    *((square, name) for name in ("queries", "restarts")),
    *((autoattack, name) for name in ("steps", "queries", "target_classes", "batch_size")),
    (sea, "steps"),
    (evaluate_robustness, "batch_size"),
]
WRONG = [
    (0, "at least 1; got 0"),
    (np.int32(-1), "at least 1; got -1"),
    (3.0, r"an integer; got 3\.0"),
    ("4", "an integer; got '4'"),
    (True, "an integer; got True"),
    (None, "an integer; got None"),
]


def _model(x):
    raise AssertionError("the model was called")


@pytest.mark.parametrize(("attack", "name"), COUNTS, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize(("value", "message"), WRONG, ids=repr)
def test_what_is_no_count_is_refused_by_name(attack, name, value, message):
    x, y = MAPS if attack is sea else (X, Y)
    more = {"threat": THREAT, "key": jax.random.key(0)}
    given = {name: value} | ({} if attack is evaluate_robustness else more)
    with pytest.raises(ValueError, match=rf"{name} must be {message}"):
        attack(_model, x, y, **given)


def test_integers_of_numpy_are_counts():
    result = apgd(lambda x: 4 * x, X, Y, threat=THREAT, steps=np.int64(3), restarts=np.uint8(1))
    assert list(result.success) == [True, False]
