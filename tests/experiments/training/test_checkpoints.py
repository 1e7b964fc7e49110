"""Checkpoints: which are kept, and that damage never becomes wrong weights."""

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.devices import mesh, replicated
from experiments.errors import CheckpointError
from experiments.training.checkpoints import Checkpoints, DamagedCheckpointWarning, Progress

# Reading a damaged checkpoint, Orbax drops coroutines that have failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True, scope="module")
def _dropped_here():
    yield
    gc.collect()  # while their warnings are ignored


def _arrays(step, rows=2):
    return {
        "model": {"w": jnp.arange(3.0 * rows).reshape(rows, 3) + step, "n": jnp.int32(step)},
        "rest": [jnp.full((2,), step, jnp.bfloat16), jnp.array([step % 2 == 0])],
    }


def _assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def _save(checkpoints, step, score=None, best=(None, 0)):
    progress = Progress(step, score=score, best_score=best[0], best_step=best[1])
    checkpoints.save(_arrays(step), progress)
    return progress


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of steps 4 and 8, to be copied, and the progress of each."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpoints = Checkpoints(folder)
    progress = {
        4: _save(checkpoints, 4, 0.5, (0.5, 4)),
        8: _save(checkpoints, 8, 0.25, (0.5, 4)),
    }
    checkpoints.close()
    return folder, progress


@pytest.fixture
def copied(two, tmp_path):
    shutil.copytree(two[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints", two[1]


def test_arrays_and_progress_come_back_as_they_were(copied):
    folder, progress = copied
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps == [4, 8]
    for step in (4, 8):
        arrays, found = checkpoints.load(_arrays(0), step)
        _assert_same(arrays, _arrays(step))
        assert found == progress[step]
    arrays, found = checkpoints.load_newest(_arrays(0))
    _assert_same(arrays, _arrays(8))
    assert found == progress[8]
    assert not (folder.parent / "damaged").exists()
    checkpoints.close()


def test_arrays_come_back_where_they_are_wanted(copied):
    like = jax.device_put(_arrays(0), replicated(mesh(4)))
    checkpoints = Checkpoints(copied[0])
    arrays, _ = checkpoints.load(like, 4)
    for leaf in jax.tree.leaves(arrays):
        assert len(leaf.sharding.device_set) == jax.device_count() == 4
    _assert_same(arrays, _arrays(4))
    checkpoints.close()


def test_an_empty_folder_has_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps == []
    assert checkpoints.load_newest(_arrays(0)) is None
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    best = (None, 0)
    kept = []
    for step, score in ((1, 0.1), (2, 0.9), (3, None), (4, 0.5), (5, None), (6, 0.7), (7, 0.95)):
        if score is not None and (best[0] is None or score > best[0]):
            best = (score, step)
        _save(checkpoints, step, score, best)
        kept.append(checkpoints.steps)
        assert checkpoints.best_step() == best[1]
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [6, 7]]
    _save(checkpoints, 7, 0.1, best)  # a step that is there already is not written again
    assert checkpoints.load(_arrays(0), 7)[1].score == 0.95
    checkpoints.close()


def test_the_best_is_kept_across_a_restart(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3)):
        _save(checkpoints, step, score, (max(score, 0.9 if step > 2 else 0), min(step, 2)))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    _save(checkpoints, 4, 0.5, (0.9, 2))
    assert checkpoints.steps == [2, 3, 4]
    assert checkpoints.best_step() == 2
    _save(checkpoints, 5, None, (0.9, 2))
    assert checkpoints.steps == [2, 4, 5]
    checkpoints.close()


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, score in ((1, 0.9), (2, float("nan")), (3, float("nan")), (4, 0.1)):
        _save(checkpoints, step, score, (0.9, 1))
    assert checkpoints.steps == [1, 3, 4]
    assert checkpoints.best_step() == 1
    checkpoints.close()


def test_without_scores_the_best_is_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        _save(checkpoints, step)
    assert checkpoints.steps == [2, 3]
    assert checkpoints.best_step() == 3
    checkpoints.close()


def test_another_model_is_an_error_that_says_so(copied):
    checkpoints = Checkpoints(copied[0])
    for like in (_arrays(0, rows=5), {"w": jnp.zeros(3)}):
        with pytest.raises(CheckpointError, match=f"checkpoint of step 8 in {copied[0]} "):
            checkpoints.load(like, 8)
    with pytest.raises(CheckpointError, match="step 99"):
        checkpoints.load(_arrays(0), 99)
    checkpoints.close()


