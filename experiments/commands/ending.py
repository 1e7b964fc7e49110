"""How a command ends: in one line, whatever went wrong outside of the program."""

import contextlib
import logging
import os
import sys
from typing import Any


def end(message: str, status: int) -> int:
    """Says why a command ends.

    Args:
      message: for standard error; "" for none.
      status: the exit status.

    Returns:
      The status.
    """
    try:
        sys.stdout.flush()
    except OSError:
        # What is still to be written would fail once more, as the program ends.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(message, file=sys.stderr)
    return status


def in_words(error: Exception) -> str:
    """Returns an error of the system in one line, with the file where it is of one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether JAX says that a device's memory does not suffice."""
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)


def silence_libraries() -> None:
    """Keeps libraries from printing errors that they also raise: ``main`` tells those in a line.

    A full disk makes Orbax and asyncio log hundreds of lines, and threads of TensorStore print
    that the event loop, which the first error closed, is closed.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: False)
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            usual(unraisable)

    sys.unraisablehook = hook
