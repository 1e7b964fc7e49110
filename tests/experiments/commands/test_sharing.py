"""Several processes with the same command share the runs of a comparison."""

import dataclasses
import subprocess
import sys
import threading

import pytest

from experiments.commands import compare, made_run, sharing
from experiments.commands.console import Display
from experiments.commands.sharing import claimed, share
from experiments.errors import ConfigError
from steinnorm.attacks.files import write_json
from tests.experiments.commands.test_compare import COMPARISON

HOLDS = """
import sys
from pathlib import Path
from experiments.commands.sharing import claimed
with claimed(Path(sys.argv[1]), 'run') as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_and_free_again_when_that_is_killed(tmp_path):
    workdir = tmp_path / "new"
    command = [sys.executable, "-c", HOLDS, str(workdir)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        try:
            assert holder.stdout.readline() == "True\n"
            with claimed(workdir, "run") as mine:
                assert not mine
            with claimed(workdir, "other") as mine:
                assert mine
        finally:
            holder.kill()
    with claimed(workdir, "run") as mine:
        assert mine
        with claimed(workdir, "run") as again:
            assert not again


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(sharing.filelock.FileLock, "acquire", refuse)
    with (
        pytest.raises(ConfigError, match=r"cannot lock .*run: no flock here"),
        claimed(tmp_path, "run"),
    ):
        pass


def test_what_others_are_at_is_tried_again_until_it_is_done(monkeypatch):
    monkeypatch.setattr(sharing, "_PAUSE", 0.0)
    free_after = {"a": 2, "b": 0, "c": 1}
    tried, waited = [], []

    def attempt(job):
        tried.append(job)
        free_after[job] -= 1
        return free_after[job] < 0

    share("abc", attempt, lambda waiting: waited.append("".join(waiting)))
    assert "".join(tried) == "abcaca"
    assert not waited  # there always was something to do
    free_after = {"a": 2}
    share("a", attempt, lambda waiting: waited.append("".join(waiting)))
    assert waited == ["a", "a"]


def test_norms_wait_for_the_batch_norm_that_another_process_trains(tmp_path, monkeypatch):
    """Group norm of seed 0 needs its weights; what does not is begun meanwhile."""
    begun = []
    waits = threading.Event()

    def train(config, places, **_):
        begun.append(places.workdir.name)
        (places.workdir / "checkpoints").mkdir(exist_ok=True)
        write_json(places.workdir / "config.json", {})

    def evaluate(folder, request, **_):
        clean = {"attack": "clean", "metric": "accuracy", "value": 0.5, "statistics": "running"}
        write_json(folder / "results.json", [clean])

    monkeypatch.setattr(sharing, "_PAUSE", 0.01)
    monkeypatch.setattr(compare.train, "run", train)
    monkeypatch.setattr(compare.evaluate, "run", evaluate)
    monkeypatch.setattr(compare.report, "run", lambda *_, **__: None)
    begun_with = made_run.RunSettings(COMPARISON.configs["batch"], "batch", 0)
    for module in (compare, made_run):
        monkeypatch.setattr(module, "read_settings", lambda _: begun_with)
    monkeypatch.setattr(made_run, "check_same", lambda *_: None)
    monkeypatch.setattr(
        compare, "share", lambda *arguments: share(*arguments[:2], lambda _: waits.set())
    )
    comparison = dataclasses.replace(COMPARISON, seeds=2)
    with Display() as display:
        thread = threading.Thread(
            target=compare.run, args=(tmp_path, comparison), kwargs={"display": display.inside()}
        )
        with claimed(tmp_path, "runs/batch-0"):
            thread.start()
            assert waits.wait(30)
            assert begun == ["batch-1", "group-1"]
            # As the process that holds it does.
            made = made_run.MadeRun(tmp_path / "runs" / "batch-0")
            made.begin()
            (tmp_path / "runs" / "batch-0" / "checkpoints").mkdir()
            assert not made.has_weights  # a training writes them before it is finished
            made.trained()
            assert made.has_weights
        thread.join(30)
    assert not thread.is_alive()
    assert sorted(begun[2:]) == ["batch-0", "group-0"]
