"""What is wrong with data on disk: collected over many files, and raised as one error."""

import concurrent.futures
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from experiments.errors import ConfigError

MOST_PROBLEMS = 10
"""Number of problems that are collected before an error is raised, so that all can be mended."""

OnProgress = Callable[[int, int, str], None]
"""Called with (done, total, what) while something long is under way."""

_Item = TypeVar("_Item")


class DataError(ConfigError):
    """Data on disk is not as described; the message names the file and what is wrong with it."""


def raise_problems(problems: Sequence[str]) -> None:
    """Raises the problems as one error, where there are any.

    Raises:
      DataError: with one line per problem, the first ``MOST_PROBLEMS`` of them.
    """
    if not problems:
        return
    if len(problems) == 1:
        raise DataError(problems[0])
    shown = [f"  {problem}" for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        shown.append(f"  ... and {len(problems) - MOST_PROBLEMS} more")
    raise DataError("\n".join(["the data cannot be used:", *shown]))


def decode_all(
    items: Sequence[_Item],
    decode: Callable[[int, _Item], None],
    what: str,
    on_progress: OnProgress | None = None,
) -> None:
    """Calls ``decode(position, item)`` for every item, in threads.

    The libraries that decode images and volumes release the interpreter's lock.

    Args:
      items: what is decoded, such as files.
      decode: stores its result itself; raises ``DataError`` where an item cannot be used.
      what: the items in words, for the progress.
      on_progress: called after every item.

    Raises:
      DataError: one or more items cannot be used, in the order of the items.  After
        ``MOST_PROBLEMS`` of them no further item is begun.  Other errors are raised as they are.
    """
    problems: dict[int, str] = {}
    done, lock = 0, threading.Lock()

    def one(position: int) -> None:
        nonlocal done
        if len(problems) >= MOST_PROBLEMS:
            return
        try:
            decode(position, items[position])
        except DataError as error:
            problems[position] = str(error)
        with lock:
            done += 1
            if on_progress is not None:
                on_progress(done, len(items), what)

    workers = max(1, min(16, len(items), os.cpu_count() or 1))
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for _ in pool.map(one, range(len(items))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    raise_problems([problems[position] for position in sorted(problems)])


def first_line(error: BaseException) -> str:
    """Returns an error of another library as ``Type: message``, without its further lines."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
