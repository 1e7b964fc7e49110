"""What is read of checkpoints: what was saved, and after damage never wrong weights."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import pytest

from experiments.data.devices import mesh, replicated
from experiments.errors import CheckpointError
from experiments.training.checkpoints import Checkpoints, DamagedCheckpointWarning
from tests.experiments.training.checkpoint_trees import (
    DAMAGE_WARNS_LATER,
    assert_same,
    save_step,
    tree,
)

pytestmark = DAMAGE_WARNS_LATER


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of steps 4 and 8, to be copied, and the progress of each."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpoints = Checkpoints(folder)
    progress = {
        4: save_step(checkpoints, 4, 0.5, (0.5, 4)),
        8: save_step(checkpoints, 8, 0.25, (0.5, 4)),
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
        arrays, found = checkpoints.load(tree(0), step)
        assert_same(arrays, tree(step))
        assert found == progress[step]
    arrays, found = checkpoints.load_newest(tree(0))
    assert_same(arrays, tree(8))
    assert found == progress[8]
    assert not (folder.parent / "damaged").exists()
    checkpoints.close()


def test_arrays_come_back_where_they_are_wanted(copied):
    like = jax.device_put(tree(0), replicated(mesh(4)))
    checkpoints = Checkpoints(copied[0])
    arrays, _ = checkpoints.load(like, 4)
    for leaf in jax.tree.leaves(arrays):
        assert len(leaf.sharding.device_set) == jax.device_count() == 4
    assert_same(arrays, tree(4))
    checkpoints.close()


def test_another_model_is_an_error_that_says_so(copied):
    checkpoints = Checkpoints(copied[0])
    for like in (tree(0, rows=5), {"w": jnp.zeros(3)}):
        with pytest.raises(CheckpointError, match=f"checkpoint of step 8 in {copied[0]} "):
            checkpoints.load(like, 8)
    with pytest.raises(CheckpointError, match="step 99"):
        checkpoints.load(tree(0), 99)
    checkpoints.close()


def _files(step_folder):
    return sorted(path for path in step_folder.rglob("*") if path.is_file())


def _load_newest(folder):
    """What is found, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoints = Checkpoints(folder)
        found = checkpoints.load_newest(tree(0))
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
        assert_same(arrays, tree(found.step))
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
            found = checkpoints.load(tree(0), 8)[1]
        except CheckpointError:
            continue
        assert found == progress[8], flipped
    checkpoints.close()


def test_after_damage_the_step_can_be_written_again(copied):
    folder, progress = copied
    shutil.rmtree(folder / "8" / "arrays")
    checkpoints = Checkpoints(folder)
    with pytest.warns(DamagedCheckpointWarning, match="step 8 .*taking an older one"):
        arrays, found = checkpoints.load_newest(tree(0))
    assert found == progress[4]
    save_step(checkpoints, 8, 0.75, (0.75, 8))
    arrays, found = checkpoints.load_newest(tree(0))
    assert_same(arrays, tree(8))
    assert found.score == 0.75
    checkpoints.close()


def test_where_none_can_be_read_the_folder_is_named_and_nothing_is_moved(copied):
    folder, _ = copied
    for step in ("4", "8"):
        shutil.rmtree(folder / step / "progress")
    checkpoints = Checkpoints(folder)
    with pytest.raises(CheckpointError, match=f"no checkpoint in {folder} can be read; .*remove"):
        checkpoints.load_newest(tree(0))
    assert checkpoints.steps == [4, 8]
    assert not (folder.parent / "damaged").exists()
    with pytest.raises(CheckpointError, match=r"record of step 8 .*cannot be read"):
        checkpoints.best_step()
    checkpoints.close()
