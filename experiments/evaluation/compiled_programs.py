"""Lets go of compiled programs before a process may have no more of them."""

import ctypes
import gc
from pathlib import Path

import jax

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = Path("/proc/sys/vm/max_map_count")
_SHARE, _MANY = 0.25, 16_000
"""Of the memory maps that Linux allows, and at most so many: with networks for CPUs some 3 GiB."""


def release_where_many() -> bool:
    """Lets go of all compiled programs, if they are many; to be called now and then.

    JAX keeps every program that a process has compiled. On a CPU each has memory maps of its own:
    a comparison of high-resolution networks took 9,000 for each of its runs, and the compiler
    aborted the process at the limit of Linux. What is still needed is compiled again, or read
    from the folder of compiled programs. Their memory goes back to the system, for other processes.

    Returns:
      Whether they were let go of; never where the system does not tell how many maps there are.
    """
    try:
        count = _MAPS.read_bytes().count(b"\n")
        most = int(_MOST_MAPS.read_text())
    except (OSError, ValueError):
        return False
    if count < min(_SHARE * most, _MANY):
        return False
    jax.clear_caches()
    gc.collect()  # programs are in cycles
    _give_back_freed_memory()
    return True


def _give_back_freed_memory() -> None:
    """Gives back what was freed between what is in use, where the C library is glibc.

    By itself glibc gives back the end of its heap only: of 6.2 GB that a comparison held on CamVid
    0.5 were in use, and it held 1.5 after this.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another system, or another C library
        return
    trim(0)
