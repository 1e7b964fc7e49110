"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, Self

_PAUSE = 30.0  # seconds between two lines where there is no bar


class Bar:
    """Use as a context manager.  Without rich there are lines instead of a bar.

    Args:
      shown: whether anything is shown at all.
      steps: how many there will be; None where nobody knows.
    """

    def __init__(self, shown: bool, steps: int | None):
        self._steps, self._done, self._last = steps, 0, time.monotonic()
        self._say: Callable[[str], None] | None = None
        self._progress: Any = None
        if shown:
            self._make()

    def _make(self) -> None:
        try:
            # Here and not above, so that attacks alone do not load it.
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import (  # noqa: PLC0415
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )
        except ImportError:
            self._say = functools.partial(print, flush=True)
            return
        console = Console(soft_wrap=True)
        self._say = functools.partial(console.print, highlight=False, markup=False)
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

    def advance(self, what: str) -> None:
        """A step is done; ``what`` says which."""
        self._done += 1
        if self._progress is not None:
            self._progress.update(self._task, advance=1, description=what)
        of = f" of {self._steps}" if self._steps else ""
        self._now_and_then(f"step {self._done}{of}: {what}")

    def note(self, what: str) -> None:
        """Something goes on within a step."""
        if self._progress is not None:
            self._progress.update(self._task, description=what)
        self._now_and_then(what)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._say is not None:
            self._say(line)
            self._last = time.monotonic()

    def _now_and_then(self, line: str) -> None:
        if self._progress is None and time.monotonic() - self._last > _PAUSE:
            self.say(line)
