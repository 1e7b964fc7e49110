"""Shows and logs a training: a bar on a terminal, lines in a log, event files on request."""

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from experiments.commands.console import Bar, Display
from experiments.errors import ConfigError
from experiments.results import LoggedStep
from experiments.training.folder import RunFolder
from experiments.training.loop import Observer
from experiments.training.shrinkage_notes import ShrinkageNotes


class Events(Protocol):
    """Where scalars go for TensorBoard."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One number of one step."""

    def close(self) -> None:
        """Writes what is still waiting."""


def check_tensorboard() -> None:
    """Refuses ``--tensorboard`` where the package that writes event files is not installed.

    Raises:
      ConfigError: saying how to install it.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "--tensorboard needs the package tensorboardX, which is not installed; "
            "install it with: pip install tensorboardX"
        )


def tensorboard_writer(folder: Path) -> Events:
    """Returns a writer of event files; ``check_tensorboard`` says where there can be none.

    Args:
      folder: of the files.
    """
    from tensorboardX import SummaryWriter  # noqa: PLC0415

    return SummaryWriter(str(folder))


@contextmanager
def shown_reading(display: Display) -> Iterator[Callable[[int, int, str], None]]:
    """Shows how far the decoding of files is.

    Args:
      display: where.

    Yields:
      What a loader of data calls with (done, total, what).
    """
    bars: dict[str, Bar] = {}

    def on_progress(done: int, total: int, what: str) -> None:
        if what not in bars:
            bars[what] = Bar(display, what, total)
        bars[what].move_to(done, total)

    try:
        yield on_progress
    finally:
        for bar in bars.values():
            bar.remove()


class TrainingDisplay(Observer):
    """Shows and logs a training; use as a context manager.

    Args:
      folder: whose log is written.
      display: where the bar is shown; lines stay.
      batch_size: over all devices, for the rate.
      score: name of the score to show.
      events: for TensorBoard, or None.
      notes: what there is to say of the shrinkage.
    """

    def __init__(
        self,
        folder: RunFolder,
        display: Display,
        batch_size: int,
        score: str,
        *,
        events: Events | None = None,
        notes: ShrinkageNotes | None = None,
    ):
        self._notes = notes or ShrinkageNotes(None)
        self._folder, self._display, self._events = folder, display, events
        self._batch_size, self._score = batch_size, score
        self._validation = ""
        self._loss = float("nan")
        # When the clock was last looked at, and at which step.
        self._clock: tuple[float, int] | None = None
        self._rate = ""
        self._logged: tuple[float, int] | None = None
        self._bar = Bar(display, "compiling", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.remove()
        if self._events:
            self._events.close()

    def resumed(self, step: int, total: int) -> None:
        """A checkpoint of ``step`` was found."""
        self._folder.rewind(step)
        self._display.say(f"going on from the checkpoint of step {step} of {total}")
        self._bar.move_to(step, total)

    def stepped(self, step: int, total: int, loss: float) -> None:
        """A step is done."""
        self._loss = loss
        now = time.monotonic()
        if self._clock is None:
            self._clock = now, step  # the first step compiles; it says nothing about the rate
        elif now - self._clock[0] > 1:
            rate = (step - self._clock[1]) * self._batch_size / (now - self._clock[0])
            self._rate = f"{rate:.0f} examples/s"
            self._clock = now, step
        self._note()
        self._bar.move_to(step, total)

    def logged(self, row: LoggedStep) -> None:
        """A step that is kept is done."""
        now = time.monotonic()
        line: dict[str, Any] = {"kind": "train", **dataclasses.asdict(row)}
        if self._logged is not None:
            seconds, steps = now - self._logged[0], row.step - self._logged[1]
            if seconds > 0:
                line["examples_per_second"] = round(steps * self._batch_size / seconds, 1)
        self._logged = now, row.step
        if self._notes.target:
            line["target"] = self._notes.target
        self._folder.log(line)
        for told in self._notes.look(row):
            self._folder.log({"kind": "note", "step": row.step, "note": told})
            self._display.say(told)
        if self._events:
            for name in ("loss", "accuracy", "learning_rate", "epoch"):
                self._events.add_scalar(f"train/{name}", line[name], row.step)
            for layer, factors in row.factors.items():
                for name, value in factors.items():
                    self._events.add_scalar(f"shrinkage/{layer}/{name}", value, row.step)

    def validated(self, step: int, scores: dict[str, float]) -> None:
        """An epoch is done and the weights were scored on the validation part."""
        # Not a number is not JSON.
        kept = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        self._folder.log({"kind": "validation", "step": step, **kept})
        self._validation = f"validation {self._score} {scores[self._score]:.3f}"
        self._note()
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        rate = f" ({self._rate})" if self._rate else ""
        self._display.say(f"step {step}: training loss {self._loss:.4f}; validation {told}{rate}")
        # Validation is not training: the clock of the rates starts anew.
        self._clock = self._logged = None
        if self._events:
            for name, value in scores.items():
                self._events.add_scalar(f"validation/{name}", value, step)

    def _note(self) -> None:
        shown = [f"loss {self._loss:.3f}", self._validation, self._rate]
        self._bar.note(", ".join(filter(None, shown)))
