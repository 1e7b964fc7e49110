"""The command in small: all parts, going on after a stop, wrong flags."""

import io
import json

import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.commands import risk
from experiments.commands.console import Display
from experiments.evaluation.risk import parts
from experiments.report.risk.figures import CAPTIONS


def _run(out, names="", seed=0):
    text = io.StringIO()
    display = Display(Console(file=text, width=120))
    rows = risk.run(out, smoke=True, seed=seed, parts=names, display=display)
    return rows, text.getvalue()


def test_a_smoke_run_writes_rows_tables_and_figures(tmp_path):
    out = tmp_path / "risk"
    rows, text = _run(out)
    lines = text.splitlines()
    assert lines[-1].endswith(str(out / "risk.md"))
    assert set(rows) == set(parts.NAMES)
    for name in parts.NAMES:
        written = json.loads((out / "parts" / f"{name}.json").read_text())
        assert len(written["rows"]) == len(rows[name]) > 0
        assert (written["request"]["seed"], written["request"]["smoke"]) == (0, True)
    markdown = (out / "risk.md").read_text()
    command = f"python -m experiments risk --out {out} --smoke --seed 0"
    assert 0 < markdown.index(command) < markdown.index("jaxlib") < markdown.index("## ")
    for _, figure in CAPTIONS:
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
        assert f"]({figure})" in markdown
    # both conditions of a smoke run, means and variances
    assert sum(line.startswith("| toward_running | ") for line in markdown.splitlines()) >= 4


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_what_is_finished_is_not_measured_again(tmp_path):
    name = "counterexamples"
    first, text = _run(tmp_path, name)
    assert "found finished" not in text
    file = tmp_path / "parts" / f"{name}.json"
    written = file.read_text()
    file.write_text(written[: len(written) // 2])  # cut off, as no kill leaves it
    again, text = _run(tmp_path, name)
    assert "found finished" not in text
    assert again == first
    again, text = _run(tmp_path, name)
    assert "found finished" in text
    assert again == json.loads(json.dumps(first))
    _, text = _run(tmp_path, name, seed=1)  # other settings: measured again
    assert "found finished" not in text
    assert json.loads(file.read_text())["request"]["seed"] == 1


def test_parts_measured_by_other_code_are_measured_again(tmp_path):
    request = parts.Request.of(0, True)
    rows = parts.measure(tmp_path, "counterexamples", request, None, lambda *_: None)
    assert parts.finished(tmp_path, "counterexamples", request) == json.loads(json.dumps(rows))
    other = parts.Request(0, True, "other code")
    assert parts.finished(tmp_path, "counterexamples", other) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "-1"], "seed must be at least 0; got -1"),
        (
            ["--parts", "map,nap"],
            f"parts must be some of {', '.join(parts.NAMES)}; got nap",
        ),
    ],
)
def test_wrong_flags_are_one_line_and_status_two(tmp_path, capsys, flags, message):
    assert main(["risk", "--out", str(tmp_path / "new"), *flags]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_the_command_line_writes_parts_that_are_found_again(tmp_path, capsys):
    assert main(["risk", "--out", str(tmp_path), "--smoke", "--parts", "counterexamples"]) == 0
    assert capsys.readouterr().out.startswith("[1/1] counterexamples: ")
    assert (tmp_path / "counterexamples.png").exists()
    _, text = _run(tmp_path, "counterexamples")
    assert "found finished" in text
