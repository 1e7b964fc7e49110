"""Shares the runs of a comparison among all processes that were started with the same command.

Each process takes the first run that no other one is at.  The system lets go of the lock of a
killed process, so that another one goes on with its run.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import filelock

from experiments.errors import ConfigError

Job = TypeVar("Job")

_PAUSE = 1.0  # seconds until it is seen whether another process is done


@contextlib.contextmanager
def claimed(workdir: Path, what: str | Path, *, wait: bool = False) -> Iterator[bool]:
    """Claims a part of a comparison's work folder, which other processes may want to write to.

    Args:
      workdir: of the comparison.
      what: the part's path in there; it need not be there.
      wait: until no other process holds it.

    Yields:
      Whether this process holds it.

    Raises:
      ConfigError: the file system has no locks, or the file cannot be written.
    """
    # Apart from what is locked, which may be deleted and made anew meanwhile.
    path = workdir / ".locks" / "-".join(Path(what).parts)
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=wait)
    except filelock.Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"cannot lock {path}: {getattr(error, 'strerror', '') or error}"
        ) from error
    try:
        yield True
    finally:
        lock.release()


def share(
    jobs: Sequence[Job],
    attempt: Callable[[Job], bool],
    on_wait: Callable[[Sequence[Job]], None],
) -> None:
    """Returns once all jobs are done, by this process or by others.

    Args:
      jobs: in the order in which they are begun.
      attempt: does one; False where it cannot be done now, because another process is at it or at
        what it needs.
      on_wait: told, before each pause, which jobs others are at while nothing is left for this
        process.
    """
    left = list(jobs)
    while left:
        waiting = [job for job in left if not attempt(job)]
        if len(waiting) == len(left):
            on_wait(waiting)
            time.sleep(_PAUSE)
        left = waiting
