"""The one call: rows, worst cases and intervals, for every kind of model and of data."""

import functools
import importlib
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from scipy.stats import binomtest

from steinnorm.attacks import (
    AttackSettings,
    BatchDependenceWarning,
    RadiusWarning,
    evaluate_robustness,
    fgsm,
    pgd,
)
from steinnorm.attacks.checks import NAMES, CheckSettings
from steinnorm.attacks.per_example import PerExample, Values, worst_of
from steinnorm.attacks.robustness.warn_once import warn_once

SMOKE = CheckSettings(steps=2, restarts=2, square_queries=4, directions=1, difference_steps=(1e-3,))

COUNT, CLASSES, RADII = 25, 4, (0.02, 0.1)
RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(12, CLASSES)).astype(np.float32)
X = RNG.uniform(size=(COUNT, 2, 2, 3)).astype(np.float32)
CENTRED = X.reshape(COUNT, -1) - np.float32(0.5)
Y = np.argmax(CENTRED @ WEIGHTS, axis=1).astype(np.int32)
Y[:3] = (Y[:3] + 1) % CLASSES  # three are wrong from the start
SEA = AttackSettings("sea", "sea", steps=3)
PGD = AttackSettings("pgd", "pgd", steps=3, random_start=True)
QUIET = {"checks": False, "progress": False}


def linear(x):
    return (x.reshape(x.shape[0], -1) - 0.5) @ jnp.asarray(WEIGHTS)


def values(result):
    return {(row.attack, row.epsilon): row.value for row in result.rows}


@pytest.fixture(scope="module")
def measured():
    return evaluate_robustness(
        linear, X, Y, epsilons=RADII, attacks=("fgsm", PGD), batch_size=10, **QUIET
    )


def test_rows_of_clean_inputs_attacks_and_worst(measured):
    cells = [("none", 0.0), *((a, e) for a in ("fgsm", "pgd", "worst") for e in RADII)]
    assert sorted(values(measured)) == sorted(cells)
    assert measured.row("none").value == 22 / 25
    assert {row.n for row in measured.rows} == {COUNT}
    assert measured.row("fgsm", 0.1).value < measured.row("fgsm", 0.02).value < 22 / 25
    assert measured.row("pgd", 0.1).max_norm == pytest.approx(0.1, abs=1e-6)
    assert measured.row("worst", 0.1).over == "fgsm, pgd"
    assert [row.norm_order for row in measured.rows][:2] == ["", "linf"]
    with pytest.raises(KeyError, match=r"no row 'apgd' at 0\.1; there are none at 0, fgsm"):
        measured.row("apgd", 0.1)


def test_intervals_are_those_of_wilson(measured):
    for row in measured.rows:
        hits = round(row.value * row.n)
        expected = binomtest(hits, row.n).proportion_ci(0.95, method="wilson")
        assert (row.ci_low, row.ci_high) == pytest.approx(tuple(expected))


def test_the_worst_is_that_of_each_example(measured):
    found = measured.per_example
    for epsilon in RADII:
        each = [found[name, epsilon].summary for name in ("fgsm", "pgd")]
        right = each[0]["right"] & each[1]["right"]
        np.testing.assert_array_equal(found["worst", epsilon].summary["right"], right)
        assert measured.row("worst", epsilon).value == right.mean()
        largest = np.maximum(each[0]["loss"], each[1]["loss"])
        assert measured.row("worst", epsilon).loss == pytest.approx(largest.mean())


def _results(right, loss, batch):
    right = np.array(right, bool)
    return PerExample(
        about={},
        summary={"right": right, "loss": np.array(loss, np.float32)},
        distance=np.zeros(len(right)),
        batch=np.array(batch),
        values=Values(0, 1, 0),
    )


@pytest.mark.parametrize("joint", [False, True])
def test_the_worst_never_states_a_smaller_loss_than_one_attack(joint):
    # The second attack breaks the first example with a small loss; the first fails with a large.
    one = _results([1, 1, 0], [9.0, 0.1, 3.0], [0, 0, 1])
    two = _results([0, 1, 1], [0.8, 0.2, 4.0], [0, 0, 1])
    wrong = [1.0 - results.summary["right"] for results in (one, two)]
    found = worst_of([one, two], wrong, joint=joint).summary
    np.testing.assert_array_equal(found["right"], [False, True, False])
    # As a whole the first batch has its largest loss under the first attack, and is kept whole.
    np.testing.assert_allclose(found["loss"], [9.0, 0.1 if joint else 0.2, 4.0], rtol=1e-6)
    for results in (one, two):
        assert found["loss"].mean() >= results.summary["loss"].mean()


