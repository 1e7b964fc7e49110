"""The command that compares norms: settings of one norm, and what is finished stays."""

import dataclasses
import io
import json
import re
import shutil

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.commands import compare, made_run
from experiments.commands.console import Display
from experiments.commands.evaluation_request import Request
from experiments.commands.sharing import claimed
from experiments.errors import ConfigError

COMPARISON = compare.Comparison(
    configs=compare.configs("digits", None, True, ["batch", "group"], ["train.epochs=1"]),
    seeds=1,
    request=Request(statistics="running"),
)


def _compare(workdir, comparison=COMPARISON):
    """Runs a comparison; returns what it prints."""
    text = io.StringIO()
    compare.run(workdir, comparison, display=Display(Console(file=text, width=120)))
    return text.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("comparison") / "work"
    _compare(workdir)
    return workdir


def test_a_setting_is_for_all_norms_or_for_one():
    found = compare.configs(
        "digits",
        None,
        True,
        ["batch", "group"],
        ["train.epochs=7", "group:train.learning_rate=0.5", "model.width=3"],
    )
    assert {config.train.epochs for config in found.values()} == {7}
    assert {config.model.width for config in found.values()} == {3}
    assert found["group"].train.learning_rate == 0.5
    assert found["batch"].train.learning_rate != 0.5


@pytest.mark.parametrize("name", ["digits", "volumes", "cifar10", "cityscapes"])
def test_each_seed_may_draw_its_own_parts(name):
    found = compare.configs(name, None, True, ["batch"], [])
    same = dataclasses.replace(COMPARISON, configs=found, seeds=4)
    own = dataclasses.replace(same, split_per_seed=True)
    assert same.runs()[3].config == found["batch"]
    config = own.runs()[3].config
    assert config.data.split_seed == 3
    assert getattr(config.data, "split", "drawn") == "drawn"
    data = dataclasses.replace(config.data, split_seed=found["batch"].data.split_seed)
    if name == "volumes":
        data = dataclasses.replace(data, split="table")
    assert dataclasses.replace(config, data=data) == found["batch"]  # and nothing else


@pytest.mark.parametrize(
    ("norms", "change", "message"),
    [
        (["batch"], "group:train.epochs=3", "'group' is none of the norms that are compared"),
        (["batch"], "train.epochs", "needs FIELD=VALUE"),
        (["batch"], "batch:train.epohcs=3", "epohcs"),
        (["bacth"], "train.epochs=3", "norms must be some of"),
    ],
)
def test_mistakes_in_settings_are_errors(norms, change, message):
    with pytest.raises(ConfigError, match=message):
        compare.configs("digits", None, True, norms, [change])


def test_what_cannot_be_measured_is_refused_before_the_first_training(tmp_path):
    wrong = dataclasses.replace(COMPARISON, request=Request(statistics="runing"))
    with pytest.raises(ConfigError, match="unknown statistics 'runing'"):
        _compare(tmp_path, wrong)
    of_one = dataclasses.replace(COMPARISON, requests={"group": Request(attacks="fgms")})
    with pytest.raises(ConfigError, match="fgms"):
        _compare(tmp_path, of_one)
    with pytest.raises(ConfigError, match="seeds must be at least 1"):
        _compare(tmp_path, dataclasses.replace(COMPARISON, seeds=0))
    assert not (tmp_path / "runs").exists()


def test_a_seed_that_has_nothing_to_draw_is_refused(tmp_path):
    found = compare.configs("cityscapes", "camvid", True, ["batch"], ["data.train_examples=null"])
    folders = dataclasses.replace(COMPARISON, configs=found, split_per_seed=True)
    with pytest.raises(ConfigError, match=r"parts of these data are folders.*=split"):
        _compare(tmp_path, folders)


def test_a_run_notes_the_time_of_all_that_was_done(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "work") / "runs" / "batch-0" / "comparison.json"
    made = made_run.MadeRun(path.parent)
    first = json.loads(path.read_text())["seconds"]
    assert 0 < first < 600
    assert re.search(r"took \d+ to \d+ s a run", (finished / "report.md").read_text())
    made.took(5.0)
    made.begin()  # the weights are there, so that nothing is made anew
    assert json.loads(path.read_text())["seconds"] == first + 5
    content = json.loads(path.read_text())
    del content["seconds"]  # as an earlier version left it: what it took is not known
    path.write_text(json.dumps(content))
    made.begin()
    made.took(5.0)
    assert "seconds" not in json.loads(path.read_text())
    shutil.rmtree(path.parent / "checkpoints")
    made.begin()
    made.took(5.0)
    assert json.loads(path.read_text())["seconds"] == 5


