"""Rows from per-example results, and the worst of several attacks."""

import dataclasses

import numpy as np
import pytest

from experiments.configs.schema import AttackConfig
from experiments.evaluation.aggregate import NO_ATTACK, in_order, rows, worst_rows
from experiments.evaluation.per_example import PerExampleResults, Values
from experiments.tasks import Binary, Classification, Segmentation
from steinnorm.attacks.intervals import Tally, wilson_interval

TASK = Classification(3)
PGD = AttackConfig("pgd", "pgd", (0.1,), steps=5)
APGD = AttackConfig("apgd", "apgd", (0.1,), steps=7)
NOISE = AttackConfig("gaussian", "gaussian", (0.1,))


def _results(right, loss, attack=PGD, *, threat_model="", epsilon=0.1, batch=None, distance=0.05):
    right = np.array(right, bool)
    settings = dataclasses.asdict(attack)
    del settings["epsilons"], settings["shown"]
    return PerExampleResults(
        about={
            "config": "c",
            "norm": "stein",
            "seed": 1,
            "statistics": "batch" if threat_model else "running",
            "threat_model": threat_model,
            "epsilon": epsilon,
            "attack": attack.name,
            "attack_settings": settings,
            "norm_order": attack.norm if attack.has_ball else "",
            "identity": {},
        },
        summary={
            "right": right,
            "prediction": np.where(right, 0, 1),
            "loss": np.array(loss, np.float32),
        },
        distance=np.full(len(right), distance),
        batch=np.zeros(len(right), int) if batch is None else np.array(batch),
        values=Values(0.1, 0.8, 0),
    )


def test_rows_state_the_attack_and_its_interval():
    values = [1, 0, 1, 1], [0.1, 2, 0.2, 0.3]
    accuracy, loss = rows(TASK, _results(*values))
    assert (accuracy.min, accuracy.max, accuracy.nan_count) == (0.1, 0.8, 0)
    assert (accuracy.metric, accuracy.value, accuracy.n) == ("accuracy", 0.75, 4)
    assert (accuracy.ci_low, accuracy.ci_high) == wilson_interval(Tally(3, 4))
    assert (accuracy.norm_order, accuracy.steps) == ("linf", 5)
    assert accuracy.step_size == pytest.approx(2.5 * 0.1 / 5)
    assert accuracy.max_norm == pytest.approx(0.05)
    assert loss.value == pytest.approx(0.65)
    assert loss.ci_low < 0.65 < loss.ci_high
    noise, _ = rows(TASK, _results(*values, NOISE))
    assert (noise.norm_order, noise.steps, noise.step_size) == ("", 0, 0.0)
    adaptive, _ = rows(TASK, _results(*values, APGD))
    assert (adaptive.steps, adaptive.step_size) == (7, 0.0)


def test_the_worst_is_taken_per_example_over_the_attacks_of_a_ball():
    one = _results([1, 0, 1, 1], [0.1, 2, 0.2, 0.3])
    two = _results([0, 1, 1, 1], [3, 0.1, 0.1, 0.9], APGD, distance=0.07)
    other = _results([0, 0, 0, 0], [9, 9, 9, 9], epsilon=0.2)
    noise = _results([0, 0, 0, 0], [9, 9, 9, 9], NOISE)
    fewer = _results([0, 0], [9, 9])  # other examples: no part of the same worst case
    found = worst_rows(TASK, [noise, one, two, other])
    assert [r.n for r in worst_rows(TASK, [fewer, one])] == [4, 4]
    at = {(row.epsilon, row.metric): row for row in found}
    assert at[0.1, "accuracy"].value == 0.5
    # wrong counts before loss; where all are right, the largest loss
    assert at[0.1, "loss"].value == pytest.approx((3 + 2 + 0.2 + 0.9) / 4)
    assert at[0.1, "accuracy"].attack == "worst"
    assert at[0.1, "accuracy"].over == "apgd, pgd"
    assert at[0.2, "accuracy"].over == "pgd"
    assert at[0.2, "accuracy"].value == 0.0
    assert len(found) == 4


def test_where_the_attacker_owns_the_batch_the_worst_is_taken_per_batch():
    batch = [0, 0, 1, 1]
    one = _results([1, 0, 1, 1], [1, 2, 1, 1], threat_model="joint", batch=batch)
    two = _results([0, 1, 0, 0], [3, 3, 1, 1], threat_model="joint", batch=batch)
    found = worst_rows(TASK, [one, two])
    # First batch: as many wrong in both, the second has the larger loss. Per example it were 0.
    assert [row.value for row in found] == [0.25, pytest.approx(2.0)]
    assert found[0].threat_model == "joint"
    alone = [
        _results(c.summary["right"], c.summary["loss"], threat_model="independent")
        for c in (one, two)
    ]
    assert worst_rows(TASK, alone)[0].value == 0


def test_share_wrong_of_every_task():
    right = {"right": np.array([True, False])}
    for task in (TASK, Binary()):
        np.testing.assert_array_equal(task.share_wrong(right), [0, 1])
    confusion = np.array([[[3, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 2], [2, 0]]])
    np.testing.assert_array_equal(
        Segmentation(2).share_wrong({"confusion": confusion}), [0.25, 0, 1]
    )


def test_results_stand_in_the_order_of_tables():
    values = [1, 0], [0, 1]
    later = _results(*values, threat_model="joint")
    some = [
        later,
        _results(*values, APGD),
        _results(*values, NOISE),
        _results(*values, NO_ATTACK, epsilon=0.0),
    ]
    found = [(r.key.statistics, r.key.attack) for r in in_order(some)]
    assert found == [
        ("running", "clean"),
        ("running", "gaussian"),
        ("running", "apgd"),
        ("batch", "pgd"),
    ]
