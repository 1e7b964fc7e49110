"""What goes wrong outside of the program ends in one line and a status, not in a traceback."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.__main__ import main
from experiments.configs import presets
from tests.experiments import cli

SMOKE = ["train", "digits", "--smoke", "--epochs", "1"]

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "COLUMNS": "120",
    # A training asks git for its commit.  Where files may not be large, git would be killed as it
    # writes what it found, and its lock would stay in this repository.
    "GIT_OPTIONAL_LOCKS": "0",
}


def _runs(arguments, env=None, largest_file=None, **more):
    """A command as a process of its own: (status, standard output, standard error)."""
    limit = f"ulimit -f {largest_file // 512}; " if largest_file else ""
    shell = ["sh", "-c", f'{limit}exec "$@"', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-m", "experiments", *map(str, arguments)],
        cwd=cli.ROOT,
        env={**os.environ, **_ENVIRONMENT, **(env or {})},
        stderr=subprocess.PIPE,
        timeout=cli.DEADLINE,
        check=False,
        **{"stdout": subprocess.PIPE, **more},
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A short training of digits, measured."""
    workdir = tmp_path_factory.mktemp("evaluated") / "a work folder"
    assert main([*SMOKE, "--workdir", str(workdir)]) == 0
    assert main(["evaluate", str(workdir), "--test-examples", "9"]) == 0
    return workdir


@pytest.mark.parametrize("arguments", [["list"], ["train", "cifar10", "--help"]])
def test_a_reader_that_has_enough_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    try:
        assert _runs(arguments, stdout=write) == (141, None, "")
    finally:
        os.close(write)


@pytest.mark.parametrize("arguments", [["list"], ["train", "cifar10", "--help"], SMOKE])
def test_an_output_that_is_full(arguments, tmp_path):
    more = ["--workdir", tmp_path / "work"] if arguments is SMOKE else []
    with open("/dev/full", "wb") as full:
        status, _, err = _runs([*arguments, *more], stdout=full)
    assert (status, err) == (1, "error: No space left on device\n")


def test_help_on_an_ascii_terminal():
    status, out, err = _runs(["train", "digits", "--help"], {"PYTHONIOENCODING": "ascii"})
    assert (status, err) == (0, "")
    assert b"--train.learning-rate" in out
    assert out.isascii()


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_report_on_an_ascii_terminal(evaluated, tmp_path, monkeypatch):
    """In this process, with the streams that Python would have made; the help has its own."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["report", str(evaluated), "--out", str(tmp_path / "report")]) == 0
    out.flush()
    err.flush()
    assert not err.buffer.getvalue()
    assert b"mean over the seeds ? standard deviation" in out.buffer.getvalue()
    assert "\u00b1" in (tmp_path / "report" / "report.md").read_text()


def test_evaluation_of_a_folder_that_takes_no_file(evaluated, tmp_path, capsys):
    workdir = tmp_path / "work"
    shutil.copytree(evaluated, workdir)
    shutil.rmtree(workdir / "evaluation")
    (workdir / "evaluation").write_text("")  # root may write everywhere, but not below a file
    assert main(["evaluate", str(workdir)]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {workdir / 'evaluation'}: {os.strerror(errno.EEXIST)}\n"


def test_a_disk_that_is_full_is_one_line(tmp_path):
    """Orbax, TensorStore and asyncio say the same in hundreds of lines, which nobody wants."""
    arguments = [*SMOKE, "--model.width", "32", "--workdir", tmp_path / "work"]
    inherited = {"JAX_COMPILATION_CACHE_DIR": ""}  # its files would be too large as well
    status, _, err = _runs(arguments, inherited, largest_file=1 << 14)
    assert status == 1
    assert err.startswith("error: cannot write the checkpoint of step 4 to ")
    assert os.strerror(errno.EFBIG) in err
    assert "there is none. Make room (df -h) and run the same command again" in err
    assert err.count("\n") == 1, err


def _fails(monkeypatch, capsys, failure):
    def broken():
        raise failure

    monkeypatch.setattr(presets, "config_names", broken)
    return main(["list"]), capsys.readouterr().err


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "W/a"), "W/a: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("cannot identify\n  image"), "cannot identify image"),
        (FloatingPointError("the loss is not finite"), "the loss is not finite"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_errors_of_the_machine_are_one_line(monkeypatch, capsys, failure, told):
    assert _fails(monkeypatch, capsys, failure) == (1, f"error: {told}\n")


def test_a_device_without_memory_is_one_line(monkeypatch, capsys):
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros(1 << 45).block_until_ready()
    status, err = _fails(monkeypatch, capsys, caught.value)
    assert status == 1
    assert "Out of memory allocating" in err
    assert err.endswith("; a smaller batch needs less\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("failure", [KeyError("a"), ValueError("b"), RuntimeError("c")])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, capsys, failure):
    with pytest.raises(type(failure)) as caught:
        _fails(monkeypatch, capsys, failure)
    assert caught.value is failure


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            [],
            [
                "demo, compare, train, evaluate, report, risk, shift, list",
                "see python -m experiments --help",
            ],
        ),
        (["trian"], ["Unrecognized options: trian", "demo, compare, train, evaluate"]),
        (["train"], ["CONFIG", "--workdir", "see python -m experiments train --help"]),
        (["train", "digits"], ["--workdir", "see python -m experiments train --help"]),
        ([*SMOKE, "--workdir", "W", "--sed", "3"], ["options: --sed, 3; perhaps you meant --seed"]),
        ([*SMOKE, "--workdir", "W", "--seed", "1.5"], ["--seed", "'1.5'"]),
        (["evaluate"], ["Work folder of a training"]),
        (["evaluate", "W", "--steps", "many"], ["--steps", "'many'"]),
        (["report", "W"], ["--out"]),
    ],
)
def test_arguments_that_cannot_be_are_one_line(arguments, messages, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    for message in ["error: ", *messages]:
        assert message in error
    assert error.count("\n") == 1
    assert not set("│╭─") & set(error)
    assert "---" not in error


def test_tensorboard_is_asked_for_before_any_data_are_read(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("experiments.data.load", lambda *_: pytest.fail("data were read"))
    assert main([*SMOKE, "--tensorboard", "--workdir", str(tmp_path / "work")]) == 2
    assert "pip install tensorboardX" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_the_command_that_is_printed_can_be_copied(evaluated, capsys):
    assert main([*SMOKE, "--workdir", str(evaluated)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"measure it: python -m experiments evaluate '{evaluated}'"
    assert json.loads((evaluated / "results.json").read_text())
