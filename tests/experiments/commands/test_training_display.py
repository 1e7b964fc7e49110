"""What a training tells people and programs, with the clock held."""

import contextlib
import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from experiments.commands import training_display as display_module
from experiments.commands.console import Display
from experiments.commands.training_display import (
    TrainingDisplay,
    shown_reading,
    tensorboard_writer,
)
from experiments.configs.overrides import resolve
from experiments.errors import ConfigError
from experiments.models.norms import shrinkage
from experiments.results import LoggedStep
from experiments.training.folder import RunFolder, RunSettings
from experiments.training.shrinkage_notes import ShrinkageNotes

NAN = float("nan")


class _Clock:
    """Goes on only when told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(display_module, "time", clock)
    monkeypatch.delenv("CI", raising=False)
    return clock


@pytest.fixture
def folder(tmp_path):
    with RunFolder(
        tmp_path, RunSettings(resolve("digits", smoke=True), "stein", 0), None
    ) as folder:
        yield folder


def _console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


@contextlib.contextmanager
def _watched(folder, console, **settings):
    with Display(console) as display, TrainingDisplay(folder, display, **settings) as watch:
        yield watch


def _shown(console):
    """Without the codes that colour and move."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def _lines(folder):
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    text = (folder.root / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def _row(step, loss=1.5, **changes):
    factors = {"norm": {"mean_factor": 0.5, "variance_factor": 0.75}}
    row = LoggedStep(step, step / 10, loss, 0.25, factors, 0.01)
    return dataclasses.replace(row, **changes)


def test_without_a_terminal_there_is_one_line_a_validation(folder, clock):
    console = _console()
    with _watched(folder, console, batch_size=16, score="accuracy") as watch:
        for step in range(1, 21):
            clock.now += 0.5
            watch.stepped(step, 20, 3 / step)
            if step % 10 == 0:
                watch.validated(step, {"accuracy": step / 40, "loss": 0.125})
    # Two steps of 16 a second; what is not validated leaves no line.
    assert _shown(console).splitlines() == [
        "step 10: training loss 0.3000; validation accuracy 0.2500, loss 0.1250 (32 examples/s)",
        "step 20: training loss 0.1500; validation accuracy 0.5000, loss 0.1250 (32 examples/s)",
    ]


def test_the_rate_leaves_out_compilation_and_validation(folder, clock):
    console = _console()
    with _watched(folder, console, batch_size=10, score="auc") as watch:
        clock.now += 60  # compiles
        for step in range(1, 5):
            watch.stepped(step, 8, 1.0)
            clock.now += 2
        watch.validated(4, {"auc": 0.5})
        clock.now += 500  # validates
        for step in range(5, 9):
            watch.stepped(step, 8, 1.0)
            clock.now += 2
        watch.validated(8, {"auc": NAN})
    assert _shown(console).splitlines() == [
        "step 4: training loss 1.0000; validation auc 0.5000 (5 examples/s)",
        "step 8: training loss 1.0000; validation auc nan (5 examples/s)",
    ]


def test_a_terminal_shows_loss_score_rate_and_time_left(folder, clock):
    console = _console(terminal=True)
    with _watched(folder, console, batch_size=16, score="accuracy") as watch:
        assert "compiling" in _shown(console)
        for step in range(1, 6):
            clock.now += 2
            watch.stepped(step, 40, 0.625)
        watch.validated(5, {"accuracy": 0.4375})
        for step in range(6, 9):
            clock.now += 2
            watch.stepped(step, 40, 0.125)
        watch._display.progress.refresh()
        shown = _shown(console)
    last = shown.splitlines()[-1]
    assert "loss 0.125, validation accuracy 0.438, 8 examples/s" in last
    assert "8/40" in last
    assert re.search(r"left +(\d:\d\d:\d\d|-:--:--)", last)
    assert "step 5: training loss 0.6250; validation accuracy 0.4375 (8 examples/s)" in shown


def test_ci_is_no_terminal(folder, clock, monkeypatch):
    monkeypatch.setenv("CI", "true")
    console = _console(terminal=True)
    with _watched(folder, console, batch_size=16, score="accuracy") as watch:
        watch.stepped(1, 2, 1.0)
        watch.validated(1, {"accuracy": 1.0})
    assert _shown(console).splitlines() == [
        "step 1: training loss 1.0000; validation accuracy 1.0000"
    ]


def test_the_log_is_json_whatever_the_scores(folder, clock):
    with _watched(folder, _console(), batch_size=16, score="auc") as watch:
        watch.logged(_row(1))
        clock.now += 2
        watch.logged(_row(5))
        watch.validated(5, {"auc": NAN, "accuracy": 0.5, "loss": float("inf")})
        clock.now += 50
        watch.logged(_row(6))
    lines = _lines(folder)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1),
        ("train", 5),
        ("validation", 5),
        ("train", 6),
    ]
    assert "examples_per_second" not in lines[0]
    assert lines[1] == {
        "kind": "train",
        "step": 5,
        "epoch": 0.5,
        "loss": 1.5,
        "accuracy": 0.25,
        "factors": {"norm": {"mean_factor": 0.5, "variance_factor": 0.75}},
        "learning_rate": 0.01,
        "examples_per_second": 32.0,
    }
    assert lines[2]["auc"] is None
    assert lines[2]["accuracy"] == 0.5
    assert "examples_per_second" not in lines[3]


