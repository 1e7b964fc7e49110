"""Checks that several processes share."""

import dataclasses
import json

import pytest

from experiments.configs.schema import ChecksConfig
from experiments.data import devices
from experiments.evaluation.run_checks import CheckedModel, gather, load_all
from experiments.results import Check, Row


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
