"""What commands keep for each other, outside of work folders."""

import hashlib
import os
import platform
from pathlib import Path

import filelock

_MOST_BYTES = 4 * 2**30  # of compiled programs; the oldest go


def user_cache() -> Path:
    """Returns the user's folder for decoded data and compiled programs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "steinnorm"


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs for the next command, unless the user says where.

    To be called before JAX is imported.  In a folder for each kind of processor, because a program
    for a CPU runs on CPUs with the same features only.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # with our limit, JAX would delete programs from the user's own folder
    folder = user_cache() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        return
    _remove_unfinished(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST_BYTES))


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that a killed command had begun to write, or to remove.

    JAX writes a program in place, then the file with the time of its last use.  A program without
    that file would keep JAX from writing any program to the folder, with a warning for each of
    them.  A time without its program would make a program that is cut short later look whole; JAX
    would warn of it, compile again and never replace it.
    """
    try:
        # JAX holds this lock while it writes, so what is there now was written to its end or never
        # will be.
        with filelock.FileLock(folder / ".lockfile", timeout=1):
            for one, other in (("-cache", "-atime"), ("-atime", "-cache")):
                for file in folder.glob(f"*{one}"):
                    if not file.with_name(file.name.removesuffix(one) + other).exists():
                        file.unlink(missing_ok=True)
    except (filelock.Timeout, OSError, NotImplementedError):
        return  # in use, or on a file system that has no locks


def _processor() -> str:
    """Returns a name for the features of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256((platform.machine() + "".join(features)).encode()).hexdigest()[:8]
