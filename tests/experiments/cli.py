"""Helpers: the commands, mostly as processes of their own, and what they leave behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from experiments.__main__ import main
from tests import children

ROOT = Path(__file__).parents[2]
DEADLINE = 240  # seconds, for anything that a process is waited for
DIGITS = ["train", "digits", "--smoke"]


def environment(cache, devices=1, *, as_users_compile=False):
    """A user's environment with so many host devices, and a cache of compiled programs."""
    more = {
        # Without it every start of a process compiles for seconds.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "120",
    }
    return children.environment(devices, as_users_compile=as_users_compile, **more)


@contextlib.contextmanager
def started(arguments, env):
    """A running command; killed at the end of the block if it still runs."""
    with running([sys.executable, "-m", "experiments", *map(str, arguments)], env) as process:
        yield process


@contextlib.contextmanager
def running(command, env):
    """A running process; killed at the end of the block if it still runs."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process):
    """(status, standard output, standard error) of a command that ends by itself."""
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


def succeeds(arguments, env):
    """Runs a command to its end; its standard output and standard error."""
    with started(arguments, env) as process:
        status, out, err = ended(process)
    assert status == 0, err[-3000:]
    return out, err


def evaluate(workdir, *more):
    """Evaluates in this process, with the cache beside the work folder; the status."""
    return main(["evaluate", str(workdir), "--cache-dir", str(workdir.parent / "cache"), *more])


def until(condition, process, pause=0.005):
    """Waits for a condition; returns its value, or None once the process has ended."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {DEADLINE} s"
        time.sleep(pause)
    return None


def stand_still(process):
    """Stops a process; returns once every thread of it stands, or the process has ended.

    The signal alone is not enough: it comes back before the threads have seen it.
    """
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def steps(workdir):
    """Steps of the finished checkpoints, in order."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def unfinished(workdir):
    """Checkpoints that are being written, or that a kill left half written."""
    return list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def weights(workdir, step=None):
    """Name -> array of a checkpoint, the newest by default; of any number of processes."""
    folder = workdir / "checkpoints" / str(steps(workdir)[-1] if step is None else step) / "arrays"
    with ocp.PyTreeCheckpointer() as reader:
        saved = reader.metadata(folder).item_metadata
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in dict(saved.tree)}
        return reader.restore(folder, restore_args=as_numpy)


def log(workdir, kind):
    """Lines of the log of one kind, without the rate, which no two runs share."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if name != "examples_per_second"}
        for line in lines
        if line["kind"] == kind
    ]


def results(workdir):
    """The rows of an evaluation."""
    return json.loads((workdir / "results.json").read_text())


def same(one, other):
    """Two trainings are equal, bit for bit: last weights, log."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert steps(one)[-1] == steps(other)[-1]
    for kind in ("train", "validation"):
        assert log(one, kind) == log(other, kind)


def close(one, other, tolerance=1e-5):
    """Two trainings are equal up to rounding, relative to the largest value of each array."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        scale = max(np.abs(a[name]).max(), 1e-3)
        np.testing.assert_allclose(
            b[name] / scale, a[name] / scale, rtol=0, atol=tolerance, err_msg=name
        )
    for kind in ("train", "validation"):
        mine, theirs = log(one, kind), log(other, kind)
        assert [line["step"] for line in mine] == [line["step"] for line in theirs]
        for x, y in zip(mine, theirs, strict=True):
            for name in set(x) & {"loss", "accuracy", "auc", "miou"}:
                np.testing.assert_allclose(y[name], x[name], rtol=1e-4, atol=tolerance)


def copied(source, target):
    """A copy of a work folder, that the test may spoil."""
    shutil.copytree(source, target)
    return target