class Dense(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(12, CLASSES, rngs=nnx.Rngs(0))
        self.layer.kernel[...] = jnp.asarray(WEIGHTS)

    def __call__(self, x):
        return self.layer(x.reshape(x.shape[0], -1) - 0.5)


def test_an_nnx_model_in_training_mode_stays_as_it_is():
    class Normed(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(12, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(x.reshape(x.shape[0], -1) - 0.5) @ jnp.asarray(WEIGHTS)

    model = Normed()
    before = np.asarray(model.norm.mean[...])
    with pytest.warns(BatchDependenceWarning):
        evaluate_robustness(model, X, Y, attacks="fgsm", epsilons=0.1, **QUIET)
    np.testing.assert_array_equal(model.norm.mean[...], before)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate_robustness(model, X, Y, attacks="fgsm", epsilons=0.1, **QUIET)
    assert found.row("none").value == 22 / 25


def _linen_closure():
    model = linen.Dense(CLASSES, use_bias=False)
    variables = {"params": {"kernel": jnp.asarray(WEIGHTS)}}
    return lambda x: model.apply(variables, x.reshape(x.shape[0], -1) - 0.5)


def _by_weights(weights, x):
    return (x.reshape(x.shape[0], -1) - 0.5) @ weights


def _partial():
    return jax.tree_util.Partial(_by_weights, jnp.asarray(WEIGHTS))


@pytest.mark.parametrize("model", [_linen_closure, Dense, _partial])
def test_every_kind_of_model(model, measured):
    found = evaluate_robustness(
        model(), X, Y, epsilons=RADII[1], attacks=("fgsm", PGD), batch_size=10, **QUIET
    )
    expected = {k: v for k, v in values(measured).items() if k[1] != RADII[0]}
    assert values(found) == expected


@pytest.mark.parametrize("axis_type", list(jax.sharding.AxisType)[:2])
def test_a_model_on_several_devices(axis_type, measured):
    if axis_type == jax.sharding.AxisType.Explicit and not hasattr(jax, "set_mesh"):
        pytest.skip("explicit meshes need JAX 0.8")
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(axis_type,))
    everywhere, split = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), ("devices",))
    )
    model = jax.device_put(_partial(), everywhere)
    x, y = (jax.device_put(jnp.asarray(v[:24]), split) for v in (X, Y))
    settings = {"epsilons": RADII[1], "attacks": ("fgsm", PGD), "batch_size": 10, **QUIET}
    found = evaluate_robustness(model, x, y, **settings)
    assert values(found) == values(evaluate_robustness(_partial(), X[:24], Y[:24], **settings))


def _batches(size=10):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, COUNT, size)]


class Loader:
    """Can be gone through again, and does not know its length."""

    def __iter__(self):
        return iter(_batches())


@pytest.mark.parametrize(
    "data", [_batches(), Loader(), iter(_batches())], ids=["list", "loader", "iterator"]
)
def test_batches_are_what_arrays_are(data, measured):
    found = evaluate_robustness(linear, data, epsilons=RADII, attacks=("fgsm", PGD), **QUIET)
    assert found.rows == measured.rows
    arrays = evaluate_robustness(
        linear, jnp.asarray(X), jnp.asarray(Y), attacks=(), batch_size=10, **QUIET
    )
    assert [(row.attack, row.value) for row in arrays.rows] == [("none", 22 / 25)]


def test_one_logit():
    weights = jnp.asarray(WEIGHTS[:, :1])
    single = jax.tree_util.Partial(_by_weights, weights)
    logit = CENTRED @ WEIGHTS[:, 0]
    y = (logit > 0).astype(np.int32)
    found = evaluate_robustness(single, X, y, epsilons=0.05, attacks=(PGD, "fgsm"), **QUIET)
    # A linear model's exact answer: the logit moves by at most epsilon times the weights' length.
    low, high = np.maximum(X - 0.05, 0), np.minimum(X + 0.05, 1)
    w = WEIGHTS[:, 0].reshape(2, 2, 3)
    sign = np.where(y > 0, -1.0, 1.0)[:, None, None, None]
    hardest = np.where(sign * w > 0, high, low) - 0.5
    robust = ((hardest * w).sum(axis=(1, 2, 3)) > 0) == (y > 0)
    assert found.row("none").value == 1.0
    assert found.row("pgd", 0.05).value == found.row("worst", 0.05).value == robust.mean()


PIXEL_WEIGHTS = jnp.asarray(WEIGHTS[:3])


def per_pixel(x):
    return (x - 0.5) @ PIXEL_WEIGHTS


