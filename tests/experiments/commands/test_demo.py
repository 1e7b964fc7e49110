"""The command as a user runs it, and the demo's resumption."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.commands import demo
from experiments.errors import ConfigError
from steinnorm.attacks.checks import NAMES

ROOT = Path(__file__).parents[3]


def _console():
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A smoke run in a process of its own, as ``make demo`` starts it."""
    workdir = tmp_path_factory.mktemp("demo") / "work"
    command = [sys.executable, "-m", "experiments", "demo", "--workdir", str(workdir)]
    # One device, as for a user: the other tests force four.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, "--smoke", "--seeds", "1", "--norms", "batch", "group"],
        cwd=ROOT,
        env={**environment, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return workdir, done


def test_smoke_run_writes_everything_and_names_the_folder_last(smoke):
    workdir, done = smoke
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(str(workdir))
    files = {path.name for path in workdir.iterdir()}
    expected = {"results.json", "checks.json", "table.csv", "table.md"}
    expected |= {"accuracy.png", "shrinkage.png"}
    assert expected <= files
    assert "\x1b[" not in done.stdout  # plain lines where there is no terminal

    rows = json.loads((workdir / "results.json").read_text())
    sources = {(row["norm"], row["statistics"]) for row in rows}
    assert sources == {("batch", "running"), ("batch", "batch"), ("group", "none")}
    assert {row["attack"] for row in rows} == {
        "clean",
        "gaussian",
        "fgsm",
        "pgd-released",
        "pgd",
        "pgd-margin",
        "worst",
        "convergence",
    }
    for row in rows:
        assert row["n"] == (25 if row["attack"] == "convergence" else 50)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["max_norm"] <= row["epsilon"] + 1e-6
    with (workdir / "table.csv").open() as file:
        names = {line["attack"] for line in csv.DictReader(file)}
    assert names == {row["attack"] for row in rows} - {"convergence"}


def test_every_check_of_every_source_is_reported(smoke):
    workdir, done = smoke
    checks = json.loads((workdir / "checks.json").read_text())
    by_source = {}
    for check in checks:
        by_source.setdefault((check["norm"], check["statistics"]), []).append(check["name"])
    assert set(by_source) == {("batch", "running"), ("batch", "batch"), ("group", "none")}
    assert all(tuple(names) == NAMES for names in by_source.values())
    verdicts = {(c["norm"], c["statistics"], c["name"]): c["verdict"] for c in checks}
    # A failed check is printed with the result.
    assert verdicts["batch", "batch", "batch_dependence"] == "FAIL"
    assert verdicts["batch", "running", "batch_dependence"] == "PASS"
    assert verdicts["batch", "running", "transfer_not_stronger"] == "not applicable"
    assert verdicts["group", "none", "transfer_not_stronger"] != "not applicable"
    for name in NAMES:
        assert f"| {name} " in done.stdout
    assert "examples with a changed prediction" in (workdir / "table.md").read_text()


def test_a_finished_run_is_reused_and_an_unfinished_one_is_not(smoke, tmp_path, monkeypatch):
    workdir = shutil.copytree(smoke[0], tmp_path / "work")
    before = (workdir / "results.json").read_text()

    def refuse(*_, **__):
        raise RuntimeError("trained again")

    monkeypatch.setattr(demo, "Loop", refuse)
    settings = {"seeds": 1, "smoke": True, "console": _console()}
    demo.run(workdir, norms=["batch", "group"], **settings)
    assert (workdir / "results.json").read_text() == before
    (workdir / "runs" / "group-0.json").unlink()
    with pytest.raises(RuntimeError, match="trained again"):
        demo.run(workdir, norms=["batch", "group"], **settings)


def test_the_twin_of_an_earlier_command_is_taken_from_the_folder(smoke, tmp_path, monkeypatch):
    workdir = shutil.copytree(smoke[0], tmp_path / "work")
    first = json.loads((workdir / "runs" / "group-0.json").read_text())["checks"]
    trained = []
    loop = demo.Loop

    def counted(**settings):
        trained.append(settings["seed"])
        return loop(**settings)

    def transfer():
        demo.run(workdir, norms=["batch", "group"], seeds=1, smoke=True, console=_console())
        checks = json.loads((workdir / "checks.json").read_text())
        return {(c["norm"], c["name"]): c for c in checks}["group", "transfer_not_stronger"]

    monkeypatch.setattr(demo, "Loop", counted)
    (workdir / "runs" / "group-0.json").unlink()
    resumed = transfer()
    assert trained == [0]  # group alone: batch was finished
    (before,) = (check for check in first if check["name"] == "transfer_not_stronger")
    assert resumed == before
    assert resumed["verdict"] != "not applicable"

    # Without its weights, or with another model's, there is none, and the reason says what to do.
    (workdir / "runs" / "group-0.json").unlink()
    weights = workdir / "runs" / "batch-0.npz"
    weights.write_bytes(weights.read_bytes()[:100])
    lost = transfer()
    assert lost["verdict"] == "not applicable"
    assert "holds no weights of batch, seed 0" in lost["detail"]


def test_mistakes_are_one_line_and_status_two(tmp_path, capsys):
    arguments = ["demo", "--workdir", str(tmp_path / "new"), "--norms", "bacth"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "bacth" in error
    assert "toward_running" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="seeds"):
        demo.run(tmp_path, seeds=0)


def test_list_names_data_size_and_time(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for part in ("digits", "1,297", "min"):
        assert part in text
