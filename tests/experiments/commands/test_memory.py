"""Memory that a process has freed stays with it."""

import os
import platform
import subprocess
import sys

import pytest

from experiments.commands.memory import keep_freed_memory

# In a thread, as XLA does; 40 MiB is more than glibc ever keeps by itself.
PROGRAM = """
import ctypes, resource, sys, threading
from experiments.commands.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SIZE = 40 * 2**20

def use():
    memory = libc.malloc(SIZE)
    libc.memset(memory, 1, SIZE)
    libc.free(memory)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def measure():
    use()
    before = faults()
    for _ in range(8):
        use()
    print(faults() - before)

if sys.argv[1] == "keep":
    assert keep_freed_memory()
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def _page_faults(how):
    names = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_page_faults():
    # 82,000 faults with pages of 4 KiB, 160 where Linux uses pages of 2 MiB.
    assert _page_faults("keep") < 0.1 * _page_faults("leave")


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_MMAP_MAX_", "8"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")],
)
def test_settings_of_the_user_stay(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
