"""What people see of a training: a bar on a terminal, lines in a log, event files on request."""

import dataclasses
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from experiments.commands.console import is_quiet
from experiments.errors import ConfigError
from experiments.results import LoggedStep
from experiments.training.folder import RunFolder
from experiments.training.loop import Observer


class Events(Protocol):
    """Where scalars go for TensorBoard."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One number of one step."""

    def close(self) -> None:
        """Writes what is still waiting."""


def tensorboard_writer(folder: Path) -> Events:
    """A writer of event files.

    Raises:
      ConfigError: the package that writes them is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs a package that is not installed; "
            "install it with: pip install 'steinnorm[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))


class Reading:
    """Shows how far the decoding of files is; use as a context manager.

    Args:
      console: where the bar is drawn, on a terminal only.
    """

    def __init__(self, console: Console):
        self._bar = Progress(console=console, disable=is_quiet(console), transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def progress(self, done: int, total: int, what: str) -> None:
        """So many of all files are decoded."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done, total=total)


class Watch(Observer):
    """Shows and logs a training; use as a context manager.

    Args:
      folder: whose log is written.
      console: where the bar is drawn; without a terminal, and in CI, one line an epoch instead.
      batch_size: over all devices, for the rate.
      score: name of the score to show.
      events: for TensorBoard, or None.
    """

    def __init__(
        self,
        folder: RunFolder,
        console: Console,
        batch_size: int,
        score: str,
        events: Events | None = None,
    ):
        self._folder, self._console, self._events = folder, console, events
        self._batch_size, self._score = batch_size, score
        self._validation = ""
        self._loss = float("nan")
        # Of the last look at the clock: when, and at which step.
        self._clock: tuple[float, int] | None = None
        self._rate = ""
        self._logged: tuple[float, int] | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=is_quiet(console),
        )
        self._task = self._bar.add_task("compiling", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._events:
            self._events.close()

    def resumed(self, step: int, total: int) -> None:
        """A checkpoint of ``step`` was found."""
        self._folder.rewind(step)
        self._say(f"going on from the checkpoint of step {step} of {total}")
        self._bar.update(self._task, completed=step, total=total)

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
        shown = [f"loss {loss:.3f}", self._validation, self._rate]
        self._bar.update(
            self._task, completed=step, total=total, description=", ".join(filter(None, shown))
        )

    def logged(self, row: LoggedStep) -> None:
        """A step that is kept is done."""
        now = time.monotonic()
        line: dict[str, Any] = {"kind": "train", **dataclasses.asdict(row)}
        if self._logged is not None:
            seconds, steps = now - self._logged[0], row.step - self._logged[1]
            if seconds > 0:
                line["examples_per_second"] = round(steps * self._batch_size / seconds, 1)
        self._logged = now, row.step
        self._folder.log(line)
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
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        rate = f" ({self._rate})" if self._rate else ""
        self._say(f"step {step}: training loss {self._loss:.4f}; validation {told}{rate}")
        # Validation is not training: the clock of the rates starts anew.
        self._clock = self._logged = None
        if self._events:
            for name, value in scores.items():
                self._events.add_scalar(f"validation/{name}", value, step)

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)
