"""Compiled programs in the user's cache: what a kill leaves there, and whose folder it is."""

import contextlib
import os

import filelock
import pytest
from jax._src.lru_cache import LRUCache

from experiments.commands import caches


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the programs, in a user's cache that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is as before, afterwards
        monkeypatch.delenv(name)
    return caches.user_cache() / "compiled" / caches._processor()


def test_programs_are_kept_in_the_users_cache_up_to_a_limit(folder):
    caches.keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]) == 4 * 2**30
    assert folder.is_dir()


def test_the_users_own_folder_has_no_limit_of_ours(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    caches.keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "own")
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert not folder.exists()


def test_a_program_that_a_kill_cut_short_is_removed(folder):
    kept = LRUCache(str(folder), max_size=1000)
    kept.put("whole", b"program")
    (folder / "half-cache").write_bytes(b"pro")
    # JAX before 0.12 failed here, and would with every program of every command.
    with contextlib.suppress(FileNotFoundError):
        kept.put("other", b"program")
    caches.keep_compiled_programs()
    assert kept.get("half") is None
    assert kept.get("whole") == b"program"
    kept.put("other", b"program")
    assert kept.get("other") == b"program"


def test_a_program_that_two_kills_cut_short_is_removed(folder):
    """The first between the two files of a program that had to go, the second as it came back."""
    kept = LRUCache(str(folder), max_size=1000)
    kept.put("name", b"program")
    (folder / "name-cache").unlink()
    caches.keep_compiled_programs()
    (folder / "name-cache").write_bytes(b"pro")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR")
    caches.keep_compiled_programs()
    assert kept.get("name") is None
    kept.put("name", b"program")
    assert kept.get("name") == b"program"


def test_what_another_command_is_writing_stays(folder):
    folder.mkdir(parents=True)
    (folder / "half-cache").write_bytes(b"pro")
    with filelock.FileLock(folder / ".lockfile"):
        caches.keep_compiled_programs()
    assert (folder / "half-cache").exists()
