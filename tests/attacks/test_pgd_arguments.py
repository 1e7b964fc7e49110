"""Settings that pgd does not take are refused in words."""

import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, pgd
from tests.attacks.problems import CLASSES, EXAMPLES, KEY, problem

CLASS_NUMBERS = "labels are the numbers of the classes, from 0, of an integer dtype such as int32$"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x * 255}, "must lie in"),
        ({"x": lambda x: x.at[0, 0, 0, 0].set(jnp.nan)}, "x must be finite; got NaN"),
        ({"x": lambda x: x.at[0, 0, 0, 0].set(jnp.inf)}, "x must be finite; got NaN"),
        ({"x": lambda x: (x * 16).astype(jnp.int32)}, r"floating .*Scale images to \[0, 1\] first"),
        ({"x": lambda x: (x * 255).astype(jnp.uint8)}, r"uint8\. Scale images to \[0, 1\] first"),
        ({"x": lambda x: x > 0.5}, r"dtype bool\. Scale images to \[0, 1\] first"),
        ({"x": lambda x: x.astype(complex)}, "floating batch .* dtype complex64$"),
        ({"x": lambda x: np.asarray(x).astype(object)}, "got an array of dtype object"),
        ({"x": lambda x: x[:0]}, "non-empty"),
        ({"y": lambda y: y + CLASSES}, r"\[0, 3\)"),
        ({"y": lambda y: y - CLASSES}, r"\[0, 3\)"),
        ({"y": lambda y: y.astype(jnp.float32)}, "integer"),
        ({"y": lambda y: y[:-1]}, "shape"),
        (
            {"y": lambda y: y.astype(jnp.float32)[:, None]},
            r"; use y\.squeeze\(-1\)\.astype\(int\)$",
        ),
        ({"y": lambda y: np.asarray(y).astype(object)}, f"dtype object; {CLASS_NUMBERS}"),
        ({"y": lambda y: [f"class {i}" for i in y]}, f"dtype <U7; {CLASS_NUMBERS}"),
        ({"y": lambda y: np.asarray(y).astype(complex)}, f"dtype complex128; {CLASS_NUMBERS}"),
        ({"y": lambda y: np.asarray(y)[:, None].astype(str)}, f"; {CLASS_NUMBERS}"),
        ({"loss": "hinge"}, "cross_entropy, margin, dlr"),
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"restarts": 3}, "key"),
        ({"random_start": True}, "key"),
        ({"step_size": -0.1}, "step_size"),
        ({"step_size": 0.1, "relative_step_size": 0.1}, "not both"),
        ({"schedule": "sine"}, "constant, linear, cosine"),
        ({"momentum": -1.0}, "momentum"),
        ({"target": jnp.full(EXAMPLES, CLASSES)}, r"target must lie in \[0, 3\)"),
        ({"loss": "kl", "target": jnp.zeros(EXAMPLES, int)}, "kl cannot be targeted"),
        ({"loss": "segpgd"}, "label per pixel"),
        ({"logits_fn": lambda x: x}, "shape"),
        ({"logits_fn": lambda x: x.reshape(x.shape[0], -1)[:, :1]}, r"\[0, 2\)"),
        ({"logits_fn": "model"}, "must be a function"),
    ],
)
def test_pgd_refuses(change, message):
    model, _, x, y = problem()
    arguments = {"logits_fn": model, "x": x, "y": y, "threat": Threat("linf", 0.1)}
    for name, value in change.items():
        arguments[name] = value(arguments[name]) if name in "xy" else value
    with pytest.raises(ValueError, match=message):
        pgd(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3.0}, "steps must be an integer; got 3.0"),
        ({"step_size": [0.1]}, r"step_size must be a number or an array of numbers; got \[0.1\]"),
        ({"step_size": np.ones(3)}, r"step_size must be .*example of shape \(5, 5, 1\); got .*3,"),
        ({"relative_step_size": "1"}, "relative_step_size must be a number"),
        ({"schedule": 0.5}, "schedule must be a function or one of constant, linear, cosine; got"),
        ({"schedule": lambda done: -done}, "step 2.* must be finite and not negative"),
        ({"restarts": 2.0, "key": KEY}, "restarts must be an integer; got 2.0"),
        ({"momentum": "1"}, "momentum must be a number"),
        ({"momentum": -1.0}, "momentum must be finite and not negative"),
    ],
)
def test_settings_of_other_kinds_are_refused_in_words(settings, message):
    model, _, x, y = problem()
    with pytest.raises(ValueError, match=message):
        pgd(model, x, y, threat=Threat("linf", 0.1), **settings)
