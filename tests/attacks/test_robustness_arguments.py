"""Arguments of the one call: the bad are refused before anything is measured, others taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import AttackSettings, catalogue, evaluate_robustness
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.losses import LOSSES
from steinnorm.attacks.noise import NOISES
from steinnorm.attacks.robustness.evaluator import BatchEvaluator
from tests.attacks.one_call import QUIET, measure
from tests.attacks.three_wrong import WEIGHTS, X, Y, linear

BAD_INPUT = [
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


@pytest.mark.parametrize(
    ("changes", "message"), BAD_INPUT, ids=[message[:25] for _, message in BAD_INPUT]
)
def test_bad_input(changes, message):
    arguments = {"logits_fn": linear, "x": X, "y": Y, "attacks": "fgsm", "batch_size": 10}
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(**{**arguments, **changes}, **QUIET)


BAD_SETTINGS = [
    ({"twin": 3}, "twin must be a function of a batch, or None; got 3"),
    ({"checks": 1}, "checks must be True, False or CheckSettings; got 1"),
    ({"check_examples": 0}, "check_examples must be at least 1; got 0"),
    ({"check_examples": 2.5}, r"check_examples must be an integer; got 2\.5"),
    ({"checks": CheckSettings(steps=0)}, r"CheckSettings\.steps must be at least 1; got 0"),
    ({"checks": CheckSettings(difference_steps=())}, r"difference_steps must be a tuple"),
    ({"checks": CheckSettings(losses="margin")}, r"losses must be a tuple of some of .*'margin'"),
    ({"checks": CheckSettings(losses=("no",))}, r"losses must be a tuple of some of cross_entropy"),
    (
        {"checks": CheckSettings(tolerance=float("nan"))},
        r"tolerance must be a finite number, not neg",
    ),
    (
        {"attacks": AttackSettings("x" * 101, "fgsm")},
        r"of at most 100 characters; got x{30}\.\.\. of 101",
    ),
    ({"seed": None}, "seed must be an integer; got None"),
    ({"batch_dependent": "no"}, "batch_dependent must be True, False or None; got 'no'"),
    ({"epsilons": None}, "epsilons must be a number or an iterable of numbers; got None"),
    ({"epsilons": [np.ones(3)]}, r"epsilons must be numbers; got one of shape \(3,\)"),
]


@pytest.mark.parametrize(
    ("changes", "message"), BAD_SETTINGS, ids=[message[:25] for _, message in BAD_SETTINGS]
)
def test_bad_arguments_are_refused_before_anything_is_measured(changes, message):
    def never(x):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        measure(None, never, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**70}, r"seed must lie in \[-2\*\*63, 2\*\*63\)"),
        ({"seed": 1.0}, "seed must be an integer"),
        ({"epsilons": (0.1, 0.10000000001)}, r"first nine digits.*; 0\.1 is there more than once"),
        ({"attacks": 3}, "attacks must be a name, AttackSettings, a function or .*; got 3"),
        ({"attacks": None}, "attacks must be a name"),
        ({"out": 3}, "out must be the path of a folder, or None; got 3"),
    ],
)
def test_arguments_are_refused_before_anything_is_measured(changes, message):
    def untouched(x):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=message):
        measure(model=untouched, **changes)


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(tmp_path):
    file = tmp_path / "results"
    file.write_text("mine")
    for out in (file, file / "inside"):
        with pytest.raises(ValueError, match=r"out must be a folder.*results is a file"):
            measure(out)
    assert file.read_text() == "mine"


def test_boolean_labels():
    with pytest.raises(ValueError, match=r"got booleans: use y\.astype\(int\)"):
        measure(None, lambda x: linear(x)[:, :1], X, Y > 0)


def test_an_unknown_loss_is_refused_where_it_is_written():
    for kind in ("pgd", "fgsm", "square"):
        with pytest.raises(ValueError, match=r"mine: loss must be one of .*margin.*; got 'zzz'"):
            AttackSettings("mine", kind, loss="zzz")
    assert AttackSettings("mine", "apgd", loss="targeted_margin").loss == "targeted_margin"


def test_settings_are_those_of_their_kind():
    for known in catalogue.names():
        attack = catalogue.by_name(known)
        assert AttackSettings(known, attack.kind, loss=attack.loss) == attack
    steps = {n: catalogue.by_name(n).steps for n in ("fgsm", "pgd", "autoattack", "sea", "square")}
    assert steps == {"fgsm": 1, "pgd": 20, "autoattack": 100, "sea": 300, "square": 1}
    assert AttackSettings("p", "pgd").random_start is True
    assert AttackSettings("p", "pgd", random_start=False).random_start is False
    assert AttackSettings("a", "autoattack", steps=1).steps == 1
    with pytest.raises(ValueError, match=r"p: targeted_dlr is a loss of apgd.*fgsm takes one of"):
        AttackSettings("p", "fgsm", loss="targeted_dlr")
    assert AttackSettings("p", "apgd", loss="targeted_dlr").gradient_losses == ("margin",)
    with pytest.raises(ValueError, match=r"3 restarts from the same point .* random_start=True"):
        AttackSettings("p", "pgd", restarts=3, random_start=False)


def test_every_attack_says_which_losses_its_steps_increase():
    told = {name: catalogue.by_name(name).gradient_losses for name in catalogue.names()}
    assert {loss for each in told.values() for loss in each} <= set(LOSSES)
    without = {name for name, each in told.items() if not each}
    assert without == {*NOISES, "square"}
    assert told["pgd-margin"] == told["fab-t"] == told["apgd-t"] == ("margin",)
    assert told["autoattack"] == ("cross_entropy", "margin")


def test_numbers_of_numpy(tmp_path):
    numpys = {
        "seed": np.int64(3),
        "batch_dependent": np.bool_(False),
        "check_examples": np.int64(6),
        "checks": CheckSettings(np.int64(2), 2, 4, np.float32(0.01), directions=np.int32(1)),
        "epsilons": np.float32(0.05),
        "attacks": AttackSettings("p", "pgd", np.int64(3), np.float32(0.05), np.bool_(True)),
    }
    found = measure(tmp_path, **numpys)
    assert found.settings["seed"] == 3
    assert found.rows == measure(None, **numpys).rows
    assert type(numpys["attacks"].steps) is int
    assert type(numpys["attacks"].step_size) is float


@pytest.mark.parametrize("epsilon", [jnp.float32(0.05), np.array(0.05), jnp.array([0.05, 0.05])])
def test_radii_as_arrays(epsilon):
    found = measure(epsilons=epsilon)
    assert [row.epsilon for row in found.rows] == pytest.approx([0, 0.05, 0.05])


def test_every_bit_of_a_seed_counts():
    def key(seed):
        evaluator = BatchEvaluator(linear, "linf", (0, 1), seed, False, lambda _: None)
        return tuple(jax.random.key_data(evaluator.key).tolist())

    seeds = (0, 1, -1, 2**32 - 1, 2**32, 2**33, 2**63 - 1, -(2**63))
    assert len({key(seed) for seed in seeds}) == len(seeds)
    for seed in (0, 1, 2**32 - 1):
        assert key(seed) == tuple(jax.random.key_data(jax.random.key(seed)).tolist())
