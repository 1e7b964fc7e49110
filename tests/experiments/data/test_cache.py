"""The cache: hits, damage, leftovers, several builders, a full disk."""

import errno
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import filelock
import numpy as np
import pytest

from experiments.data import cache
from experiments.data.problems import DataError

KEY = {"what": [1, "two"], "shape": (2, 3)}


class Builder:
    def __init__(self, value=7):
        self.calls, self.value = 0, value

    def __call__(self, allocate):
        self.calls += 1
        allocate("x", (2, 3), np.float32)[:] = self.value
        allocate("y", (2,), np.int32)[:] = [1, 2]


def _entries(folder):
    """All but the lock files, which stay."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_second_time_is_read(tmp_path):
    build = Builder()
    first = cache.cached(tmp_path / "new", "name", KEY, build)
    again = cache.cached(tmp_path / "new", "name", KEY, build)
    assert build.calls == 1
    for arrays in (first, again):
        assert isinstance(arrays["x"], np.memmap)
        assert not arrays["x"].flags.writeable
        np.testing.assert_array_equal(arrays["x"], np.full((2, 3), 7, np.float32))
        np.testing.assert_array_equal(arrays["y"], [1, 2])
    assert len(_entries(tmp_path / "new")) == 1


def test_no_folder_builds_every_time():
    build = Builder()
    arrays = cache.cached(None, "name", KEY, build)
    assert type(cache.cached(None, "name", KEY, build)["x"]) is np.ndarray
    np.testing.assert_array_equal(arrays["x"], np.full((2, 3), 7, np.float32))
    assert build.calls == 2


def test_other_key_is_another_entry(tmp_path):
    build = Builder()
    cache.cached(tmp_path, "name", KEY, build)
    cache.cached(tmp_path, "name", {**KEY, "shape": (2, 4)}, build)
    assert build.calls == 2
    assert len(_entries(tmp_path)) == 2


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-4])


def _other_header(file):
    np.save(file, np.load(file).view(np.uint32))


def _not_an_array(file):
    file.write_bytes(b"x" * file.stat().st_size)


@pytest.mark.parametrize("damage", [_truncate, _other_header, _not_an_array, os.unlink])
def test_damaged_array_is_rebuilt(tmp_path, damage):
    cache.cached(tmp_path, "name", KEY, Builder())
    entry = next(tmp_path.glob("name-*"))
    damage(entry / "x.npy")
    build = Builder()
    arrays = cache.cached(tmp_path, "name", KEY, build)
    assert build.calls == 1
    np.testing.assert_array_equal(arrays["x"], np.full((2, 3), 7, np.float32))
    assert _entries(tmp_path) == [entry.name]
    cache.cached(tmp_path, "name", KEY, build)
    assert build.calls == 1


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"key": {"other": 1}, "arrays": {}}', None])
def test_damaged_manifest_is_rebuilt(tmp_path, content):
    cache.cached(tmp_path, "name", KEY, Builder())
    manifest = next(tmp_path.glob("name-*")) / "manifest.json"
    if content is None:
        manifest.unlink()  # an entry that was never completed
    else:
        manifest.write_text(content)
    build = Builder()
    cache.cached(tmp_path, "name", KEY, build)
    cache.cached(tmp_path, "name", KEY, build)
    assert build.calls == 1


def test_failed_build_leaves_nothing(tmp_path):
    def build(allocate):
        allocate("x", (2, 3), np.float32)
        raise DataError("bad file")

    with pytest.raises(DataError, match="bad file"):
        cache.cached(tmp_path, "name", KEY, build)
    assert _entries(tmp_path) == []


_KILLED_WHILE_BUILDING = (
    "import os, numpy as np, pathlib, sys\n"
    "from experiments.data import cache\n"
    "def build(allocate):\n"
    "    allocate('x', (2, 3), np.float32)[:] = 1\n"
    "    print('building', flush=True)\n"
    "    sys.stdin.readline()\n"
    "    os.kill(os.getpid(), 9)\n"
    "cache.cached(pathlib.Path(sys.argv[1]), sys.argv[2], {}, build)\n"
)


def _other_process(folder, name, code=_KILLED_WHILE_BUILDING):
    """A process that builds an entry, once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "building\n"
    return process


