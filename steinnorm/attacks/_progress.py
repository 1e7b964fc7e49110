"""Progress of attacks that consist of several runs."""

from collections.abc import Callable
from typing import NamedTuple

OnProgress = Callable[[int, int], None]
"""Called now and then with how much of an attack is done, and of how much."""


class Tick(NamedTuple):
    """Progress of one run, told as that of the whole attack.

    Attributes:
      call: whom to tell; None for nobody.
      before: what was done before this run.
      total: of all runs.
    """

    call: OnProgress | None
    before: int
    total: int

    def __call__(self, done: int) -> None:
        """So much of this run is done."""
        if self.call is not None:
            self.call(self.before + done, self.total)
