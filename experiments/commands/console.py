"""Progress for people: bars on a terminal, one plain line per finished run elsewhere."""

import os
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def is_quiet(console: Console) -> bool:
    """Whether bars are not wanted: logs of a CI job or a pipe cannot redraw a line."""
    return not console.is_terminal or bool(os.environ.get("CI"))


class Reporter:
    """Shows how far a command is; use as a context manager.

    Args:
      console: where to write.
      runs: how many runs there will be, those that are reused included.
    """

    def __init__(self, console: Console, runs: int):
        self._console = console
        self._runs = runs
        self._done = 0
        self._progress = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=is_quiet(console),
        )
        self._all = self._progress.add_task("all runs", total=runs)
        self._run = self._progress.add_task("", total=1, visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.update(self._run, visible=False)
        self._progress.stop()

    def start(self, title: str, steps: int) -> None:
        """A run of so many steps begins."""
        self._progress.reset(self._run, total=steps, description=title, visible=True)

    def advance(self, title: str) -> None:
        """One step of the run is done; ``title`` says what it is busy with."""
        self._progress.update(self._run, advance=1, description=title)

    def finish(self, line: str) -> None:
        """The run is done; ``line`` stays on the screen."""
        self._done += 1
        self._progress.update(self._all, advance=1)
        prefix = f"[{self._done}/{self._runs}] "
        self._progress.console.print(prefix + line, markup=False, highlight=False)
