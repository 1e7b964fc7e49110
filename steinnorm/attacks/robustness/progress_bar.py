"""Progress of an evaluation: a bar on a terminal, occasional lines elsewhere."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, Self

_PAUSE = 30.0  # seconds between two lines without a bar


class ProgressBar:
    """Shows the progress, as a context manager; without the package rich it prints lines.

    Args:
      shown: whether anything is shown at all.
      steps: number of steps; None if it is unknown.
    """

    def __init__(self, shown: bool, steps: int | None):
        self._steps, self._done, self._last_line = steps, 0, time.monotonic()
        self._print: Callable[[str], None] | None = None
        self._progress: Any = None
        if shown:
            self._create()

    def _create(self) -> None:
        try:
            # Imported here, so that attacks alone do not load it.
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )
        except ImportError:
            self._print = functools.partial(print, flush=True)
            return
        console = Console(soft_wrap=True)
        self._print = functools.partial(console.print, highlight=False, markup=False)
        quiet = not console.is_terminal or bool(os.environ.get("CI"))
        if not quiet:
            self._progress = Progress(
                TextColumn("{task.description:<44}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task("compiling", total=self._steps)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, text: str) -> None:
        """Counts a completed step and shows its text."""
        self._done += 1
        if self._progress is not None:
            self._progress.update(self._task, advance=1, description=text)
        of_all = f" of {self._steps}" if self._steps else ""
        self._print_if_due(f"step {self._done}{of_all}: {text}")

    def note(self, text: str) -> None:
        """Shows a text within a step."""
        if self._progress is not None:
            self._progress.update(self._task, description=text)
        self._print_if_due(text)

    def print_line(self, line: str) -> None:
        """Prints a permanent line."""
        if self._print is not None:
            self._print(line)
            self._last_line = time.monotonic()

    def _print_if_due(self, line: str) -> None:
        if self._progress is None and time.monotonic() - self._last_line > _PAUSE:
            self.print_line(line)
