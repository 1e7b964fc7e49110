"""Work folders: settings written once and compared, one user at a time, logs that can go back."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.configs.overrides import resolve
from experiments.configs.schema import ChecksConfig, ResNetModel
from experiments.errors import ConfigError
from experiments.results import read_log
from experiments.training import folder as runfolder
from experiments.training.folder import RunFolder, RunSettings, data_dir_of, read_settings

SETTINGS = RunSettings(resolve("digits", smoke=True), norm="stein", seed=3)


def _changed(**train):
    config = dataclasses.replace(
        SETTINGS.config, train=dataclasses.replace(SETTINGS.config.train, **train)
    )
    return dataclasses.replace(SETTINGS, config=config)


@contextlib.contextmanager
def _begun(root, settings=SETTINGS, data_dir=None):
    """A training that has begun, and has a checkpoint."""
    with RunFolder(root, settings, data_dir) as folder:
        folder.begin(anew=not folder.checkpoints.exists())
        (folder.checkpoints / "1").mkdir(parents=True, exist_ok=True)
        yield folder


def test_config_json_has_settings_versions_and_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with _begun(tmp_path / "a" / "b", data_dir=Path("data")) as folder:
        assert folder.checkpoints == tmp_path / "a" / "b" / "checkpoints"
    content = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert content["norm"] == "stein"
    assert content["seed"] == 3
    assert content["config"]["train"]["batch_size"] == SETTINGS.config.train.batch_size
    assert content["versions"]["jax"] == jax.__version__
    assert content["versions"]["numpy"] == np.__version__
    assert str(tmp_path) not in json.dumps(content)  # settings may be published
    assert content["git_commit"] == runfolder.git_commit()
    assert read_settings(tmp_path / "a" / "b") == SETTINGS
    assert data_dir_of(tmp_path / "a" / "b") == tmp_path / "data"


def test_the_commit_is_gits_own_and_empty_without_git(monkeypatch):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if head.returncode:
        pytest.skip("not in a git repository")
    assert runfolder.git_commit().removesuffix("-dirty") == head.stdout.strip()
    monkeypatch.setenv("PATH", "")
    assert runfolder.git_commit() == ""


def test_without_a_data_folder_there_is_none(tmp_path):
    with _begun(tmp_path):
        pass
    assert data_dir_of(tmp_path) is None


@pytest.mark.parametrize("name", ["digits", "cifar10", "volumes", "cityscapes"])
def test_the_same_settings_open_it_again_and_leave_it_as_it_is(tmp_path, name):
    override = 'train.adversary={"epsilon": 0.03}'
    for _ in range(2):
        settings = RunSettings(resolve(name, overrides=[override]), norm="batch", seed=0)
        with _begun(tmp_path, settings):
            content = (tmp_path / "config.json").read_bytes()
    assert (tmp_path / "config.json").read_bytes() == content
    assert read_settings(tmp_path) == settings


def test_descriptions_do_not_count(tmp_path):
    with _begun(tmp_path):
        pass
    told = dataclasses.replace(SETTINGS.config, expected_time="soon", size="big", dataset="a")
    with RunFolder(tmp_path, dataclasses.replace(SETTINGS, config=told), None):
        pass


@pytest.mark.parametrize(
    ("settings", "differences"),
    [
        (dataclasses.replace(SETTINGS, seed=4), ["seed is 3 there, 4 here"]),
        (dataclasses.replace(SETTINGS, norm="batch"), ["norm is 'stein' there, 'batch' here"]),
        (
            _changed(batch_size=7, learning_rate=0.5),
            [
                f"config.train.batch_size is {SETTINGS.config.train.batch_size} there, 7 here",
                f"config.train.learning_rate is {SETTINGS.config.train.learning_rate} there, 0.5",
            ],
        ),
        (
            dataclasses.replace(SETTINGS, config=resolve("cifar10")),
            ["config.data.kind is 'digits' there, 'cifar10' here", "config.name is 'digits'"],
        ),
    ],
)
def test_other_settings_are_refused_with_what_differs(tmp_path, settings, differences):
    with _begun(tmp_path):
        content = (tmp_path / "config.json").read_bytes()
    with (
        pytest.raises(ConfigError, match="training with other settings") as caught,
        RunFolder(tmp_path, settings, None),
    ):
        pass
    for difference in differences:
        assert difference in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "--workdir" in str(caught.value)
    assert (tmp_path / "config.json").read_bytes() == content


def test_without_a_checkpoint_other_settings_begin_anew(tmp_path):
    other = dataclasses.replace(SETTINGS, seed=4)
    for settings in (SETTINGS, other):
        with RunFolder(tmp_path, settings, None) as folder:
            folder.log({"step": 1})
            folder.begin(anew=True)
            assert read_log(tmp_path / "metrics.jsonl") == []
    assert read_settings(tmp_path) == other


def test_earlier_versions_kept_the_data_folder_with_the_settings(tmp_path):
    with _begun(tmp_path):
        pass
    (tmp_path / "data_dir.txt").unlink()
    assert data_dir_of(tmp_path) is None
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_dir": "/there"}))
    assert data_dir_of(tmp_path) == Path("/there")


def test_a_data_folder_whose_name_is_no_utf8_is_found_again(tmp_path):
    place = Path(os.fsdecode(b"/data/\xff"))
    with _begun(tmp_path, data_dir=place):
        pass
    assert data_dir_of(tmp_path) == place
    (tmp_path / "data_dir.txt").write_bytes("/data".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"data_dir\.txt is damaged.*--data-dir"):
        data_dir_of(tmp_path)


def test_a_log_that_is_no_text_ends_where_it_is_damaged(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n{"step": 2}\n')
    assert read_log(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_a_log_on_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with (
        RunFolder(tmp_path, SETTINGS, None) as folder,
        pytest.raises(OSError, match="No space") as caught,
    ):
        folder.log({"step": 1})
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")


def test_going_on_keeps_the_beginnings_versions_and_notes_the_new_data_folder(tmp_path):
    with _begun(tmp_path, data_dir=tmp_path / "old"):
        content = json.loads((tmp_path / "config.json").read_text())
        content["git_commit"] = "of the beginning"
        (tmp_path / "config.json").write_text(json.dumps(content))
    with _begun(tmp_path, data_dir=tmp_path / "new"):
        pass
    assert json.loads((tmp_path / "config.json").read_text())["git_commit"] == "of the beginning"
    assert data_dir_of(tmp_path) == tmp_path / "new"


def test_a_refusal_lets_go_of_the_lock(tmp_path):
    with _begun(tmp_path):
        pass
    other = RunFolder(tmp_path, dataclasses.replace(SETTINGS, seed=4), None)
    with pytest.raises(ConfigError, match="other settings"), other:
        pass
    with RunFolder(tmp_path, SETTINGS, None):
        pass


def test_an_adversary_that_is_new_is_a_difference(tmp_path):
    with _begun(tmp_path):
        pass
    config = resolve("digits", smoke=True, overrides=['train.adversary={"epsilon": 0.03}'])
    with (
        pytest.raises(ConfigError, match=r"config.train.adversary is None there, \{'epsilon'"),
        RunFolder(tmp_path, dataclasses.replace(SETTINGS, config=config), None),
    ):
        pass


def test_one_command_at_a_time(tmp_path):
    with RunFolder(tmp_path, SETTINGS, None):
        with (
            pytest.raises(ConfigError, match=f"{tmp_path} is in use by another command"),
            RunFolder(tmp_path, SETTINGS, None),
        ):
            pass
        # Processes that do not write share the folder with the one that does.
        with RunFolder(tmp_path, SETTINGS, None, writes=False) as other:
            other.log({"step": 1})
            other.rewind(0)
    with RunFolder(tmp_path, SETTINGS, None):
        pass
    assert not (tmp_path / "metrics.jsonl").exists()


_HOLD = """
import sys, time
from pathlib import Path
from experiments.training.folder import RunFolder, RunSettings
from experiments.configs.overrides import resolve
folder = RunFolder(Path(sys.argv[1]), RunSettings(resolve("digits", smoke=True), "stein", 3), None)
folder.__enter__()
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_another_process_ends_with_it_however_it_ends(tmp_path):
    held = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert held.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match="in use by another command"),
            RunFolder(tmp_path, SETTINGS, None),
        ):
            pass
    finally:
        held.kill()
        held.communicate()
    with RunFolder(tmp_path, SETTINGS, None):
        pass


