"""Checks that several processes share."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import tasks
from experiments.configs.schema import SMOKE_CHECKS, ChecksConfig
from experiments.data import devices
from experiments.data.examples import Examples
from experiments.evaluation import compiled_programs, run_checks
from experiments.evaluation.compiled_programs import release_where_many
from experiments.evaluation.plan import Run
from experiments.evaluation.run_checks import CheckedModel, Checker, gather, load_all
from experiments.results import Check, Row
from steinnorm.nnx import SteinBatchNorm


def _found(source):
    config = json.loads(json.dumps(dataclasses.asdict(ChecksConfig())))
    check = Check("tiny", "stein", 0, source, "name", "PASS", 0.5, "detail")
    row = Row("tiny", "stein", 0, source, "convergence", 0.1, "accuracy", 0.5, 8, 0.2, 0.8)
    return CheckedModel([check], [row], {"weights": "w", "config": config})


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_process_has_what_the_others_found(number, tmp_path, monkeypatch):
    """Though it does not see their files yet."""
    mine, other = _found("running"), _found("batch")
    theirs = json.dumps([dataclasses.asdict(other)]).encode()
    monkeypatch.setattr(devices, "exchange", lambda content: [content, theirs])
    monkeypatch.setattr(devices, "is_first", lambda: number == 0)
    gather(tmp_path, [mine])
    assert load_all(tmp_path, lambda source: {"weights": "w"}) == ([] if number else [other])


def test_checks_of_another_calibration_are_not_this_ones(tmp_path, monkeypatch):
    theirs = [_found("running"), _found("calibrated")]
    content = json.dumps([dataclasses.asdict(each) for each in theirs]).encode()
    monkeypatch.setattr(devices, "exchange", lambda mine: [mine, content])
    gather(tmp_path, [])

    def identity(source):
        return {"weights": "w", **({"calibrated_on": "x"} if source == "calibrated" else {})}

    assert load_all(tmp_path, identity) == theirs[:1]


class _Normed(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
        self.norm = SteinBatchNorm(4, rngs=rngs)
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.norm(x.reshape(len(x), -1)))


def _checker(losses=()):
    rng = np.random.default_rng(3)
    x = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32)
    examples = Examples(x, rng.integers(0, 3, 6).astype(np.int32))
    task = tasks.create("classification", 3)
    return Checker(SMOKE_CHECKS, task, examples, lambda source: 6, seed=0, losses=losses)


def test_checks_are_made_again_where_the_attacks_have_another_loss(tmp_path):
    run = Run("tiny", "batch", 0, ("a", "b", "c"))

    def of_the_margin(losses):
        checks = _checker(losses).check(_Normed(), "running", run, tmp_path).checks
        (found,) = [check for check in checks if check.name == "margin_not_stronger"]
        return found.verdict

    assert of_the_margin(("cross_entropy",)) == "PASS"
    assert of_the_margin(("margin", "cross_entropy")) == "not applicable"
    assert of_the_margin(()) == "PASS"


def test_programs_are_let_go_of_between_checks_and_change_nothing(tmp_path, monkeypatch):
    checker = _checker()
    run = Run("tiny", "batch", 0, ("a", "b", "c"))
    expected = checker.check(_Normed(), "running", run)
    limit = tmp_path / "max_map_count"
    limit.write_text("10\n")  # a system that allows hardly any
    monkeypatch.setattr(compiled_programs, "_MOST_MAPS", limit)
    let_go = []
    monkeypatch.setattr(
        run_checks, "release_where_many", lambda: let_go.append(release_where_many())
    )
    assert checker.check(_Normed(), "running", run) == expected
    assert len(let_go) == checker.steps
