"""Writing checkpoints, beside a training too: one that fails or is killed harms no older one."""

import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import CheckpointError
from experiments.training.checkpoints import Checkpoints, Progress
from tests.experiments.training.checkpoint_trees import (
    DAMAGE_WARNS_LATER,
    assert_same,
    save_step,
    tree,
)

pytestmark = DAMAGE_WARNS_LATER
ROOT = Path(__file__).parents[3]
_KILLED = """
import os, sys
from pathlib import Path
import jax.numpy as jnp
from experiments.training.checkpoints import Checkpoints, Progress
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save({"w": jnp.ones(3)}, Progress(1))
rename = os.rename
def killed(source, *rest, **named):
    if "2" in Path(source).name:
        os._exit(9)
    return rename(source, *rest, **named)
os.rename = os.replace = killed
Path.rename = Path.replace = lambda self, target: killed(self, target)
checkpoints.save({"w": jnp.zeros(3)}, Progress(2))
checkpoints.close()
"""


def _run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_a_killed_save_left_is_ignored_and_cleaned_away(tmp_path):
    folder = tmp_path / "checkpoints"
    done = _run(_KILLED, folder)
    assert done.returncode == 9, done.stderr
    (left,) = (path for path in folder.iterdir() if path.name != "1")
    assert left.name.startswith("2.")
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps == [1]
    arrays, progress = checkpoints.load_newest({"w": jnp.zeros(3)})
    np.testing.assert_array_equal(arrays["w"], np.ones(3))
    assert progress == Progress(1)
    checkpoints.save(arrays, Progress(3))
    assert checkpoints.steps == [1, 3]
    assert not left.exists()
    checkpoints.close()


# A limit on the size of files is what a full disk looks like to the program.
_FULL = """
import resource, signal, sys
from pathlib import Path
import jax, numpy as np
from experiments.training.checkpoints import Checkpoints, Progress
from experiments.errors import CheckpointError
arrays = lambda step: {"w": jax.random.normal(jax.random.key(step), (200, 200))}
checkpoints = Checkpoints(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
def save(step, room):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        checkpoints.save(arrays(step), Progress(step, score=step / 10, best_step=step))
        checkpoints.wait()
        print("written", step)
    except CheckpointError as error:
        print("refused", str(error).replace("\\n", " "))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
save(1, 50_000)
save(2, soft)
save(3, 50_000)
print(checkpoints.steps)
found, progress = checkpoints.load_newest(arrays(0))
print(progress.step, np.array_equal(found["w"], arrays(2)["w"]))
save(3, soft)
checkpoints.close()
checkpoints = Checkpoints(Path(sys.argv[1]))
found, progress = checkpoints.load_newest(arrays(0))
print(progress.step, np.array_equal(found["w"], arrays(3)["w"]))
"""


def test_a_full_disk_is_an_error_and_leaves_older_checkpoints_alone(tmp_path):
    folder = tmp_path / "checkpoints"
    done = _run(_FULL, folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7, done.stdout
    assert lines[0].startswith(f"refused cannot write the checkpoint of step 1 to {folder}: ")
    assert "; there is none. Make room" in lines[0]
    assert lines[1] == "written 2"
    assert lines[2].startswith(f"refused cannot write the checkpoint of step 3 to {folder}: ")
    assert "the last good checkpoint is that of step 2" in lines[2]
    assert lines[3:] == ["[2]", "2 True", "written 3", "3 True"]


def test_the_cause_is_named_where_tensorstore_describes_the_array_behind_it(tmp_path, monkeypatch):
    """It did in one of thirty runs, and the end of the line was all description."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    described = "[tensorstore_spec='" + '{"path":"' + "a/" * 200 + '"}' + "']"
    cause = "Failed to write 18837 bytes to file 19: File too large [os_error_code='27'] "

    def fails(*_, **__):
        raise ValueError(
            'OUT_OF_RANGE: Error writing "a" in "' + "b/" * 200 + f'": {cause}{described}'
        )

    monkeypatch.setattr(checkpoints._manager, "save", fails)
    checkpoints.save(tree(1), Progress(1))
    with pytest.raises(CheckpointError, match=r"File too large; there is none\. Make room"):
        checkpoints.wait()
    checkpoints.close()


def test_a_save_does_not_wait_and_its_arrays_may_be_given_up(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    may_write = threading.Event()
    original = checkpoints._write

    def late(*arguments):
        assert may_write.wait(60)
        original(*arguments)

    monkeypatch.setattr(checkpoints, "_write", late)
    arrays = tree(1)
    wanted = jax.tree.map(np.array, arrays)
    checkpoints.save(arrays, Progress(1))  # returns, although nothing is written
    jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)(arrays)
    may_write.set()
    assert checkpoints.steps == [1]
    found, _ = checkpoints.load_newest(tree(0))
    assert_same(found, wanted)
    checkpoints.close()


def test_a_save_that_failed_beside_the_training_is_raised_by_the_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, "save", full)
        checkpoints.save(tree(1), Progress(1))
        with pytest.raises(CheckpointError, match=r"step 1 .*No space left"):
            checkpoints.save(tree(2), Progress(2))
    checkpoints.save(tree(2), Progress(2))
    assert checkpoints.steps == [2]
    checkpoints.close()


def test_a_failure_is_told_though_waiting_for_it_was_interrupted(tmp_path, monkeypatch):
    """By a second Ctrl-C, while the checkpoint that the first one asked for is written."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    goes_on = threading.Event()

    def save(*_, **__):
        goes_on.wait()
        raise OSError("no space left")

    def interrupted(_):
        # Not by a signal: a job in the background of a shell ignores SIGINT.
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints._manager, "save", save)
    save_step(checkpoints, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
    goes_on.set()
    with pytest.raises(CheckpointError, match="no space left"):
        checkpoints.close()


def test_weights_are_read_while_the_next_are_written(tmp_path):
    """An evaluation beside a running training; what that is writing stays."""
    folder = tmp_path / "checkpoints"
    training = Checkpoints(folder)
    save_step(training, 1)
    training.wait()
    (folder / "2.orbax-checkpoint-tmp").mkdir()
    for read_only in (True, False):
        reading = Checkpoints(folder, read_only=read_only)
        assert reading.best_step() == 1
        assert_same(reading.load(tree(0), 1)[0], tree(1))
        reading.close()
        # A training, which has the folder for itself, removes what a kill left.
        assert (folder / "2.orbax-checkpoint-tmp").exists() == read_only
    training.close()
