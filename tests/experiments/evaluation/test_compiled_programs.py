"""A process that goes through many networks does not come to the limit of its memory maps."""

import platform
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.commands import compare
from experiments.commands.evaluation_request import Request
from experiments.evaluation import compiled_programs
from tests import children
from tests.experiments import cli


def _programs_of(function):
    return function._cache_size()


@pytest.fixture
def few_maps(tmp_path, monkeypatch):
    """A system that allows hardly any."""
    path = tmp_path / "max_map_count"
    path.write_text("10\n")
    monkeypatch.setattr(compiled_programs, "_MOST_MAPS", path)
    return path


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the maps of Linux")
def test_programs_are_let_go_of_where_they_are_many(few_maps):
    function = jax.jit(lambda x: 2 * x)
    function(jnp.ones(3))
    few_maps.write_text("100000000\n")
    assert not compiled_programs.release_where_many()
    assert _programs_of(function) == 1
    few_maps.write_text("10\n")
    assert compiled_programs.release_where_many()
    assert _programs_of(function) == 0
    assert (function(jnp.ones(3)) == 2).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the maps of Linux")
def test_what_is_let_go_of_gives_its_maps_back(few_maps):
    """Programs of this process, as a comparison compiles them; not only JAX's own tables."""

    def maps():
        return Path("/proc/self/maps").read_text().count("\n")

    compiled_programs.release_where_many()
    before = maps()
    functions = [jax.jit(lambda x, k=k: jnp.sin(x + k).sum()) for k in range(60)]
    for function in functions:
        function(jnp.ones(5)).block_until_ready()
    most = maps()
    assert most > before + 60
    compiled_programs.release_where_many()
    assert maps() < before + 0.2 * (most - before)


_HELD_BEFORE_AND_AFTER = """
import ctypes, pathlib
from experiments.commands.memory import keep_freed_memory
assert keep_freed_memory()
from experiments.evaluation import compiled_programs

def held():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))  # KiB

blocks = [bytearray(b"x" * 2**20) for _ in range(400)]
between = blocks[::2]  # in use, so that the heap does not end before them
del blocks
before = held()
compiled_programs._MANY = 0
assert compiled_programs.release_where_many()
print(before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_goes_back_to_the_system():
    command = [sys.executable, "-c", _HELD_BEFORE_AND_AFTER]
    with cli.running(command, children.environment(1)) as process:
        status, out, err = cli.ended(process)
    assert status == 0, err
    assert int(out) > 150 * 2**10  # of the 200 MiB that were freed


@pytest.mark.parametrize("content", [None, "many"])
def test_where_the_system_does_not_tell_nothing_is_let_go_of(few_maps, content):
    few_maps.unlink() if content is None else few_maps.write_text(content)
    assert not compiled_programs.release_where_many()


def test_a_comparison_does_so_after_each_run(tmp_path, monkeypatch, few_maps):
    del few_maps
    seen = []
    monkeypatch.setattr(compare, "release_where_many", lambda: seen.append(1))
    comparison = compare.Comparison(
        configs=compare.configs("digits", None, True, ["batch", "group"], ["train.epochs=1"]),
        seeds=1,
        request=Request(statistics="running"),
    )
    compare.run(tmp_path / "work", comparison)
    assert len(seen) == 2
    compare.run(tmp_path / "work", comparison)  # all of it is finished
    assert len(seen) == 2