def test_label_maps():
    y = np.asarray(jnp.argmax(per_pixel(jnp.asarray(X)), axis=-1)).astype(np.uint8)
    y[:, 0, 0] = 255
    y[0] = 255  # an image without any label
    y[1, 1, 1] = (y[1, 1, 1] + 1) % CLASSES
    found = evaluate_robustness(
        per_pixel,
        X,
        y,
        epsilons=0.05,
        attacks=(
            AttackSettings("segpgd", "segpgd", steps=2),
            AttackSettings("sea", "sea", steps=3),
        ),
        batch_size=10,
        **QUIET,
    )
    pixels = 24 * 3
    row = found.row("none")
    assert (row.metric, row.value, row.n) == ("pixel_accuracy", 1 - 1 / pixels, COUNT)
    assert row.ci_low < row.value <= row.ci_high <= 1
    worst = found.per_example["worst", 0.05].summary
    assert found.row("worst", 0.05).value == worst["right_pixels"].sum() / pixels
    assert found.row("worst", 0.05).value <= found.row("sea", 0.05).value < row.value
    with pytest.raises(
        ValueError, match="autoattack is for one label per example; for label maps use"
    ):
        evaluate_robustness(per_pixel, X, y, **QUIET)


def test_a_model_whose_logits_depend_on_the_batch_is_measured_by_whole_batches():
    def centred(x):
        flat = x.reshape(x.shape[0], -1)
        return (flat - jnp.mean(flat, axis=0, keepdims=True)) @ jnp.asarray(WEIGHTS)

    y = np.concatenate([np.asarray(jnp.argmax(centred(jnp.asarray(p)), 1)) for p, _ in _batches(9)])
    with pytest.warns(BatchDependenceWarning) as seen:
        found = evaluate_robustness(
            centred, X, y, epsilons=0.05, attacks=("fgsm", PGD), batch_size=9, **QUIET
        )
    assert found.row("none").value == 1.0
    assert found.settings["batch_dependent"]
    assert [w.filename for w in seen] == [__file__]
    each = [found.per_example[name, 0.05] for name in ("fgsm", "pgd")]
    for place in range(3):
        members = each[0].batch == place
        fewest = min(results.summary["right"][members].sum() for results in each)
        worst = found.per_example["worst", 0.05].summary["right"][members].sum()
        assert worst == fewest
    assert "the attacker changes it" in str(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = evaluate_robustness(
            centred, X, y, attacks=(), batch_size=9, batch_dependent=True, **QUIET
        )
    assert known.row("none").value == 1.0


@pytest.mark.parametrize(("dependent", "last"), [(True, 7), (False, 9)])
def test_only_a_batch_that_no_statistics_see_is_filled(dependent, last):
    sizes, keys = [], []

    def seen(logits_fn, x, y, *, threat, key):
        sizes.append(len(x))
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return fgsm(logits_fn, x, y, threat=threat, key=key)

    settings = {"epsilons": 0.1, "batch_size": 9, "batch_dependent": dependent, **QUIET}
    found = evaluate_robustness(linear, X, Y, attacks=seen, **settings)
    assert sizes == [9, 9, last]
    assert len(set(keys)) == 3  # other random numbers for every batch
    assert found.row("seen", 0.1).n == COUNT


def test_attacks_of_ones_own_are_judged_by_us():
    def mine(logits_fn, x, y, *, threat, key):
        return fgsm(logits_fn, x, y, threat=threat, key=key)

    found = evaluate_robustness(
        linear, X, Y, epsilons=0.1, attacks=(mine, "gaussian", "fgsm"), batch_size=10, **QUIET
    )
    assert found.row("mine", 0.1).value == found.row("fgsm", 0.1).value
    assert found.row("gaussian", 0.1).norm_order == ""
    assert found.row("worst", 0.1).over == "fgsm, mine"

    def outside(logits_fn, x, y, *, threat, key):
        found = fgsm(logits_fn, x, y, threat=threat, key=key)
        return found._replace(x_adv=jnp.clip(x + 0.3, 0.0, 1.0))

    with pytest.raises(AssertionError, match="left its ball or box"):
        evaluate_robustness(linear, X, Y, epsilons=0.1, attacks=outside, batch_size=10, **QUIET)
    named = functools.partial(pgd, steps=2)
    twice = evaluate_robustness(linear, X, Y, epsilons=0.1, attacks=named, batch_size=10, **QUIET)
    assert [row.attack for row in twice.rows] == ["none", "pgd", "worst"]


def test_checks_are_printed_and_in_the_result(capsys):
    found = evaluate_robustness(
        linear, X, Y, epsilons=RADII, attacks="fgsm", checks=SMOKE, batch_size=10
    )
    assert [finding.name for finding in found.checks] == list(NAMES)
    printed = capsys.readouterr().out
    for finding in found.checks:
        assert f"check: {finding.verdict:14} {finding.name}" in printed
    assert "the radius 0.02" in found.checks[1].detail  # where nearest to half is left
    text = str(found)
    assert repr(found) == text
    assert len(text.splitlines()) == 1 + 1 + 5 + 1
    assert re.search(r"^fgsm +0\.1 +\d+\.\d %", text, re.MULTILINE)
    assert "88.0 %" in text
    assert "[" not in text


def test_silence(capsys):
    evaluate_robustness(linear, X, Y, attacks="fgsm", epsilons=0.1, batch_size=10, **QUIET)
    assert capsys.readouterr() == ("", "")


BAD = [
    ({"attacks": "pdg"}, "unknown attack 'pdg'; expected one of gaussian, .*autoattack"),
    ({"attacks": ("fgsm", 3)}, "attacks must be names, AttackSettings or functions; got int"),
    ({"attacks": ("fgsm", "fgsm")}, "needs a name of its own"),
    ({"attacks": "segpgd"}, "segpgd is for a label per pixel; for one per example use"),
    ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ({"batch_size": 2.5}, r"batch_size must be an integer; got 2\.5"),
    ({"norm": "l3"}, "norm must be one of linf, l2"),
    ({"epsilons": -0.1}, "epsilon must be finite and not negative"),
    ({"epsilons": ()}, "epsilons must contain at least one radius"),
    ({"x": X[:0], "y": Y[:0]}, "x must be a non-empty batch"),
    ({"x": [], "y": None}, "x has no batch"),
    ({"y": None}, r"without y, x must be an iterable of \(x, y\) batches; got an array of shape"),
    ({"y": Y[:4]}, "a label for each of the 25 inputs"),
    ({"x": [(X, Y, Y)], "y": None}, r"iterable of \(x, y\) batches; item 0 is a tuple of 3"),
    ({"x": (255 * X).astype(np.uint8)}, "Scale images to"),
    ({"x": 255 * X}, "x must lie in"),
    ({"logits_fn": WEIGHTS}, "logits_fn must be a function from inputs to logits; got ndarray"),
    ({"logits_fn": lambda x: x[:, 0, 0, 0]}, "logits_fn must return logits of shape"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:25] for _, message in BAD])
