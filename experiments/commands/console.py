"""What people see of a command: one console, and bars that show how far it is."""

import copy
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.errors import ConfigError

_PAUSE = 30.0  # seconds between two lines where there are no bars


def make_console(*, quiet: bool = False) -> Console:
    """Returns the console of a command.

    Args:
      quiet: print nothing, as all processes but the first do.
    """
    # Where there is no terminal to ask, rich would break tables at 80 columns.
    return Console(quiet=quiet) if sys.stdout.isatty() else Console(width=120, quiet=quiet)


def is_quiet(console: Console) -> bool:
    """Returns whether bars are not wanted: logs of a CI job or a pipe cannot redraw a line."""
    return not console.is_terminal or bool(os.environ.get("CI"))


def make_folder(folder: Path) -> None:
    """Makes the folder that a command writes to, where there is none.

    Raises:
      ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {folder} for results: {error.strerror}") from error


class Bar:
    """One line that shows how far one part of a command is."""

    def __init__(self, display: "Display", title: str, total: int | None):
        self._display, self._title, self._total, self._done = display, title, total, 0
        self._task = display.progress.add_task(title, total=total)

    def note(self, title: str) -> None:
        """Says what is being done."""
        self._title = title
        self._display.progress.update(self._task, description=title)
        self._display.now_and_then(self._line())

    def advance(self) -> None:
        """One step is done."""
        self.move_to(self._done + 1, self._total)

    def move_to(self, done: int, total: int | None) -> None:
        """So many of so many steps are done."""
        self._done, self._total = done, total
        self._display.progress.update(self._task, completed=done, total=total)
        self._display.now_and_then(self._line())

    def remove(self) -> None:
        """Takes the line away."""
        self._display.progress.remove_task(self._task)

    def _line(self) -> str:
        return f"{self._done} of {self._total}: {self._title}" if self._total else self._title


class Display:
    """Prints lines and shows bars; use as a context manager.

    A command that runs other commands hands them ``inside()``, which shows their bars below its
    own and keeps their lines to itself.

    Args:
      console: where bars are drawn, on a terminal; elsewhere there is a line now and then.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or make_console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=is_quiet(self.console),
            transient=True,
        )
        self._is_inside = False
        self._said = time.monotonic()

    def inside(self) -> Self:
        """Returns a display for a command that is a part of this one."""
        inner = copy.copy(self)
        inner._is_inside = True
        return inner

    def __enter__(self) -> Self:
        if not self._is_inside:
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_inside:
            self.progress.stop()

    @contextmanager
    def bar(self, title: str, total: int | None = None) -> Iterator[Bar]:
        """Shows a bar until the end of the block.

        Args:
          title: what is being done.
          total: how many steps there will be; None while nobody knows.
        """
        bar = Bar(self, title, total)
        try:
            yield bar
        finally:
            bar.remove()

    def say(self, what: RenderableType) -> None:
        """Prints a line, or a table, that stays."""
        if self._is_inside:
            return
        # Lines with a path or a command are not broken: they could not be copied.
        soft_wrap = isinstance(what, str) and "\n" not in what
        self.console.print(what, markup=False, highlight=False, soft_wrap=soft_wrap)
        self._said = time.monotonic()

    def now_and_then(self, line: str) -> None:
        """Prints a line where there are no bars and nothing was said for a while."""
        if self.progress.disable and time.monotonic() - self._said > _PAUSE:
            self.say(line)