def test_the_report_has_the_runs_of_earlier_commands_too(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "work")
    one = dataclasses.replace(COMPARISON, configs={"batch": COMPARISON.configs["batch"]})
    assert "[1/1] batch, seed 0: clean" in _compare(workdir, one)
    for name in ("report.md", "table.csv"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()
    assert "group" in (workdir / "table.csv").read_text()


def test_runs_of_earlier_commands_that_are_no_one_table_with_its_own_are_left_out(
    finished, tmp_path
):
    workdir = shutil.copytree(finished, tmp_path / "work")
    path = workdir / "runs/group-0/config.json"
    content = json.loads(path.read_text())
    content["config"]["train"]["epochs"] = 2
    path.write_text(json.dumps(content))
    one = dataclasses.replace(COMPARISON, configs={"batch": COMPARISON.configs["batch"]})
    printed = " ".join(_compare(workdir, one).split())
    assert "The report is of this command's runs alone" in printed
    assert "train.epochs" in printed
    table = (workdir / "table.csv").read_text()
    assert "batch" in table
    assert "group" not in table


def test_finished_runs_stay_with_other_code_and_without_their_weights(
    finished, tmp_path, monkeypatch
):
    workdir = shutil.copytree(finished, tmp_path / "work")
    rows = json.loads((workdir / "results.json").read_text())
    assert {(row["norm"], row["statistics"]) for row in rows} == {
        ("batch", "running"),
        ("group", "none"),
    }
    for run in (workdir / "runs").iterdir():
        shutil.rmtree(run / "checkpoints")
    for module in (compare, made_run):
        monkeypatch.setattr(module, "code_version", lambda: "later code")
    monkeypatch.setattr(compare.train, "run", lambda *_, **__: pytest.fail("trained again"))
    assert "[2/2] group, seed 0: clean" in _compare(workdir)
    assert json.loads((workdir / "results.json").read_text()) == rows


def test_finished_runs_are_passed_over_while_another_process_measures_more_of_them(
    finished, tmp_path
):
    workdir = shutil.copytree(finished, tmp_path / "work")
    with claimed(workdir, "runs/batch-0"):
        assert "[1/2] batch, seed 0: clean" in _compare(workdir)


def test_a_run_of_other_settings_is_refused_with_and_without_its_weights(finished, tmp_path):
    longer = compare.configs("digits", None, True, ["batch", "group"], ["group:train.epochs=2"])
    longer["batch"] = COMPARISON.configs["batch"]
    for workdir, has_weights in ((finished, True), (tmp_path / "work", False)):
        if not has_weights:
            ignored = shutil.ignore_patterns("checkpoints", "evaluation")
            shutil.copytree(finished, workdir, ignore=ignored)
        before = (workdir / "runs" / "group-0" / "results.json").read_bytes()
        with pytest.raises(ConfigError, match=r"train\.epochs is 1 there, 2 here"):
            _compare(workdir, dataclasses.replace(COMPARISON, configs=longer))
        assert (workdir / "runs" / "group-0" / "results.json").read_bytes() == before


def test_more_of_a_run_without_weights_is_measured_with_all_that_was_there(
    finished, tmp_path, monkeypatch
):
    ignored = shutil.ignore_patterns("checkpoints", "evaluation")
    workdir = shutil.copytree(finished, tmp_path / "work", ignore=ignored)
    asked = []
    monkeypatch.setattr(compare.train, "run", lambda *_, **__: None)
    monkeypatch.setattr(
        compare.evaluate, "run", lambda folder, request, **_: asked.append(request.statistics)
    )
    _compare(workdir, dataclasses.replace(COMPARISON, request=Request(statistics="batch")))
    assert asked == ["running", "batch"] * 2


def test_one_norm_is_measured_otherwise_than_the_others(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "work")
    asked = []
    monkeypatch.setattr(compare.train, "run", lambda *_, **__: None)
    monkeypatch.setattr(
        compare.evaluate,
        "run",
        lambda folder, request, **_: asked.append((folder.name, request.statistics)),
    )
    of_one = {"batch": Request(statistics="running,calibrated")}
    _compare(workdir, dataclasses.replace(COMPARISON, requests=of_one))
    assert asked == [("batch-0", "running,calibrated")]  # that of the other norm is done


def test_several_requests_are_finished_each_for_itself(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "work")
    more = dataclasses.replace(
        COMPARISON, request=Request(statistics="running", attacks="gaussian")
    )
    _compare(workdir, more)
    attacks = {row["attack"] for row in json.loads((workdir / "results.json").read_text())}
    assert attacks == {"clean", "gaussian"}
    monkeypatch.setattr(compare.train, "run", lambda *_, **__: pytest.fail("trained again"))
    for comparison in (COMPARISON, more):
        _compare(workdir, comparison)


def test_runs_of_a_demo_of_earlier_versions_are_made_anew_by_the_demo_only(
    finished, tmp_path, monkeypatch
):
    workdir = shutil.copytree(finished, tmp_path / "work")
    for run in (workdir / "runs").iterdir():
        (run / "comparison.json").unlink()
        (run / "code.txt").write_text("of that version")
    begun = []

    def stop(config, places, **_):
        begun.append((places.workdir.name, (places.workdir / "checkpoints").exists()))
        raise KeyboardInterrupt

    monkeypatch.setattr(compare.train, "run", stop)
    for comparison in (COMPARISON, dataclasses.replace(COMPARISON, one_code=True)):
        with pytest.raises(KeyboardInterrupt):
            _compare(workdir, comparison)
    assert begun == [("batch-0", True), ("batch-0", False)]


def test_a_damaged_note_says_what_to_do(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "work")
    (workdir / "runs" / "batch-0" / "comparison.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged; remove the folder to make the run anew"):
        _compare(workdir)


def test_the_command_line_knows_it(capsys):
    assert main(["compare", "digits", "--workdir", "nowhere", "--norms", "bacth"]) == 2
    assert "norms must be some of batch" in capsys.readouterr().err


def test_controls_are_batch_norm_trained_otherwise():
    changes = ["train.epochs=7", "group:train.learning_rate=0.5", "batch:train.learning_rate=0.4"]
    each = ["model.width=3", "train.epochs=2"]
    found = compare.controls("digits", None, True, changes, each)
    assert list(found) == each
    (usual,) = compare.configs("digits", None, True, ["batch"], [changes[0], changes[2]]).values()
    narrow = dataclasses.replace(usual, model=dataclasses.replace(usual.model, width=3))
    assert found["model.width=3"] == narrow
    assert found["train.epochs=2"].train.epochs == 2
    comparison = dataclasses.replace(
        COMPARISON, configs={"group": usual, "batch": usual}, controls=found, seeds=2
    )
    assert [(str(run.place), run.norm) for run in comparison.runs()][:5] == [
        ("runs/batch-0", "batch"),
        ("runs/group-0", "group"),
        ("controls/model.width=3/batch-0", "batch"),
        ("controls/train.epochs=2/batch-0", "batch"),
        ("runs/batch-1", "batch"),
    ]
    for change, message in (
        ("train.epochs=7", "that is what batch norm has"),
        ("data.test_examples=3", "a control has the data and attacks of the other runs"),
        ("model.wdith=3", "wdith"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare.controls("digits", None, True, changes, [change])


def test_with_one_code_runs_of_other_code_and_settings_are_made_anew(finished, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("group-0"))
    note = workdir / "runs" / "batch-0" / "comparison.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"code": "earlier code"}))
    longer = compare.configs("digits", None, True, ["batch"], ["train.epochs=2"])
    comparison = dataclasses.replace(COMPARISON, configs=longer, one_code=True)
    assert "[1/1] batch, seed 0: clean" in _compare(workdir, comparison)
    content = json.loads((workdir / "runs" / "batch-0" / "config.json").read_text())
    assert content["config"]["train"]["epochs"] == 2