def _files(step_folder):
    return sorted(path for path in step_folder.rglob("*") if path.is_file())


def _load_newest(folder):
    """What is found, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoints = Checkpoints(folder)
        found = checkpoints.load_newest(_arrays(0))
        steps = checkpoints.steps
        checkpoints.close()
    told = [str(w.message) for w in caught if w.category is DamagedCheckpointWarning]
    return found, steps, told


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_to_any_file_gives_the_same_arrays_or_older_ones_with_a_warning(
    two, tmp_path, damage
):
    source, progress = two
    outcomes = set()
    for number, original in enumerate(_files(source / "8")):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(source, folder)
        path = folder / original.relative_to(source)
        content = bytearray(original.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
        (arrays, found), steps, told = _load_newest(folder)
        _assert_same(arrays, _arrays(found.step))
        assert found == progress[found.step], original
        aside = folder.parent / "damaged" / "8"
        if found.step == 8:
            assert told == []
            assert steps == [4, 8]
            assert not aside.exists()
        else:
            assert len(told) == 1
            assert f"step 8 in {folder}" in told[0]
            assert steps == [4]
            assert aside.is_dir()
        outcomes.add(found.step)
    assert outcomes == {4, 8}  # some files matter, some do not


def test_every_flipped_byte_of_the_record_is_noticed(two, tmp_path):
    """The record is small JSON: any digit in it may flip into another."""
    source, progress = two
    original = next(path for path in _files(source / "8") if b"best_score" in path.read_bytes())
    content = original.read_bytes()
    assert json.loads(content)["step"] == 8
    shutil.copytree(source, tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / original.relative_to(source)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for place in range(content.index(b'"digest"')):  # the digest is checked as it is
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            found = checkpoints.load(_arrays(0), 8)[1]
        except CheckpointError:
            continue
        assert found == progress[8], flipped
    checkpoints.close()


def test_after_damage_the_step_can_be_written_again(copied):
    folder, progress = copied
    shutil.rmtree(folder / "8" / "arrays")
    checkpoints = Checkpoints(folder)
    with pytest.warns(DamagedCheckpointWarning, match="step 8 .*taking an older one"):
        arrays, found = checkpoints.load_newest(_arrays(0))
    assert found == progress[4]
    _save(checkpoints, 8, 0.75, (0.75, 8))
    arrays, found = checkpoints.load_newest(_arrays(0))
    _assert_same(arrays, _arrays(8))
    assert found.score == 0.75
    checkpoints.close()


def test_where_none_can_be_read_the_folder_is_named_and_nothing_is_moved(copied):
    folder, _ = copied
    for step in ("4", "8"):
        shutil.rmtree(folder / step / "progress")
    checkpoints = Checkpoints(folder)
    with pytest.raises(CheckpointError, match=f"no checkpoint in {folder} can be read; .*remove"):
        checkpoints.load_newest(_arrays(0))
    assert checkpoints.steps == [4, 8]
    assert not (folder.parent / "damaged").exists()
    with pytest.raises(CheckpointError, match=r"record of step 8 .*cannot be read"):
        checkpoints.best_step()
    checkpoints.close()


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
    checkpoints.save(_arrays(1), Progress(1))
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
    arrays = _arrays(1)
    wanted = jax.tree.map(np.array, arrays)
    checkpoints.save(arrays, Progress(1))  # returns, although nothing is written
    jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)(arrays)
    may_write.set()
    assert checkpoints.steps == [1]
    found, _ = checkpoints.load_newest(_arrays(0))
    _assert_same(found, wanted)
    checkpoints.close()


def test_a_save_that_failed_beside_the_training_is_raised_by_the_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, "save", full)
        checkpoints.save(_arrays(1), Progress(1))
        with pytest.raises(CheckpointError, match=r"step 1 .*No space left"):
            checkpoints.save(_arrays(2), Progress(2))
    checkpoints.save(_arrays(2), Progress(2))
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
    _save(checkpoints, 1)
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
    _save(training, 1)
    training.wait()
    (folder / "2.orbax-checkpoint-tmp").mkdir()
    for read_only in (True, False):
        reading = Checkpoints(folder, read_only=read_only)
        assert reading.best_step() == 1
        _assert_same(reading.load(_arrays(0), 1)[0], _arrays(1))
        reading.close()
        # A training, which has the folder for itself, removes what a kill left.
        assert (folder / "2.orbax-checkpoint-tmp").exists() == read_only
    training.close()
