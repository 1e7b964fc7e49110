"""Progress reports of attacks that consist of several runs."""

from collections.abc import Callable
from typing import NamedTuple

OnProgress = Callable[[int, int], None]
"""Called from time to time with the number of completed steps and of all steps."""


class RunProgress(NamedTuple):
    """Reports the progress of one run as that of the whole attack.

    Attributes:
      on_progress: receives the reports; None for none.
      steps_before: steps of the runs before this one.
      total_steps: steps of all runs.
    """

    on_progress: OnProgress | None
    steps_before: int
    total_steps: int

    def __call__(self, done: int) -> None:
        """Reports that this run has completed ``done`` steps."""
        if self.on_progress is not None:
            self.on_progress(self.steps_before + done, self.total_steps)