def _killed(process):
    process.communicate("\n", timeout=60)
    assert process.returncode == -9


def _folders(root):
    return sorted(p.name for p in root.iterdir() if p.is_dir())


@pytest.mark.parametrize("name", ["name", "other-name"])
def test_killed_build_is_not_read_and_is_removed(tmp_path, name):
    _killed(_other_process(tmp_path, name))
    assert [left.startswith(f".building-{name}-") for left in _folders(tmp_path)] == [True]
    alive = _other_process(tmp_path, "alive")
    build = Builder()
    cache.cached(tmp_path, "name", {}, build)
    assert build.calls == 1
    left, entry = _folders(tmp_path)
    assert left.startswith(".building-alive-")  # of a process that still builds
    assert entry.startswith("name-")
    _killed(alive)


def test_a_process_takes_over_from_one_that_is_killed(tmp_path):
    other = _other_process(tmp_path, "name")
    build, told = Builder(), queue.Queue()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            cache.cached, tmp_path, "name", {}, build, lambda *step: told.put(step)
        )
        message = "waiting for another process that decodes the same data"
        assert told.get(timeout=60) == (0, 1, message)
        assert build.calls == 0
        _killed(other)
        np.testing.assert_array_equal(waiting.result(30)["x"], np.full((2, 3), 7, np.float32))
    assert build.calls == 1
    assert len(_folders(tmp_path)) == 1


def test_of_several_processes_one_builds(tmp_path):
    code = (
        "import numpy as np, pathlib, sys, time\n"
        "from experiments.data import cache\n"
        "print('building', flush=True)\n"
        "sys.stdin.readline()\n"
        "def build(allocate):\n"
        "    print('really', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    allocate('x', (2, 3), np.float32)[:] = 7\n"
        "x = cache.cached(pathlib.Path(sys.argv[1]), sys.argv[2], {}, build)['x']\n"
        "assert isinstance(x, np.memmap) and (x == 7).all()\n"
    )
    processes = [_other_process(tmp_path, "name", code) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(said) == ["", "", "really\n"]
    assert len(_folders(tmp_path)) == 1


def _no_lock(*_, **__):
    raise NotImplementedError("no locks here")


def test_without_locks_all_build_and_one_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(filelock.FileLock, "acquire", _no_lock)
    barrier = threading.Barrier(4)

    def build(allocate):
        x = allocate("x", (2, 3), np.float32)
        barrier.wait(10)  # all of them are building before the first one is done
        x[:] = 7

    def one(_):
        return np.array(cache.cached(tmp_path, "name", KEY, build)["x"])

    with ThreadPoolExecutor(4) as pool:
        for x in pool.map(one, range(4)):
            np.testing.assert_array_equal(x, np.full((2, 3), 7, np.float32))
    assert len(_folders(tmp_path)) == 1


def test_full_disk_goes_on_in_memory(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    build = Builder()
    with pytest.warns(UserWarning, match="No space left"):
        arrays = cache.cached(tmp_path, "name", KEY, build)
    np.testing.assert_array_equal(arrays["x"], np.full((2, 3), 7, np.float32))
    assert type(arrays["x"]) is np.ndarray
    assert _entries(tmp_path) == []


def test_unusable_folder_goes_on_in_memory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be used as a cache"):
        arrays = cache.cached(tmp_path / "file" / "cache", "name", KEY, Builder())
    assert arrays["x"][0, 0] == 7


def test_source_key_tells_changes(tmp_path):
    file = tmp_path / "a"
    file.write_text("1")
    before = cache.source_key([file], tmp_path)
    assert before[0][:2] == ["a", 1]
    os.utime(file, ns=(1, 1))
    assert cache.source_key([file], tmp_path) != before
    with pytest.raises(DataError, match="gone"):
        cache.source_key([tmp_path / "gone"], tmp_path)