def test_the_log_is_json_where_scores_are_not_a_number(folder, clock):
    with _watched(folder, _console(), batch_size=16, score="auc") as watch:
        watch.validated(5, {"auc": NAN, "accuracy": 0.5})
    assert _lines(folder) == [{"kind": "validation", "step": 5, "auc": None, "accuracy": 0.5}]


def test_two_logged_steps_at_the_same_time_are_no_error(folder, clock):
    with _watched(folder, _console(), batch_size=16, score="auc") as watch:
        watch.logged(_row(1))
        watch.logged(_row(2))  # a coarse clock
    assert [line["step"] for line in _lines(folder)] == [1, 2]


def test_resuming_rewinds_the_log_and_is_told(folder, clock):
    folder.log({"kind": "train", "step": 3})
    folder.log({"kind": "train", "step": 9})
    for terminal in (False, True):
        console = _console(terminal)
        with _watched(folder, console, batch_size=16, score="auc") as watch:
            watch.resumed(4, 12)
            watch._display.progress.refresh()
        assert "going on from the checkpoint of step 4 of 12" in _shown(console)
    assert "4/12" in _shown(console)
    assert [line["step"] for line in _lines(folder)] == [3]


def test_the_bar_is_taken_down_when_a_training_fails(folder, clock):
    console = _console(terminal=True)

    def train(watch):
        watch.stepped(1, 2, 1.0)
        raise FloatingPointError("the loss is nan")

    with (
        pytest.raises(FloatingPointError, match="the loss is nan"),
        _watched(folder, console, batch_size=16, score="auc") as watch,
    ):
        train(watch)
    assert console.file.getvalue().count("\x1b[?25l") == 1  # hides the cursor
    assert console.file.getvalue().count("\x1b[?25h") == 1  # shows it again


class _Events:
    def __init__(self):
        self.scalars, self.closed = [], False

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def close(self):
        self.closed = True


def test_events_have_the_numbers_of_the_log(folder, clock):
    events = _Events()

    def train(watch):
        watch.logged(_row(2))
        watch.validated(2, {"auc": 0.75})
        raise RuntimeError("stopped")

    with (
        pytest.raises(RuntimeError, match="stopped"),
        _watched(folder, _console(), batch_size=16, score="auc", events=events) as watch,
    ):
        train(watch)
    assert events.closed
    assert set(events.scalars) == {
        ("train/loss", 1.5, 2),
        ("train/accuracy", 0.25, 2),
        ("train/learning_rate", 0.01, 2),
        ("train/epoch", 0.2, 2),
        ("shrinkage/norm/mean_factor", 0.5, 2),
        ("shrinkage/norm/variance_factor", 0.75, 2),
        ("validation/auc", 0.75, 2),
    }


def _records(path):
    """The payloads of a TFRecord file: length (8 bytes), checksum (4), payload, checksum (4)."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        size = int.from_bytes(content[place : place + 8], "little")
        yield content[place + 12 : place + 12 + size]
        place += 16 + size


def test_tensorboard_files_can_be_read_back(tmp_path, folder, clock):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    events = tensorboard_writer(tmp_path / "tensorboard")
    with _watched(folder, _console(), batch_size=16, score="auc", events=events) as watch:
        watch.logged(_row(2))
        watch.validated(3, {"auc": 0.75})
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {
        (value.tag, event.step): value.simple_value
        for event in map(Event.FromString, _records(path))
        for value in event.summary.value
    }
    assert found["train/loss", 2] == 1.5
    assert found["shrinkage/norm/mean_factor", 2] == 0.5
    assert found["validation/auc", 3] == 0.75
    assert len(found) == 7


def test_tensorboard_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(display_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboardX"):
        display_module.check_tensorboard()


def test_reading_is_shown_on_a_terminal_only(clock):
    for terminal in (False, True):
        console = _console(terminal)
        with Display(console) as display, shown_reading(display) as on_progress:
            on_progress(1, 4, "decoding train")
            on_progress(4, 4, "decoding train")
            on_progress(1, 2, "decoding test")
            display.progress.refresh()
        shown = _shown(console)
        assert ("decoding train" in shown) == terminal
        assert ("decoding test" in shown) == terminal


def test_the_bar_ends_with_the_last_validation(folder, clock):
    console = _console(terminal=True)
    with _watched(folder, console, batch_size=16, score="accuracy") as watch:
        watch.stepped(1, 1, 0.5)
        watch.validated(1, {"accuracy": 0.75})
        watch._display.progress.refresh()
    assert "validation accuracy 0.750" in _shown(console)


def test_what_the_shrinkage_does_is_logged_and_said_once(folder):
    console = _console()
    notes = ShrinkageNotes(shrinkage("stein"))
    low = {"norm": {"mean_factor": 0.01, "variance_factor": 0.75}}
    with _watched(folder, console, batch_size=16, score="auc", notes=notes) as watch:
        for step in range(5, 45, 5):  # of ten an epoch
            watch.logged(_row(step, factors=low))
    (line,) = _shown(console).splitlines()
    assert line.startswith("stein: 1 of 1 layers have stopped centring their input")
    lines = _lines(folder)
    assert {row["target"] for row in lines if row["kind"] == "train"} == {"zero"}
    (note,) = (row for row in lines if row["kind"] == "note")
    assert (note["step"], note["note"]) == (10, line)
