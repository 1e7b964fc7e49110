"""The rows of the one call: worst cases and intervals, for every kind of model and of data."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from scipy.stats import binomtest

from steinnorm.attacks import AttackSettings, NotFiniteError, evaluate_robustness, fgsm
from steinnorm.attacks.per_example import PerExample, Values, worst_of
from tests.attacks.one_call import QUIET, measure
from tests.attacks.three_wrong import (
    CENTRED,
    CLASSES,
    COUNT,
    PGD,
    RADII,
    WEIGHTS,
    X,
    Y,
    batches,
    linear,
)


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


@pytest.mark.parametrize("radii", [np.float32(0.1), jnp.array([0.1, 0.2]), [0.1, 0.2]])
def test_rows_are_found_at_radii_of_any_precision(radii):
    found = measure(epsilons=radii)
    row = found.row("fgsm", 0.1)
    assert row.epsilon == pytest.approx(0.1)
    assert found.row("fgsm", np.float32(0.1)) is row
    assert found.row("fgsm", jnp.float32(0.1)) is row
    with pytest.raises(KeyError) as error:
        found.row("fgsm", 0.1000002)
    wanted, existing = str(error.value).split("; there are")
    assert wanted.endswith("at 0.1000002")
    assert "0.1000002" not in existing


def test_of_two_close_radii_the_nearer_is_found():
    found = measure(epsilons=(0.1, 0.10000005))
    assert [found.row("fgsm", e).epsilon for e in (0.1, 0.10000005)] == [0.1, 0.10000005]


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


class Loader:
    """Can be gone through again, and does not know its length."""

    def __iter__(self):
        return iter(batches())


@pytest.mark.parametrize(
    "data", [batches(), Loader(), iter(batches())], ids=["list", "loader", "iterator"]
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


def _square_root(x):
    """A usual fault: a number below zero for inputs that are unlike the clean ones."""
    flat = x.reshape(x.shape[0], -1)
    root = jnp.sqrt(0.01 - jnp.square(flat.mean(1, keepdims=True) - 0.5))
    return jnp.concatenate([root + 1, flat[:, 1:3]], axis=1)


@pytest.mark.parametrize("attack", ["gaussian", "mine"])
def test_logits_that_are_not_finite_are_no_prediction(attack):
    """``argmax`` would make class 0 of them, which is right for images of that class."""

    def mine(logits_fn, x, y, *, threat, key):
        del logits_fn, y, threat, key
        return SimpleNamespace(x_adv=jnp.clip(x + 0.3, 0, 1))

    x = np.random.default_rng(0).uniform(0.45, 0.55, (12, 2, 2, 3)).astype(np.float32)
    y = np.zeros(12, int)
    assert measure(model=_square_root, x=x, y=y, epsilons=0.01).row("none").value == 1
    with pytest.raises(NotFiniteError, match="NaN or infinite") as raised:
        measure(
            model=_square_root,
            x=x,
            y=y,
            epsilons=0.5,
            attacks=[mine] if attack == "mine" else attack,
        )
    assert isinstance(raised.value, ValueError)
    if attack == "gaussian":
        assert " of 6 examples under gaussian noise of 0.5" in str(raised.value)


def test_the_loss_of_label_maps_is_that_of_labelled_pixels():
    x = np.random.default_rng(0).uniform(size=(12, 4, 4, 3)).astype(np.float32)
    logits = np.asarray(per_pixel(x), np.float64)
    y = logits.argmax(-1)
    y[:8] = 255  # eight wholly void
    y[8, :3] = 255
    known = y != 255
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, np.where(known, y, 0)[..., None], -1
    ).squeeze(-1)
    found = measure(model=per_pixel, x=x, y=y)
    assert found.row("none").loss == pytest.approx(losses[known].mean(), rel=1e-5)
    assert found.row("worst", 0.05).loss == pytest.approx(found.row("fgsm", 0.05).loss)
    assert found.row("worst", 0.05).loss > found.row("none").loss
    nothing = measure(model=per_pixel, x=x[:6], y=y[:6])
    assert np.isnan([nothing.row("none").loss, nothing.row("none").value]).all()
