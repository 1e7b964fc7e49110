"""The work folder: whole files only, and runs that belong to the configuration."""

import dataclasses
import json
import math
import os

import pytest

from experiments.commands import demo_folder as record
from experiments.commands.demo_folder import Run, WorkFolder
from experiments.configs import presets
from experiments.errors import ConfigError
from experiments.results import LoggedStep, Row
from steinnorm.attacks import files


def _row(**changes):
    row = Row("digits", "stein", 0, "running", "pgd", 0.1, "accuracy", 0.5, 100, 0.4, 0.6)
    return dataclasses.replace(row, **changes)


def _run(**changes):
    history = [LoggedStep(1, 0.1, 2.3, 0.1, {"stem": {"mean_factor": 0.4, "variance_factor": 1.0}})]
    return Run("stein", 0, 1.5, [_row(**changes)], history)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "x.json", math.nan)
    assert not (tmp_path / "x.json").exists()


def test_runs_come_back_as_they_went(tmp_path):
    folder = WorkFolder.open(tmp_path / "new" / "folder", presets.load("digits"))
    assert folder.load("stein", 0) is None
    folder.save(_run())
    assert folder.load("stein", 0) == _run()
    assert folder.load("stein", 1) is None
    assert json.loads((folder.root / "config.json").read_text())["name"] == "digits"


def test_a_run_of_another_configuration_is_not_reused(tmp_path):
    WorkFolder.open(tmp_path, presets.load("digits")).save(_run())
    assert WorkFolder.open(tmp_path, presets.load("digits", smoke=True)).load("stein", 0) is None


def test_half_a_file_is_not_a_run(tmp_path):
    folder = WorkFolder.open(tmp_path, presets.load("digits"))
    folder.save(_run())
    path = tmp_path / "runs" / "stein-0.json"
    path.write_text(path.read_text()[:50])
    assert folder.load("stein", 0) is None


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="taken"):
        WorkFolder.open(tmp_path / "taken", presets.load("digits"))


def test_a_run_of_other_code_is_made_again(tmp_path, monkeypatch):
    config = presets.load("digits")
    WorkFolder.open(tmp_path, config).save(_run())
    assert WorkFolder.open(tmp_path, config).load("stein", 0) == _run()
    monkeypatch.setattr(record, "code_digest", lambda *folders: "of another version")
    assert WorkFolder.open(tmp_path, config).load("stein", 0) is None