def test_bad_input(changes, message):
    arguments = {"logits_fn": linear, "x": X, "y": Y, "attacks": "fgsm", "batch_size": 10}
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(**{**arguments, **changes}, **QUIET)


def test_a_radius_in_other_units_is_said_once():
    with pytest.warns(RadiusWarning, match="a radius of 8 lets any input") as seen:
        evaluate_robustness(linear, X, Y, epsilons=8, attacks="fgsm", batch_size=10, **QUIET)
    assert len([w for w in seen if w.category is RadiusWarning]) == 1


def test_a_warning_is_given_once_and_errors_stay_errors():
    said = set()

    def twice():
        for _ in range(2):
            with warn_once(said):
                warnings.warn("twice", stacklevel=1)

    with pytest.warns(UserWarning, match="twice") as seen:
        twice()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="new"), warn_once(said):
            warnings.warn("new", stacklevel=1)


def test_imports_are_lazy():
    code = (
        "import sys, steinnorm\n"
        "assert 'steinnorm.attacks' not in sys.modules\n"
        "import steinnorm.attacks\n"
        "names = ('flax', 'matplotlib', 'rich', 'scipy.stats')\n"
        "assert not [name for name in names if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert importlib.import_module("steinnorm.attacks.robustness").Row


def test_the_worst_case_includes_the_clean_point():
    """A last step may turn a wrong answer right: an attacker need not take it."""

    def helper(logits_fn, x, y, *, threat, key=None):
        towards = jnp.where(y[:, None] == 0, 1.0, -1.0)  # makes class 0 likelier where it is right
        moved = jnp.clip(x + threat.epsilon * towards, 0, 1)
        return fgsm(logits_fn, x, y, threat=threat)._replace(x_adv=moved)

    def first_value(x):
        return jnp.stack([x[:, 0] - 0.5, 0.5 - x[:, 0]], axis=1)

    x = jnp.full((4, 2), 0.45)  # all predicted as class 1
    y = jnp.zeros(4, jnp.int32)
    found = evaluate_robustness(
        first_value, x, y, epsilons=0.1, attacks=helper, checks=False, progress=False
    )
    assert [row.value for row in found.rows] == [0.0, 1.0, 0.0]
    assert found.row("worst", 0.1).over == "helper"


def test_noise_with_bounds_for_each_channel():
    bounds = (np.zeros(2, np.float32), np.array([1.0, 0.5], np.float32))
    x = jnp.full((4, 2), 0.45)
    found = evaluate_robustness(
        lambda x: x,
        x,
        jnp.zeros(4, jnp.int32),
        epsilons=0.2,
        attacks="gaussian",
        bounds=bounds,
        progress=False,
    )
    assert found.per_example["gaussian", 0.2].values.max <= 1
