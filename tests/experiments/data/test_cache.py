"""The cache: hits, damage, leftovers, several builders, a full disk."""

import errno
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from experiments.data import cache
from experiments.data.examples import DataError

KEY = {"what": [1, "two"], "shape": (2, 3)}


class Builder:
    def __init__(self, value=7):
        self.calls, self.value = 0, value

    def __call__(self, allocate):
        self.calls += 1
        allocate("x", (2, 3), np.float32)[:] = self.value
        allocate("y", (2,), np.int32)[:] = [1, 2]


def _entries(folder):
    return sorted(p.name for p in folder.iterdir())


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
    entry = next(tmp_path.iterdir())
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
    manifest = next(tmp_path.iterdir()) / "manifest.json"
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


def test_killed_build_is_not_read_and_is_removed(tmp_path):
    code = (
        "import os, numpy as np, pathlib, sys\n"
        "from experiments.data import cache\n"
        "def build(allocate):\n"
        "    allocate('x', (2, 3), np.float32)[:] = 1\n"
        "    os.kill(os.getpid(), 9)\n"
        "cache.cached(pathlib.Path(sys.argv[1]), 'name', {}, build)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert [name.startswith(".building-") for name in _entries(tmp_path)] == [True]
    alive = tmp_path / f".building-{socket.gethostname()}-{os.getpid()}-abc"
    alive.mkdir()
    build = Builder()
    cache.cached(tmp_path, "name", {}, build)
    assert build.calls == 1
    names = _entries(tmp_path)
    assert len(names) == 2
    assert alive.name in names


def test_builders_at_the_same_time(tmp_path):
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
    assert len(_entries(tmp_path)) == 1


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


def test_fill_collects_problems_and_stops():
    begun = []

    def work(position, item):
        begun.append(position)
        if item % 2:
            raise DataError(f"item {item}")

    steps = []
    problems = cache.fill(range(6), work, "items", lambda *step: steps.append(step))
    assert problems == ["item 1", "item 3", "item 5"]
    assert steps[-1] == (6, 6, "items")
    begun.clear()
    assert len(cache.fill([1] * 1000, work, "items")) >= cache.MOST_PROBLEMS
    assert len(begun) < 1000
    with pytest.raises(ZeroDivisionError):
        cache.fill([0], lambda position, item: 1 / item, "items")


def test_report_shows_ten():
    cache.report([])
    with pytest.raises(DataError, match=r"^one$"):
        cache.report(["one"])
    with pytest.raises(DataError, match=r"p0\n(.*\n)*  p9\n  \.\.\. and 2 more$"):
        cache.report([f"p{i}" for i in range(12)])
