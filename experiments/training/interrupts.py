"""Puts off Ctrl-C and SIGTERM until the arrays of a training are whole."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Notes SIGINT and SIGTERM instead of acting on them; use as a context manager.

    A step gives up its arguments before its results have a name, so an exception in between would
    lose both.  The loop asks ``pending`` where it can stop.  A second signal acts at once.
    Outside the main thread, where Python has no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Ignored on purpose: by nohup, or a shell that started us in the background.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def act(self) -> None:
        """Does what the noted signal asks for.

        Raises:
          KeyboardInterrupt: it was SIGINT.
          SystemExit: it was SIGTERM; the status is what a shell expects, 143.
        """
        if self.pending == signal.SIGINT:
            raise KeyboardInterrupt
        if self.pending is not None:
            raise SystemExit(128 + self.pending)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.pending = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
