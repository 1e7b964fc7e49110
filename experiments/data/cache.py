"""Decoded arrays on disk: built once, whole or not at all, and read as memory maps.

An entry is a folder ``NAME-FINGERPRINT`` with one ``.npy`` file per array and ``manifest.json``,
which is written last.  It is built under another name and renamed when complete, so that a killed
build leaves nothing that would be read, and of several processes that build the same entry at the
same time one wins and the others read its result.  The fingerprint covers whatever the arrays were
made of; entries that nothing asks for any longer stay until somebody deletes the folder, which is
safe at any time when no run is reading it.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from experiments.data.examples import DataError

FORMAT = 1
"""Raised when entries written by older code must not be read any longer."""

OnProgress = Callable[[int, int, str], None]
"""Called with (done, total, what) while something long is under way."""

MOST_PROBLEMS = 10
"""So many problems are collected before an error is raised, so that they are mended together."""

_MANIFEST = "manifest.json"
_BUILDING = ".building-"
_Item = TypeVar("_Item")


class Allocate(Protocol):
    """Makes the array that a build fills: a file's memory map, or memory."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of that shape and type, its content undefined; ``name`` is its key."""


Build = Callable[[Allocate], None]


class _Unusable(Exception):
    """The cache's folder cannot be written; the data themselves are not to blame."""


def source_key(files: Iterable[Path], root: Path) -> list[list[str | int]]:
    """What tells a changed source file: [name below ``root``, bytes, time of change in ns].

    Files keep their order, which is the order of the arrays made of them.

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
    cache_dir: Path | None, name: str, key: dict[str, Any], build: Build
) -> dict[str, np.ndarray]:
    """The arrays that ``build`` makes, from the cache where it has them.

    Args:
      cache_dir: folder of the cache; None to build in memory, every time.
      name: what the entry's folder name starts with.
      key: JSON of all that the result depends on.
      build: allocates each array through its argument and fills it.  It is called again, from the
        start, where the disk turns out to be full.

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
        return _on_disk(entry, key, build)
    except _Unusable as error:
        warnings.warn(
            f"{cache_dir}: cannot be used as a cache ({error}); going on without, in memory",
            stacklevel=2,
        )
        return _in_memory(build)


def fill(
    items: Sequence[_Item],
    work: Callable[[int, _Item], None],
    what: str,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Calls ``work(position, item)`` for every item, in threads.

    The libraries that decode images and volumes release the interpreter's lock.

    Returns:
      Messages of the ``DataError``s raised, in the order of the items; after ``MOST_PROBLEMS`` of
      them no further item is begun.  Other errors are raised.
    """
    problems: dict[int, str] = {}
    done, lock = 0, threading.Lock()

    def one(position: int) -> None:
        nonlocal done
        if len(problems) >= MOST_PROBLEMS:
            return
        try:
            work(position, items[position])
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
    return [problems[position] for position in sorted(problems)]


def report(problems: Sequence[str]) -> None:
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


def _in_memory(build: Build) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}

    def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        arrays[name] = np.empty(shape, dtype)
        return arrays[name]

    build(allocate)
    return arrays


def _on_disk(entry: Path, key: dict[str, Any], build: Build) -> dict[str, np.ndarray]:
    """Builds an entry under another name, and puts it in its place when it is complete."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(entry.parent)
        prefix = f"{_BUILDING}{socket.gethostname()}-{os.getpid()}-"
        folder = Path(tempfile.mkdtemp(dir=entry.parent, prefix=prefix))
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
            _put_in_place(folder, entry, key)
        except OSError as error:
            raise _Unusable(error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # of no use if anything failed
    arrays = _read(entry, key)
    if arrays is None:
        raise _Unusable(f"{entry.name} cannot be read back")
    return arrays


def _new_file(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A memory map whose disk space is there.

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
        broken = Path(tempfile.mkdtemp(dir=entry.parent, prefix=_BUILDING)) / entry.name
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry, broken)
        shutil.rmtree(broken.parent, ignore_errors=True)
    raise OSError(f"{entry} cannot be replaced")


def _read(entry: Path, key: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """An entry's arrays as memory maps; None where it is missing, of another key or damaged.

    Damage means a missing or shortened file or a changed header; contents are not checked.
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


def _remove_leftovers(cache_dir: Path) -> None:
    """Deletes what builds of this machine left that were killed."""
    prefix = f"{_BUILDING}{socket.gethostname()}-"
    for folder in cache_dir.glob(f"{prefix}*"):
        process = folder.name.removeprefix(prefix).split("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True
