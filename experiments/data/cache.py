"""Decoded arrays on disk: built once, whole or not at all, and read as memory maps.

An entry is a folder ``NAME-FINGERPRINT`` with one ``.npy`` file per array and ``manifest.json``,
which is written last.  It is built under another name and renamed when complete, so that a killed
build leaves nothing that would be read.  A lock per entry makes sure that of several processes
that need it at the same time one builds it, while the others wait and read its result; where the
file system has no locks, all of them build it and the first to finish wins.  The operating system
releases the lock of a killed process, and the next build deletes what it left.

The fingerprint covers whatever the arrays were made of; entries that nothing asks for any longer
stay until somebody deletes the folder, which is safe at any time when no run is reading it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np

from experiments.data.problems import DataError, OnProgress

FORMAT = 1
"""Raised when entries written by older code must not be read any longer."""

_MANIFEST = "manifest.json"
_BUILDING = ".building-"
_PATIENCE = 1.0  # seconds of waiting for another process before the user is told


class Allocate(Protocol):
    """Makes the array that a build fills: a file's memory map, or memory."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array of that shape and type, its content undefined; ``name`` is its key."""


Build = Callable[[Allocate], None]


class _Unusable(Exception):
    """The folder of the cache cannot be written; nothing is wrong with the data themselves."""


def source_key(files: Iterable[Path], root: Path) -> list[list[str | int]]:
    """Returns what tells a changed source file from the one that was decoded.

    Returns:
      [path relative to ``root``, size in bytes, time of change in ns] of each file, in the order
      of the files, which is the order of the arrays made of them.

    Raises:
      DataError: a file is not there.
    """
    key: list[list[str | int]] = []
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise DataError(f"{file}: {error.strerror or error}") from error
        key.append([os.path.relpath(file, root), state.st_size, state.st_mtime_ns])
    return key


def cached(
    cache_dir: Path | None,
    name: str,
    key: dict[str, Any],
    build: Build,
    on_progress: OnProgress | None = None,
) -> dict[str, np.ndarray]:
    """Returns the arrays that ``build`` makes, from the cache where it has them.

    Args:
      cache_dir: folder of the cache; None to build in memory, every time.
      name: what the entry's folder name starts with.
      key: JSON of all that the result depends on.
      build: allocates each array through its argument and fills it.  It is called again, from the
        start, where the disk turns out to be full.
      on_progress: told that this process waits for another one that builds the same arrays.

    Returns:
      The arrays by name; read-only memory maps if ``cache_dir`` is given and can be written.

    Warns:
      UserWarning: the cache could not be written; the arrays are in memory.
    """
    if cache_dir is None:
        return _in_memory(build)
    # Through JSON and back, so that the key compares equal to what the manifest says.
    key = json.loads(json.dumps({**key, "cache_format": FORMAT}, sort_keys=True))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    entry = Path(cache_dir) / f"{name}-{digest}"
    arrays = _read(entry, key)
    if arrays is not None:
        return arrays
    try:
        return _on_disk(entry, key, build, on_progress)
    except _Unusable as error:
        warnings.warn(
            f"{cache_dir}: cannot be used as a cache ({error}); going on without, in memory",
            stacklevel=2,
        )
        return _in_memory(build)


def _in_memory(build: Build) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}

    def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        arrays[name] = np.empty(shape, dtype)
        return arrays[name]

    build(allocate)
    return arrays


def _on_disk(
    entry: Path, key: dict[str, Any], build: Build, on_progress: OnProgress | None
) -> dict[str, np.ndarray]:
    """Returns the entry's arrays, built here unless another process was first."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _Unusable(error) from error
    with _locked(entry, on_progress) as locked:
        arrays = _read(entry, key)  # perhaps built while this process waited for the lock
        if arrays is None:
            _remove_leftovers(entry, locked)
            _build_in_place(entry, key, build)
            arrays = _read(entry, key)
    if arrays is None:
        raise _Unusable(f"{entry.name} cannot be read back")
    return arrays


@contextlib.contextmanager
def _locked(entry: Path, on_progress: OnProgress | None) -> Iterator[bool]:
    """Holds the entry's lock; yields False where the file system or its rights allow none."""
    lock = filelock.FileLock(_lock_file(entry))
    try:
        try:
            lock.acquire(timeout=_PATIENCE)
        except filelock.Timeout:
            if on_progress is not None:
                on_progress(0, 1, "waiting for another process that decodes the same data")
            lock.acquire()
    except (OSError, NotImplementedError):
        # The lock only saves work: renaming keeps entries whole without it.  Where the folder
        # cannot be written at all, the build says so.
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock_file(entry: Path) -> Path:
    return entry.with_name(f"{_BUILDING}{entry.name}.lock")


