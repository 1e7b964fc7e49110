"""How the process handles memory that it has freed."""

import ctypes
import os
import sys

# Parameters of mallopt(3), and the variables by which a user sets them.
_SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # nothing from outside of the heap,
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # which never shrinks,
    "MALLOC_ARENA_MAX": (-8, 1),  # and of which there is one, for threads as well
}


def keep_freed_memory() -> bool:
    """Lets the process keep the memory that it frees, where the C library is glibc.

    On a CPU, XLA allocates the buffers of a program at each call, and frees them after it. glibc
    gives large ones back to Linux and gets them anew, page by page: that was 0.29 of the time of
    an evaluation under attack (docs/speed.md). The price is that the process stays as large as it
    once was, and somewhat larger for the gaps between what is in use.

    Returns:
      Whether it does; never where the environment has settings of its own.
    """
    chosen = any(name in os.environ for name in _SETTINGS)
    if sys.platform != "linux" or chosen or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    taken = [mallopt(parameter, value) for parameter, value in _SETTINGS.values()]
    return all(taken)
