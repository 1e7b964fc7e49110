"""The command evaluate on one short training of digits, and that training asked for again."""

import json
import re

import pytest

from experiments.__main__ import main
from experiments.commands.evaluation_request import Request, settings_for
from experiments.configs.schema import EvaluationConfig
from experiments.evaluation import per_example
from experiments.evaluation.calibration import Calibrating
from steinnorm.attacks.checks import NAMES
from tests.experiments import cli

SHORT = [*cli.DIGITS, "--epochs", "1", "--tensorboard"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training of digits."""
    workdir = tmp_path_factory.mktemp("trained") / "work"
    assert main([*SHORT, "--workdir", str(workdir)]) == 0
    return workdir


def test_finished_is_finished_and_tensorboard_was_written(trained, capsys):
    assert list((trained / "tensorboard").iterdir())
    before = (trained / "metrics.jsonl").read_bytes()
    assert main([*SHORT, "--workdir", str(trained)]) == 0
    assert "going on from the checkpoint of step 4 of 4" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        (["--attacks", "fgsm,pdg"], ["unknown attack 'pdg'", "pgd-margin"]),
        (["--attacks", "segpgd"], ["segpgd is for a label per pixel"]),
        (["--attacks", "pgd,fab-t"], ["fab-t keeps", "name --statistics running"]),
        (["--threat-models", "alone"], ["unknown threat model 'alone'", "companion"]),
        (["--threat-models", ","], ["no threat model was named", "companion"]),
        (["--victims", "0"], ["--victims must be at least 1; got 0"]),
        (["--batch-size", "0"], ["--batch-size must be at least 1; got 0"]),
        (["--independent-batch-size", "0"], ["--independent-batch-size must be at least 1; got 0"]),
        (["--test-examples", "0"], ["--test-examples must be at least 1; got 0"]),
        (["--attacks", "pgd", "--steps", "0"], ["--steps must be at least 1; got 0"]),
        (["--check-examples", "-1"], ["--check-examples must not be negative"]),
        (["--statistics", "running,none"], ["unknown statistics 'none'", "shrunk"]),
        (["--weights", "first"], ["weights must be best or last; got 'first'"]),
        (["--attacks", "fgsm", "--epsilon", "8/0"], ["8/255", "'8/0'"]),
        (["--attacks", "fgsm", "--epsilon", "big"], ["8/255", "'big'"]),
        (["--attacks", "fgsm", "--epsilon", "-0.1"], ["must not be negative"]),
        (["--attacks", "fgsm", "--epsilon", "1e400"], ["must be finite", "'1e400'"]),
        (["--attacks", "fgsm", "--epsilon", f"{10**400}/3"], ["8/255"]),
        (["--attacks", "fgsm", "--epsilon", "1e39"], ["fgsm", "at most 3.4e+38"]),
    ],
)
def test_mistakes_in_evaluation_are_one_line(more, messages, trained, capsys):
    joined = [f"{a}={b}" for a, b in zip(more[::2], more[1::2], strict=True)]  # "=-0.1"
    assert main(["evaluate", str(trained), *joined]) == 2
    error = capsys.readouterr().err
    for message in messages:
        assert message in error
    assert error.count("\n") == 1
    assert not (trained / "results.json").exists()


def test_evaluation_of_a_folder_without_a_training(trained, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "is not the work folder of a training" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    for _ in range(2):  # with no folder of checkpoints, then with an empty one
        assert main(["evaluate", str(tmp_path)]) == 2
        assert "holds no checkpoint yet" in capsys.readouterr().err
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text('{"config": ')
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "config.json cannot be read" in capsys.readouterr().err


def test_why_no_check_was_made_is_said(trained, tmp_path, capsys):
    workdir = cli.copied(trained, tmp_path / "work")
    few = ["--test-examples", "9", "--statistics", "running"]
    assert cli.evaluate(workdir, *few, "--attacks", "gaussian") == 0
    assert "none was made: they test attacks of a radius above 0" in capsys.readouterr().out
    assert cli.evaluate(workdir, *few, "--attacks", "fgsm", "--check-examples", "0") == 0
    assert "none was made: --check-examples 0 asks for none" in capsys.readouterr().out


def test_calibrated_statistics(trained, tmp_path, capsys, monkeypatch):
    workdir = cli.copied(trained, tmp_path / "work")
    few = ["--test-examples", "9"]
    assert cli.evaluate(workdir, *few, "--statistics", "running,calibrated") == 0
    assert re.search(r"calibrating on \d+ of \d+ training examples", capsys.readouterr().out)
    clean = {r["statistics"]: r["value"] for r in cli.results(workdir) if r["metric"] == "loss"}
    assert list(clean) == ["running", "calibrated"]
    assert clean["running"] != clean["calibrated"]
    # A later command, which does not calibrate, knows the results.
    assert cli.evaluate(workdir, *few, "--statistics", "running") == 0
    assert "calibrating" not in capsys.readouterr().out
    assert {r["statistics"] for r in cli.results(workdir)} == {"running", "calibrated"}
    # One that would calibrate on other inputs, as where the training part has changed, does not.
    monkeypatch.setattr(Calibrating, "inputs_digest", "of other inputs")
    assert cli.evaluate(workdir, *few, "--statistics", "running") == 0
    assert {r["statistics"] for r in cli.results(workdir)} == {"running"}


def test_batches_of_their_own_where_no_example_depends_on_its_batch(trained, tmp_path, capsys):
    workdir = cli.copied(trained, tmp_path / "work")
    few = ["--test-examples", "20", "--statistics", "running,batch", "--batch-size", "10"]
    assert cli.evaluate(workdir, *few) == 0
    assert "examples in batches of 10\n" in capsys.readouterr().out
    before = {r["statistics"]: r["value"] for r in cli.results(workdir) if r["metric"] == "loss"}
    assert cli.evaluate(workdir, *few, "--independent-batch-size", "20") == 0
    assert "examples in batches of 10 and 20\n" in capsys.readouterr().out
    after = {r["statistics"]: r["value"] for r in cli.results(workdir) if r["metric"] == "loss"}
    # Those of the test batch, which are other statistics in another batch, are as they were.
    assert after == {"batch": before["batch"], "running": pytest.approx(before["running"])}
    sizes = {
        results.key.statistics: (results.identity["batch_size"], results.batches)
        for results in per_example.load_all(workdir)
    }
    assert sizes == {"running": (20, 1), "batch": (10, 2)}


def test_a_batch_size_that_is_asked_for_is_that_of_all_statistics():
    """Somebody whose memory is too small should not have to know of the other setting."""
    known = EvaluationConfig(batch_size=8, independent_batch_size=64)
    assert settings_for(known, Request()) == known
    assert settings_for(known, Request(batch_size=4)).independent_batch_size is None
    found = settings_for(known, Request(batch_size=4, independent_batch_size=16))
    assert (found.batch_size, found.independent_batch_size) == (4, 16)


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_threat_models_twin_budgets_and_a_second_command(trained, tmp_path, capsys):
    cli.copied(trained, tmp_path / "stein")
    arguments = [*cli.DIGITS, "--epochs", "1", "--norm", "batch"]
    assert main([*arguments, "--workdir", str(tmp_path / "batch")]) == 0
    capsys.readouterr()
    more = ["--attacks", "pgd,square-l2", "--steps", "2", "--queries", "5"]
    # One batch: the rest of a test set would be a program of its own for every attack.
    more += ["--epsilon", "0.1", "--statistics", "running,batch", "--test-examples", "25"]
    more += ["--threat-models", "joint,companion,independent", "--victims", "3"]
    more += ["--twin", str(tmp_path / "batch")]
    assert cli.evaluate(tmp_path / "stein", *more) == 0
    out = capsys.readouterr().out
    rows = cli.results(tmp_path / "stein")
    told = {(r["statistics"], r["threat_model"]) for r in rows if r["attack"] == "pgd"}
    assert told == {
        ("running", ""),
        ("batch", "joint"),
        ("batch", "independent"),
        ("batch", "companion"),
    }
    n = {r["threat_model"]: r["n"] for r in rows if r["attack"] == "pgd"}
    assert n == {"": 25, "joint": 25, "independent": 3, "companion": 3}
    assert {r["steps"] for r in rows if r["attack"] == "pgd"} == {2}
    assert {r["norm_order"] for r in rows if r["attack"] == "square-l2"} == {"l2"}
    transfer = [
        check
        for check in json.loads((tmp_path / "stein" / "checks.json").read_text())
        if check["name"] == "transfer_not_stronger"
    ]
    assert [check["statistics"] for check in transfer] == ["running", "batch"]
    assert all(check["verdict"] != "not applicable" for check in transfer)
    checks = json.loads((tmp_path / "stein" / "checks.json").read_text())
    names = [c["name"] for c in checks if c["statistics"] == "running"]
    assert names == [*NAMES, *(f"{name} (l2)" for name in NAMES)]
    assert "at the radius 1" in checks[2]["detail"]
    assert "FAILED batch_dependence: examples with a changed prediction" in out
    assert re.search(r"batch_dependence +PASS +FAIL", out)

    # The same again takes everything from the folder.
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "stein" / "evaluation").iterdir()}
    assert len(kept) > 10
    assert cli.evaluate(tmp_path / "stein", *more) == 0
    assert cli.results(tmp_path / "stein") == rows
    assert kept == {p: p.stat().st_mtime_ns for p in kept}

    # What other commands measured and checked stays, but for another batch size or other images.
    few = ["--statistics", "running", "--check-examples", "0", "--test-examples", "25"]
    assert cli.evaluate(tmp_path / "stein", *few) == 0
    assert cli.results(tmp_path / "stein") == rows
    assert json.loads((tmp_path / "stein" / "checks.json").read_text()) == checks
    assert cli.evaluate(tmp_path / "stein", *few, "--batch-size", "10") == 0
    assert {r["attack"] for r in cli.results(tmp_path / "stein")} == {"clean"}
    assert cli.evaluate(tmp_path / "stein", *few[:-1], "24") == 0
    assert {r["n"] for r in cli.results(tmp_path / "stein")} == {24}
    assert cli.evaluate(tmp_path / "stein", *few) == 0

    wrong = ["--twin", str(tmp_path / "stein"), "--attacks", "fgsm"]
    assert cli.evaluate(tmp_path / "stein", *wrong) == 2
    assert "is no twin" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "stein"), "--out", str(tmp_path / "report")]) == 0
    assert "MISSING: batch norm" in capsys.readouterr().out
