"""The attack inside ``jit``: the same as ``pgd``, whatever the dtypes and whatever is traced."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import ShortReachWarning, Threat, pgd, pgd_scan
from tests.attacks.problems import CLASSES, EXAMPLES, KEY, companions, problem

MODEL, _, X, Y = problem()
STEPS = {"steps": 4}


def in_single(model, x):
    return model(x.astype(jnp.float32))


SINGLE = jax.tree_util.Partial(in_single, MODEL)


def test_half_precision_is_attacked_as_by_pgd():
    """In steps of bfloat16, whose numbers near 1 are 1/256 apart, most steps were lost."""
    threat, x = Threat("linf", 2 / 255), X.astype(jnp.bfloat16)
    found = pgd_scan(SINGLE, x, Y, threat=threat)
    np.testing.assert_array_equal(found, pgd(SINGLE, x, Y, threat=threat).x_adv)
    assert found.dtype == jnp.float32
    change = np.abs(np.asarray(found) - np.asarray(x, np.float32))
    assert change.mean() > 1.9 / 255


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("wide", [False, True])
def test_sizes_of_any_dtype_leave_that_of_the_inputs(dtype, wide):
    x, each = X.astype(dtype), np.full((5, 5, 1), 0.1)
    with jax.enable_x64(wide):
        for threat, size in (
            (Threat("linf", each), None),
            (Threat("linf", 0.1), np.float32(0.05)),
            (Threat("linf", 0.1), np.float64(0.05)),
            (Threat("linf", each), each / 2),
        ):
            found = pgd_scan(SINGLE, x, Y, threat=threat, step_size=size, steps=2)
            assert found.dtype == jnp.float32
            assert float(jnp.max(jnp.abs(found - x.astype(jnp.float32)))) == pytest.approx(0.1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radius_and_step_size_may_be_traced(norm):
    threat = Threat(norm, 0.1)
    attack = jax.jit(
        lambda x, y, threat, size, key: pgd_scan(
            MODEL, x, y, threat=threat, step_size=size, key=key, steps=3
        )
    )
    expected = pgd(MODEL, X, Y, threat=threat, step_size=0.04, key=KEY, steps=3).x_adv
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(attack(X, Y, threat, 0.04, KEY), expected, atol=1e-6)
        constant = jax.jit(lambda t: pgd_scan(MODEL, X, Y, threat=t, step_size=0.001, steps=1))
        assert constant(threat).shape == X.shape  # too short, which cannot be seen here
    with pytest.warns(ShortReachWarning):
        pgd_scan(MODEL, X, Y, threat=threat, step_size=0.001, steps=1)


def test_dependence_on_the_batch_is_told_not_found():
    y, threat = jnp.argmax(companions(X), axis=1), Threat("linf", 0.1)
    model = jax.tree_util.Partial(companions)
    found = pgd(model, X, y, threat=threat, batch_dependent=True, **STEPS).x_adv
    told = pgd_scan(model, X, y, threat=threat, batch_dependent=True, **STEPS)
    np.testing.assert_allclose(told, found, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X.astype(jnp.int32)}, "floating batch .* dtype int32. Scale images to"),
        ({"x": np.asarray(X).astype(str)}, "x must be an array; got an array of dtype <U"),
        ({"x": X[:0], "y": Y[:0]}, "non-empty"),
        ({"y": jax.nn.one_hot(Y, CLASSES, dtype=jnp.int32)}, "use jnp.argmax"),
        ({"y": Y[:, None]}, r"use y\.squeeze\(-1\)"),
        ({"y": Y[:2]}, rf"integer labels of shape \({EXAMPLES},\); got shape \(2,\)"),
        ({"y": [[0, 1], [2]]}, "y must be an array of integer labels; got list"),
        (
            {"y": np.asarray(Y).astype(str)},
            "y must be an array of integer labels; got an array of dtype <U",
        ),
        ({"key": 0}, r"write jax\.random\.key\(0\)"),
        ({"steps": 3.0}, "steps must be an integer; got 3.0"),
        ({"step_size": [0.1]}, "step_size must be a number or an array"),
        ({"step_size": np.ones(3)}, "step_size must be a number or broadcast to an example"),
        ({"step_size": np.nan}, "step_size must be finite and not negative"),
        ({"threat": Threat("linf", np.ones(3))}, "epsilon must be a number or broadcast"),
        ({"logits_fn": lambda x: x.sum()}, "must return logits of shape"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(changes, message):
    settings = {"logits_fn": MODEL, "x": X, "y": Y, "threat": Threat("linf", 0.1), **changes}
    with pytest.raises(ValueError, match=message):
        pgd_scan(settings.pop("logits_fn"), settings.pop("x"), settings.pop("y"), **settings)


def test_labels_may_be_a_list():
    threat = Threat("linf", 0.1)
    found = pgd_scan(MODEL, X, np.asarray(Y).tolist(), threat=threat, **STEPS)
    np.testing.assert_array_equal(found, pgd_scan(MODEL, X, Y, threat=threat, **STEPS))


def test_the_scanned_form_is_the_same_attack():
    model, _, x, y = problem()
    threat = Threat("l2", 0.2)
    inside = jax.jit(lambda x, y: pgd_scan(model, x, y, threat=threat, key=KEY, steps=6))
    outside = pgd(model, x, y, threat=threat, key=KEY, steps=6)
    np.testing.assert_allclose(inside(x, y), outside.x_adv, atol=2e-6)
    with pytest.raises(ValueError, match="at least 1"):
        pgd_scan(model, x, y, threat=threat, steps=0)
    with pytest.raises(ValueError, match="dlr needs 3"):
        pgd_scan(lambda x: model(x)[:, :2], x, y, threat=threat, loss="dlr")
