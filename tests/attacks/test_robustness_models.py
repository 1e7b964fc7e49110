"""Whose results a folder has: another model's are never used, the same model's in any process."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from steinnorm.attacks import AttackSettings
from steinnorm.attacks._model import as_partial
from steinnorm.attacks.checks import Checks
from steinnorm.attacks.robustness.checks import CheckRequest, make_checks
from steinnorm.attacks.robustness.data import Batch
from steinnorm.attacks.robustness.evaluator import BatchEvaluator
from steinnorm.attacks.robustness.program import model_digest
from tests import children
from tests.attacks.one_call import SMOKE, WEIGHTS, measure

GRID = 15
RNG = np.random.default_rng(3)
X = (RNG.integers(0, GRID + 1, (12, 2, 2, 3)) / GRID).astype(np.float32)  # as 4-bit images are


def _flat(x):
    return x.reshape(x.shape[0], -1)


def quantised(x):
    """Straight-through: on the images as they are, neither logits nor gradients change."""
    return x + jax.lax.stop_gradient(jnp.round(x * GRID) / GRID - x)


def plain(weights, x):
    return _flat(x) @ weights


def defended(weights, x):
    return _flat(quantised(x)) @ weights


class Net(nnx.Module):
    def __init__(self, *, quantise):
        self.layer, self.quantise = nnx.Linear(12, 3, rngs=nnx.Rngs(0)), quantise

    def __call__(self, x):
        return self.layer(_flat(quantised(x) if self.quantise else x))


def scaled(scale, x):
    return scale * (_flat(x) @ WEIGHTS)


def black_box(x, power=1):
    def answers(images):
        # Without JAX, which can wait for itself for ever in a callback (jax-ml/jax#24255).
        return (_flat(np.asarray(images)) @ np.asarray(WEIGHTS)) ** power

    return jax.pure_callback(answers, jax.ShapeDtypeStruct((len(x), 3), jnp.float32), x)


def another_box(x):
    return black_box(x, 3)


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, gradient: (3 * gradient,))
Partial = jax.tree_util.Partial
PAIRS = {
    "partial": (Partial(plain, WEIGHTS), Partial(defended, WEIGHTS)),
    "nnx": (Net(quantise=False), Net(quantise=True)),
    "function": (lambda x: plain(WEIGHTS, x), lambda x: defended(WEIGHTS, x)),
    "number": (Partial(scaled, 1.0), Partial(scaled, 1.0000001)),
    "numpy_number": (Partial(scaled, np.float32(1)), Partial(scaled, np.float32(1.0000001))),
    "constant": (lambda x: scaled(1.0, x), lambda x: scaled(1.0000001, x)),
    "array": (lambda x: plain(WEIGHTS, x), lambda x: plain(WEIGHTS * 1.0000001, x)),
    "callback": (black_box, another_box),
    "gradient": (lambda x: 2 * plain(WEIGHTS, x), lambda x: doubled(plain(WEIGHTS, x))),
}
"""Two models that differ, most of them in nothing that clean images show."""


def digest(model):
    return model_digest(as_partial(model), jnp.asarray(X))


@pytest.mark.parametrize("kind", PAIRS)
def test_two_models_have_two_digests_and_one_has_one(kind):
    first, second = PAIRS[kind]
    assert digest(first) == digest(first)
    assert None is not digest(first) != digest(second)


def _digests():
    return {name: [digest(model) for model in pair] for name, pair in PAIRS.items()}


def test_another_process_has_the_same_digests():
    """A name of an object or the order of a set in them would end every evaluation's resuming."""
    code = f"from {__name__} import _digests; print(_digests())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=children.environment(PYTHONHASHSEED="7", PYTHONPATH=":".join(sys.path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(_digests())


@pytest.mark.parametrize("kind", ["partial", "nnx"])
def test_results_of_a_model_with_the_same_arrays_are_not_used(tmp_path, kind):
    first, second = PAIRS[kind]
    y = np.asarray(jnp.argmax(first(X), axis=1))
    measure(tmp_path, first, X, y, epsilons=0.03)
    with pytest.warns(UserWarning, match="of another model"):
        found = measure(tmp_path, second, X, y, epsilons=0.03)
    assert found.row("fgsm", 0.03).loss == measure(None, second, X, y, epsilons=0.03).rows[1].loss
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()}
    measure(tmp_path, second, X, y, epsilons=0.03)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()} == before


def test_code_that_cannot_be_described_is_another_model_each_time(tmp_path):
    unknown = np.random.default_rng(0)  # as a network of another library would be

    def opaque(images):
        return unknown.permutation(3)[:0].sum() + _flat(np.asarray(images)) @ np.asarray(WEIGHTS)

    def model(x):
        shape = jax.ShapeDtypeStruct((len(x), 3), jnp.float32)
        return jax.pure_callback(lambda a: opaque(a).astype(np.float32), shape, x)

    assert digest(model) is None
    measure(tmp_path, model, X, np.zeros(12, int), attacks=())
    with pytest.warns(UserWarning, match="cannot be described, so that every call counts"):
        measure(tmp_path, model, X, np.zeros(12, int), attacks=())


def test_checks_with_another_twin_are_made_again(tmp_path, monkeypatch):
    """The two twins have the same arrays."""
    seen = []
    monkeypatch.setattr(
        "steinnorm.attacks.robustness.checks.run_checks",
        lambda *_, twin, **__: seen.append(twin) or Checks([], {}),
    )
    evaluator = BatchEvaluator(PAIRS["partial"][0], "linf", (0, 1), 0, False, lambda _: None)
    for twin in (*PAIRS["partial"], PAIRS["partial"][1], None):
        make_checks(
            evaluator,
            Batch(0, X, np.zeros(12, int)),
            0.03,
            CheckRequest(SMOKE, 12, twin),
            identity={},
            path=tmp_path / "checks.json",
        )
    assert seen == [*PAIRS["partial"], None]


def test_a_black_box_is_evaluated_in_a_folder_and_goes_on_there(tmp_path):
    y = np.asarray(jnp.argmax(scaled(1.0, X), axis=1))
    square = AttackSettings("square", "square", queries=20)
    found = measure(tmp_path, black_box, X, y, attacks=square)
    assert found.rows == measure(None, black_box, X, y, attacks=square).rows
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()}
    measure(tmp_path, black_box, X, y, attacks=square)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()} == before
