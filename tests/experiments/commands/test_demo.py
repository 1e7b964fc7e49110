"""The command as a user runs it, and the demo's resumption."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.commands import demo
from experiments.commands.console import Display
from experiments.errors import ConfigError
from experiments.evaluation import run_checks
from experiments.training import loop
from steinnorm.attacks.checks import NAMES
from tests.experiments import cli


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A smoke run in a process of its own, as ``make demo`` starts it."""
    workdir = tmp_path_factory.mktemp("demo") / "work"
    command = [sys.executable, "-m", "experiments", "demo", "--workdir", str(workdir)]
    # One device, as for a user: the other tests force four.
    environment = cli.environment(tmp_path_factory.mktemp("compiled"))
    done = subprocess.run(
        [*command, "--smoke", "--seeds", "1", "--norms", "batch", "group"],
        cwd=cli.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return workdir, done


def test_smoke_run_writes_everything_and_names_the_report_last(smoke):
    workdir, done = smoke
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(str(workdir / "report.md"))
    files = {path.name for path in workdir.iterdir()}
    expected = {"results.json", "checks.json", "table.csv", "table.tex", "report.md", "runs"}
    expected |= {"accuracy-linf.png", "accuracy-steps.png", "pictures", ".locks"}
    assert expected == files  # batch and group norm shrink nothing: no plot of it
    assert {path.name for path in (workdir / "runs").iterdir()} == {"batch-0", "group-0"}
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
    assert {row["metric"] for row in rows} == {"accuracy", "loss"}
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
    assert "FAILED batch_dependence: examples with a changed prediction" in done.stdout
    assert verdicts["batch", "running", "batch_dependence"] == "PASS"
    assert verdicts["batch", "running", "transfer_not_stronger"] == "not applicable"
    assert verdicts["group", "none", "transfer_not_stronger"] != "not applicable"
    for name in NAMES:
        assert f"| {name} " in done.stdout
    assert "examples with a changed prediction" in (workdir / "report.md").read_text()


@pytest.fixture
def trained(monkeypatch):
    """Norms of the trainings that a command begins, as it begins them."""
    begun = []
    original = loop._Run.to_the_end

    def counted(run, interrupts):
        begun.append(run._progress.step)
        return original(run, interrupts)

    monkeypatch.setattr(loop._Run, "to_the_end", counted)
    return begun


def _again(workdir):
    """Runs the same demo once more; what it prints."""
    text = io.StringIO()
    display = Display(Console(file=text, width=120))
    demo.run(workdir, norms=["batch", "group"], seeds=1, smoke=True, display=display)
    return text.getvalue()


@pytest.fixture
def _checks_are_those_of_the_smoke_run(smoke, monkeypatch):
    """Whoever asks for checks gets what the smoke run found; compiling them takes seconds."""

    def kept(checker, model, source, run, *folder_and_watcher):
        folder = smoke[0] / "runs" / f"{run.norm}-{run.seed}" / "evaluation"
        (path,) = folder.glob(f"checks-{source}-*.json")
        return run_checks._load(path)

    monkeypatch.setattr(run_checks.Checker, "check", kept)


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_a_finished_demo_is_reused_to_the_last_digit(smoke, tmp_path, trained):
    workdir = shutil.copytree(smoke[0], tmp_path / "work")
    # Four devices here, one in the other process: both are part of no result.
    before = json.loads((workdir / "results.json").read_text())
    kept = {p: p.stat().st_mtime_ns for p in (workdir / "runs").glob("*/evaluation/*.npz")}
    assert "clean" in _again(workdir)
    assert trained == [8, 8]  # both were finished
    assert json.loads((workdir / "results.json").read_text()) == before
    assert kept == {p: p.stat().st_mtime_ns for p in kept}


@pytest.mark.usefixtures("_checks_are_those_of_the_smoke_run", "figures_are_not_rendered")
def test_what_is_missing_or_of_other_code_is_made_anew(smoke, tmp_path, trained):
    workdir = shutil.copytree(smoke[0], tmp_path / "work")
    shutil.rmtree(workdir / "runs" / "group-0")
    note = workdir / "runs" / "batch-0" / "comparison.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "code": "of another version"}))
    _again(workdir)
    assert trained == [0, 0]


def test_a_training_that_is_not_the_demos_is_not_touched(tmp_path):
    own = tmp_path / "runs" / "batch-0" / "config.json"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    with pytest.raises(ConfigError, match="no comparison has made; choose another --workdir"):
        demo.run(tmp_path, norms=["batch"], seeds=1, smoke=True)
    assert own.read_text() == "{}"


def test_calibrated_statistics_are_measured_of_batch_norm(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        demo.compare, "run", lambda workdir, comparison, display: asked.append(comparison)
    )
    demo.run(tmp_path)
    (comparison,) = asked
    sources = {norm: comparison.request_of(norm).statistics for norm in comparison.configs}
    assert sources.pop("batch") == "running,batch,calibrated"
    assert len(sources) == 7
    assert set(sources.values()) == {""}  # those of the configuration


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
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="choose another --workdir"):
        demo.run(tmp_path)


def test_list_names_data_size_and_time(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for part in ("digits", "1,297", "min"):
        assert part in text
