"""Checks of networks that are trained already, with other settings than at their training."""

import dataclasses
import json
import shutil

import pytest

from experiments.__main__ import main
from experiments.commands import compare
from experiments.commands.evaluation_request import Request, settings_for
from experiments.configs.schema import EvaluationConfig
from experiments.errors import ConfigError
from tests.experiments.commands.test_compare import COMPARISON, _compare

STEPS = "evaluation.checks.difference_steps"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("comparison") / "work"
    _compare(workdir)
    return workdir


def _found(run):
    """What the check of the gradient says."""
    checks = json.loads((run / "checks.json").read_text())
    (found,) = (c for c in checks if c["name"] == "gradient_matches_finite_differences")
    return found["detail"]


def test_evaluate_makes_them_with_the_settings_that_it_is_given(finished, tmp_path):
    run = shutil.copytree(finished / "runs" / "batch-0", tmp_path / "run")
    before = (run / "config.json").read_bytes()
    command = ["evaluate", str(run), "--statistics", "running", "--attacks", "fgsm"]
    assert main([*command, "--set", f"{STEPS}=[0.01,0.001]"]) == 0
    assert "best of 2 steps" in _found(run)
    assert main(command) == 0
    assert "best of 1 steps" in _found(run)
    assert (run / "config.json").read_bytes() == before


def test_what_a_flag_says_goes_before():
    known = EvaluationConfig(batch_size=8)
    changes = ("evaluation.batch_size=4", "evaluation.checks.steps=40")
    found = settings_for(known, Request(changes=changes, batch_size=2))
    assert (found.batch_size, found.checks.steps) == (2, 40)
    assert settings_for(known, Request(changes=changes)).batch_size == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs=3", r"train is a part of the training.*as evaluation\.checks\.steps=40"),
        ("evaluation.checks.steps=0", r"^evaluation\.checks\.steps must be at least 1; got 0"),
        ("evaluation.checks.step=3", r"unknown setting 'evaluation\.checks\.step'; there are"),
        ('evaluation.checks={"step": 3}', r"unknown settings: evaluation\.checks\.step$"),
        ("evaluation.checks.steps", r"--set needs FIELD=VALUE"),
        ("checks.steps=40", r"unknown setting 'checks\.steps'; the groups are"),
    ],
)
def test_mistakes_say_what_is_wrong(change, message):
    with pytest.raises(ConfigError, match=message):
        settings_for(EvaluationConfig(batch_size=8), Request(changes=(change,)))


def test_other_defaults_of_a_later_version_make_no_other_run(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "work")
    monkeypatch.setattr(compare.train, "run", lambda *_, **__: pytest.fail("trained again"))
    configs = {}
    for norm, config in COMPARISON.configs.items():
        checks = dataclasses.replace(config.evaluation.checks, difference_steps=(0.5, 0.25))
        evaluation = dataclasses.replace(config.evaluation, checks=checks)
        configs[norm] = dataclasses.replace(config, evaluation=evaluation)
    later = dataclasses.replace(COMPARISON, configs=configs)
    assert "[2/2] group, seed 0: clean" in _compare(workdir, later)


def test_checks_that_a_comparison_names_are_made_anew_without_training(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "work")
    asked = Request(statistics="running", attacks="fgsm")
    changes = [f"batch:{STEPS}=[0.01,0.001]", "evaluation.batch_size=16"]
    requests = compare.requests(asked, COMPARISON.configs, changes)
    assert set(requests) == {"batch"}  # and no setting but those of the checks
    checked = dataclasses.replace(COMPARISON, request=asked, requests=requests)
    logs = [run / "metrics.jsonl" for run in sorted((workdir / "runs").iterdir())]
    before = [log.read_bytes() for log in logs]
    for _ in range(2):
        _compare(workdir, checked)
        assert "best of 2 steps" in _found(workdir / "runs" / "batch-0")
        assert "best of 1 steps" in _found(workdir / "runs" / "group-0")
    assert [log.read_bytes() for log in logs] == before
    noted = json.loads((workdir / "runs" / "batch-0" / "comparison.json").read_text())
    assert [one["changes"] for one in noted["measured"]] == [[], [f"{STEPS}=[0.01,0.001]"]]
    _compare(workdir)  # what was measured before stays


def test_a_setting_of_the_training_is_still_refused(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "work")
    other = compare.configs("digits", None, True, ["batch"], ["train.epochs=2"])
    with pytest.raises(ConfigError, match=r"train\.epochs is 1 there, 2 here"):
        _compare(workdir, dataclasses.replace(COMPARISON, configs=other))
