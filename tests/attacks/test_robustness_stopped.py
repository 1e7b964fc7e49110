"""A call that was stopped leaves its tables, which say so, and the next one goes on."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import steinnorm
from steinnorm.attacks import fgsm
from steinnorm.attacks.checks import NAMES
from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness import checks
from tests.attacks.one_call import SMOKE, measure


def test_a_table_that_is_incomplete_says_so(tmp_path):
    calls = []

    def stops(logits_fn, x, y, *, threat, key):
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fgsm(logits_fn, x, y, threat=threat, key=key)

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, attacks=stops)
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("**incomplete: stopped before every attack was made on every batch**")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [(c[0], c[-1]) for c in cells] == [
        ("attack", "n"),
        ("none", "12"),
        ("stops", "6"),
        ("worst", "6"),
    ]


def test_an_interrupt_of_the_checks_leaves_the_tables(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checks, "run_checks", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path, checks=SMOKE)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["n"] for row in rows] == [12, 12, 12]
    assert not json.loads((tmp_path / "settings.json").read_text())["complete"]
    assert "**incomplete: the checks are not finished**" in (tmp_path / "table.md").read_text()
    found = measure(tmp_path, checks=SMOKE)
    assert [finding.name for finding in found.checks] == list(NAMES)
    assert json.loads((tmp_path / "settings.json").read_text())["complete"]
    assert "incomplete" not in (tmp_path / "table.md").read_text()


ROOT = pathlib.Path(steinnorm.__file__).parents[1]
CHILD = """
import os, sys, time
import numpy as np
from steinnorm.attacks import evaluate_robustness, fgsm
out, log = sys.argv[1:3]  # the pause is no global, for results depend on those
rng = np.random.default_rng(0)
x = rng.uniform(size=(40, 12)).astype(np.float32)
w = rng.normal(size=(12, 3)).astype(np.float32)
y = np.argmax(x @ w, axis=1).astype(np.int32)

def slow(logits_fn, x, y, *, threat, key):
    found = fgsm(logits_fn, x, y, threat=threat, key=key)
    with open(log, "a") as file:
        print(float(x[0, 0]), threat.epsilon, file=file)
    time.sleep(float(sys.argv[3]))
    return found

settings = dict(epsilons=(0.1, 0.2), attacks=slow, batch_size=10, checks=False, progress=False)
print([row.value for row in evaluate_robustness(lambda x: x @ w, x, y, out=out, **settings).rows])
"""


def test_a_killed_process_is_gone_on_with(tmp_path, monkeypatch, capsys):
    out, log, script = tmp_path / "out", tmp_path / "log", tmp_path / "child.py"
    script.write_text(CHILD)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def command(folder, pause):
        return [sys.executable, str(script), str(folder), str(log), str(pause)]

    process = subprocess.Popen(command(out, 0.2), env=env)
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = log.read_text().splitlines()
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "per_example").glob("slow*")}
    assert sum(PerExample.read(out / "per_example" / n).batches for n in kept) == len(begun) - 1
    resumed = subprocess.run(command(out, 0), env=env, check=True, capture_output=True, text=True)
    after = log.read_text().splitlines()[len(begun) :]
    # Eight in all; only the one that was killed is made twice.
    assert len(after) == 8 - (len(begun) - 1)
    assert set(begun[:-1]).isdisjoint(after)
    monkeypatch.setattr(sys, "argv", command(tmp_path / "whole", 0)[1:])
    exec(compile(CHILD, script, "exec"), {"__name__": "child"})
    assert resumed.stdout == capsys.readouterr().out