def _new_folder(entry: Path) -> Path:
    """Makes a folder beside the entry, whose name says which entry's lock protects it."""
    return Path(tempfile.mkdtemp(dir=entry.parent, prefix=f"{_BUILDING}{entry.name}-"))


def _build_in_place(entry: Path, key: dict[str, Any], build: Build) -> None:
    """Builds an entry under another name, and puts it in its place when it is complete."""
    try:
        folder = _new_folder(entry)
    except OSError as error:
        raise _Unusable(error) from error
    try:
        files: dict[str, np.ndarray] = {}

        def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            files[name] = _new_file(folder / f"{name}.npy", shape, dtype)
            return files[name]

        build(allocate)
        try:
            _write_manifest(folder, key, files)
            files.clear()  # closes the maps: some systems rename no folder with open files
            _put_in_place(folder, entry, key)
        except OSError as error:
            raise _Unusable(error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # of no use if anything failed


def _new_file(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Makes a memory map whose disk space is reserved.

    A map is a file with holes: without the reservation, a full disk would kill the process with a
    bus error at the first write to a hole.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        size = path.stat().st_size
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        elif shutil.disk_usage(path).free < size:
            raise OSError(f"no space left for {size} bytes")
    except OSError as error:
        raise _Unusable(error) from error
    return array


def _write_manifest(folder: Path, key: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    described = {
        name: {
            "shape": list(array.shape),
            "dtype": array.dtype.str,
            "bytes": (folder / f"{name}.npy").stat().st_size,
        }
        for name, array in arrays.items()
    }
    with (folder / _MANIFEST).open("w") as file:
        json.dump({"key": key, "arrays": described}, file)
        file.flush()
        os.fsync(file.fileno())
    folder.chmod(0o755)  # mkdtemp makes folders that only their owner can read


def _put_in_place(folder: Path, entry: Path, key: dict[str, Any]) -> None:
    """Renames a finished build to its entry, unless another process was first."""
    for _ in range(3):
        try:
            os.rename(folder, entry)  # fails where the entry is there and is not empty
            return
        except OSError:
            if not entry.exists():
                raise
        if _read(entry, key) is not None:
            return
        # What lies there cannot be read.  It is renamed first, so that of two processes that do
        # this only one deletes it, and neither deletes the other's new entry.
        broken = _new_folder(entry) / entry.name
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry, broken)
        shutil.rmtree(broken.parent, ignore_errors=True)
    raise OSError(f"{entry} cannot be replaced")


def _read(entry: Path, key: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """Returns an entry's arrays as memory maps; None where it is missing or cannot be used.

    It cannot be used if it is of another key or damaged.  Damage means a missing or shortened file
    or a changed header; contents are not checked.
    """
    try:
        manifest = json.loads((entry / _MANIFEST).read_text())
        if manifest["key"] != key:
            return None
        arrays = {}
        for name, expected in manifest["arrays"].items():
            file = entry / f"{name}.npy"
            if file.stat().st_size != expected["bytes"]:
                return None
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if list(array.shape) != expected["shape"] or array.dtype.str != expected["dtype"]:
                return None
            arrays[name] = array
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _remove_leftovers(entry: Path, locked: bool) -> None:
    """Deletes what killed builds left: folders of entries that no process has locked.

    Args:
      entry: the one that is about to be built.
      locked: whether this process holds its lock.
    """
    for folder in entry.parent.glob(f"{_BUILDING}*-*"):
        if not folder.is_dir():
            continue  # a lock file, which stays: another process may be waiting for it
        other = folder.with_name(folder.name.removeprefix(_BUILDING).rpartition("-")[0])
        if other.name == entry.name:
            if locked:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        with (
            contextlib.suppress(filelock.Timeout, OSError, NotImplementedError),
            filelock.FileLock(_lock_file(other), timeout=0),
        ):
            shutil.rmtree(folder, ignore_errors=True)