def test_going_back_drops_later_lines_and_one_that_was_cut_short(tmp_path):
    with RunFolder(tmp_path, SETTINGS, None) as folder:
        folder.rewind(3)  # nothing was logged yet
        for step in range(1, 6):
            folder.log({"kind": "train", "step": step, "loss": step / 7})
            folder.log({"kind": "validation", "step": step, "auc": None})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 2, "lo')
        assert len(read_log(tmp_path / "metrics.jsonl")) == 10
        folder.rewind(3)
        folder.log({"kind": "train", "step": 4, "loss": 0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3, 3, 4]
    assert lines[4] == {"kind": "train", "step": 3, "loss": 3 / 7}
    assert [path.name for path in tmp_path.glob(".metrics*")] == []


def test_going_back_to_the_start_empties_the_log(tmp_path):
    with RunFolder(tmp_path, SETTINGS, None) as folder:
        folder.log({"step": 1})
        folder.rewind(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_line_cut_short_that_is_json_of_another_kind_is_dropped(tmp_path):
    # '1' and '12' are JSON: a line cut short need not be broken JSON.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    with RunFolder(tmp_path, SETTINGS, None) as folder:
        folder.rewind(5)
        folder.log({"step": 3})
    steps = [line["step"] for line in read_log(tmp_path / "metrics.jsonl")]
    assert steps == [1, 2, 3]


def _content(**changes):
    content = {**dataclasses.asdict(SETTINGS), **changes}
    return json.dumps(content)


def _config_without(field):
    config = dataclasses.asdict(SETTINGS.config)
    del config[field]
    return config


def _config_with(**train):
    config = dataclasses.asdict(SETTINGS.config)
    config["train"].update(train)
    return config


@pytest.mark.parametrize("changes", [{"later": 1}, {"momentm": 0.9}])
def test_a_config_json_of_a_later_version_is_named(tmp_path, changes):
    (tmp_path / "config.json").write_text(_content(config=_config_with(**changes)))
    message = rf"settings that this version does not know: config\.train\.{next(iter(changes))}$"
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path)


def test_a_config_json_of_an_older_version_gets_todays_defaults(tmp_path):
    config = dataclasses.asdict(SETTINGS.config)
    del config["train"]["patience"], config["evaluation"]["checks"], config["model"]["width"]
    (tmp_path / "config.json").write_text(_content(config=config))
    found = read_settings(tmp_path).config
    assert found.train.patience is None
    assert found.evaluation.checks == ChecksConfig()
    assert found.model == ResNetModel(depth=None, stage_sizes=(1,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.json cannot be read: Expecting value"),
        (_content()[:100], "config.json cannot be read"),
        ("[]", "config.json cannot be read"),
        ("3", "config.json cannot be read"),
        ('{"learning_rate": 1}', "config.json cannot be read: 'config'"),
        (_content(seed="a"), "config.json is of another version .*: seed: .*integer.*got 'a'"),
        (_content(config=_config_without("train")), "another version .*: config.train: .*required"),
        (_content(config=None), "another version .*: config: .*got None"),
        (_content(config=_config_with(momentum=2)), r"config.train.momentum must be in \[0, 1\]"),
    ],
)
def test_a_config_json_of_something_else_is_named_not_overwritten(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ConfigError, match=message), RunFolder(tmp_path, SETTINGS, None):
        pass
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "folder"])
def test_a_config_json_that_is_no_text_or_no_file(tmp_path, content):
    path = tmp_path / "config.json"
    path.mkdir() if content == "folder" else path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_settings(tmp_path)


def test_a_folder_without_a_training(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=f"{folder} is not the work folder of a training"):
            read_settings(folder)


def test_a_work_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(ConfigError, match=f"cannot use {place} as a work folder: "),
            RunFolder(place, SETTINGS, None),
        ):
            pass
