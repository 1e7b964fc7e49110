"""The plan, sorted batches, the choice of n, and measurements that are stopped and go on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.configs.data import CityscapesData
from experiments.configs.schema import EvaluationConfig
from experiments.data import split
from experiments.data.cityscapes import in_file_order
from experiments.errors import ConfigError
from experiments.evaluation.calibration import Calibrating
from experiments.evaluation.shift import network as shift
from experiments.evaluation.shift.network import Network, choose, measure_all, steps
from experiments.evaluation.shift.plan import CLEAN, Cell, Condition, Plan, all_fitting, by_class
from experiments.evaluation.shift.recalibrated import recalibrated
from experiments.evaluation.shift.rules import mixed_name
from experiments.evaluation.shift.store import Store, identity
from experiments.tasks import Classification
from steinnorm.nnx import convert, revert
from tests.experiments.evaluation.shift.test_evidence import Tiny, _trained
from tests.experiments.evaluation.test_measure import Counted, _examples

PLAN = Plan(
    ("contrast", "darkness"),
    severities=(1, 2),
    batch_sizes=(1, 2, 8),
    strengths=(4, 16),
    test_examples=24,
)


def _network(folder, model=None, plan=PLAN):
    examples = _examples(plan.test_examples)
    model = model or _trained(Tiny(3), examples.inputs)
    order, sizes = by_class(examples.targets, plan.batch_sizes)
    train = _examples(120)
    about = identity(model, (train, examples), 120, order, plan)
    calibrating = Calibrating(model, train, EvaluationConfig(batch_size=40))
    return Network(
        "tiny", calibrating, Classification(3), examples, order, sizes, Store(folder, about)
    )


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_products_are_as_precise_as_in_the_training(precision, tmp_path, monkeypatch):
    """On a CPU that says it is a GPU, and measures nothing."""
    seen = []

    def measure(answers, inputs, *_):
        seen.append(jax.config.jax_default_matmul_precision)
        return np.zeros(len(inputs))

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(shift.evidence, "measure", measure)
    network = dataclasses.replace(_network(tmp_path), precision=precision)
    network.measure(CLEAN, [Cell("batch", 8)], network.test.inputs, Counted())
    assert seen == [precision]


def test_results_of_other_products_are_measured_anew():
    examples = _examples(PLAN.test_examples)
    order, _ = by_class(examples.targets, PLAN.batch_sizes)
    known = identity(Tiny(3), (examples, examples), 120, order, PLAN)
    with jax.default_matmul_precision("highest"):
        assert identity(Tiny(3), (examples, examples), 120, order, PLAN) != known


def _all(network):
    return {condition: network.store.load(condition) for condition in PLAN.conditions}


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path):
    whole = _network(tmp_path / "whole")
    watcher = Counted()
    chosen = measure_all([whole], PLAN, watcher)
    assert watcher.batches == steps([whole], PLAN)
    expected = _all(whole)

    stopped = _network(tmp_path / "stopped")
    first = Counted(most=20)
    with pytest.raises(KeyboardInterrupt):
        measure_all([stopped], PLAN, first)
    kept = {c: set(results) for c, results in _all(stopped).items() if results}
    assert sum(map(len, kept.values())) == len(first.begun)  # an interrupt loses nothing
    second = Counted()
    assert measure_all([stopped], PLAN, second) == chosen
    assert len(first.begun) + len(second.begun) == len(watcher.begun)
    assert second.batches == steps([stopped], PLAN)
    found = _all(stopped)
    for condition, results in expected.items():
        assert set(found[condition]) == set(results)
        for cell, values in results.items():
            np.testing.assert_array_equal(found[condition][cell], values)
    third = Counted()
    measure_all([stopped], PLAN, third)
    assert third.begun == []


def test_other_weights_seeds_and_damaged_files_are_measured_anew(tmp_path):
    network = _network(tmp_path)
    network.store.save(CLEAN, {Cell("running", 0): np.ones((24, 1), bool)})
    assert network.store.load(CLEAN)
    other = _trained(Tiny(3), 2 * _examples(24).inputs)
    assert not _network(tmp_path, other).store.load(CLEAN)
    assert not _network(tmp_path, plan=dataclasses.replace(PLAN, seed=1)).store.load(CLEAN)
    (path,) = tmp_path.glob("clean-0.npz")
    path.write_bytes(path.read_bytes()[:-100])
    assert not network.store.load(CLEAN)
    path.write_bytes(b"")
    assert not network.store.load(CLEAN)


def test_the_best_n_is_chosen_on_clean_and_tuning_conditions_alone(tmp_path):
    network = _network(tmp_path)
    assert PLAN.tuning == [CLEAN, Condition("contrast", 2)]
    for condition in PLAN.tuning:
        right = {4: 10, 16: 14}
        network.store.save(
            condition,
            {
                Cell(mixed_name(n), size): (np.arange(24) < right[n])[:, None]
                for n in right
                for size in PLAN.batch_sizes
            },
        )
    assert choose(network, PLAN) == 16


def test_corruption_happens_only_where_something_is_missing(tmp_path, monkeypatch):
    network = _network(tmp_path)
    measure_all([network], PLAN, Counted())
    monkeypatch.setattr(shift, "corrupt_all", None)
    measure_all([network], PLAN, Counted())  # would be a TypeError


def test_batches_of_one_class():
    targets = np.array([0, 1, 0, 1, 1, 0, 2, 0, 1, 2, 0, 1])
    order, sizes = by_class(targets, [1, 2, 4, 8])
    assert sizes == [2, 4]
    assert targets[order].tolist() == [0] * 4 + [1] * 4
    assert len(set(order)) == len(order)
    nothing, none = by_class(np.arange(5), [1, 2, 4])
    assert len(nothing) == 0
    assert none == []


def test_frames_in_the_order_of_their_files():
    for validation, stream in (("folder", 2), ("split", 1)):
        config = CityscapesData(validation=validation, split_seed=5)
        frames = split.shuffled_order(9, 5, stream)  # as the loader puts them
        assert frames[in_file_order(config, 9)].tolist() == list(range(9))


def test_plans_fit_the_test_part():
    plan = Plan(all_fitting((8, 8, 1), pixel_labels=False))
    assert plan.for_examples(10_000).test_examples == 1024
    assert plan.for_examples(500).test_examples == 448
    small = plan.for_examples(52)
    assert (small.batch_sizes, small.test_examples) == ((1, 2, 4, 8, 16), 48)
    assert len(plan.conditions) == 1 + 3 * 13
    with pytest.raises(ConfigError, match="1 test examples are too few; at least 2 are needed"):
        plan.for_examples(1)


def test_recalibration_gives_the_statistics_of_all_examples():
    """Of the first norm layer, whose inputs do not depend on statistics, in unequal batches."""
    inputs = 3 * _examples(50).inputs + 1
    # Without shrinkage: a norm with one records what it normalised with.
    model = convert(revert(_trained(Tiny(3), _examples().inputs)), "none")
    before = jax.tree.map(np.array, nnx.state(model))
    found = recalibrated(model, [jnp.asarray(inputs[:32]), jnp.asarray(inputs[32:])])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(model)))
    values = np.asarray(model.first(jnp.asarray(inputs.reshape(50, -1))), np.float64)
    np.testing.assert_allclose(found.norm.mean[...], values.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.norm.var[...], values.var(axis=0), rtol=1e-4)
    assert found.norm.momentum == model.norm.momentum
    assert not np.allclose(found.norm.mean[...], model.norm.mean[...])


def test_programs_do_not_pile_up_over_the_conditions(tmp_path, monkeypatch):
    network, seen = _network(tmp_path), []
    monkeypatch.setattr(shift, "release_where_many", lambda: seen.append(1))
    monkeypatch.setattr(
        shift.evidence, "measure", lambda answers, inputs, *_: np.zeros(len(inputs))
    )
    network.measure(CLEAN, [Cell("batch", 8)], network.test.inputs, Counted())
    assert seen == [1]
