"""Batches are functions of seed and step, in one thread or several, one process or several."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.augment import Augmentation
from experiments.data.batches import InOrder, TrainBatches, ahead
from experiments.data.examples import Examples
from experiments.errors import ConfigError
from steinnorm.attacks import VOID

MOVED = Augmentation(mirror=True, shift=2)


def _examples(count, size=4):
    """Every pixel of an example is its own number; the label is the example's position."""
    pixels = np.arange(count * size * size, dtype=np.float32).reshape(count, size, size, 1)
    return Examples(pixels, np.arange(count, dtype=np.int32))


def _maps(count, size=4):
    """Labels of pixels that are their pixels."""
    pixels = np.arange(count * size * size, dtype=np.uint8).reshape(count, size, size)
    assert pixels.max() < VOID
    return Examples(pixels[..., None], pixels.copy())


def _assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_batch_depends_on_seed_and_step_and_on_nothing_that_was_asked_for_before():
    examples = _examples(11)
    batches = TrainBatches(examples, 4, seed=3, augmentation=MOVED)
    forwards = [batches[step] for step in range(9)]
    backwards = [
        TrainBatches(examples, 4, seed=3, augmentation=MOVED)[step] for step in reversed(range(9))
    ]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        _assert_same(one, other)
    other_seed = TrainBatches(examples, 4, seed=4, augmentation=MOVED)
    assert not np.array_equal(other_seed[0].targets, forwards[0].targets)
    # Neither the order nor the augmentation of an epoch is that of another.
    assert not np.array_equal(batches[0].targets, batches[batches.per_epoch].targets)
    assert len({step.inputs.tobytes() for step in forwards}) == len(forwards)


def test_the_augmentation_differs_from_step_to_step_for_the_same_example():
    batches = TrainBatches(_examples(1), 1, seed=0, augmentation=MOVED)
    assert len({batches[step].inputs.tobytes() for step in range(10)}) > 5


def test_a_batch_holds_its_examples_with_their_targets():
    examples = _examples(10)
    batch = TrainBatches(examples, 4, seed=0)[3]
    np.testing.assert_array_equal(batch.inputs, examples.inputs[batch.targets])
    assert batch.real.dtype == np.bool_
    assert batch.real.all()
    # Of label maps too, moved along with their images.
    moved = TrainBatches(_maps(10), 5, seed=0, augmentation=Augmentation(mirror=True))[1]
    np.testing.assert_array_equal(moved.inputs[..., 0], moved.targets)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3))
def test_an_epoch_has_every_example_at_most_once_and_drops_less_than_a_batch(
    count, batch_size, epoch
):
    if count < batch_size:
        count, batch_size = batch_size, count
    batches = TrainBatches(_examples(count, 1), batch_size, seed=0)
    assert batches.per_epoch == count // batch_size
    steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    seen = np.concatenate([batches[step].targets for step in steps])
    assert len(np.unique(seen)) == len(seen) == count // batch_size * batch_size
    if count % batch_size == 0:
        np.testing.assert_array_equal(np.sort(seen), np.arange(count))


def test_batches_may_be_any_size_up_to_all_examples():
    assert TrainBatches(_examples(4), 4, seed=0).per_epoch == 1
    with pytest.raises(ConfigError, match="4 training examples do not fill a single batch of 5"):
        TrainBatches(_examples(4), 5, seed=0)
    with pytest.raises(
        ConfigError, match=r"0 training examples.*choose a smaller train.batch_size"
    ):
        TrainBatches(_examples(0), 1, seed=0)
    with pytest.raises(ConfigError, match="single batch of 0"):
        TrainBatches(_examples(4), 0, seed=0)
    with pytest.raises(ConfigError, match="a batch of 4 cannot be shared by 3 processes"):
        TrainBatches(_examples(4), 4, seed=0, process=(0, 3))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.integers(0, 5), st.booleans())
def test_the_rows_of_all_processes_together_are_the_batch_of_one(
    processes, share, surplus, step, labelled
):
    batch_size = processes * share
    examples = (_maps if labelled else _examples)(min(batch_size + surplus, 15))
    if len(examples) < batch_size:
        return
    augmentation = Augmentation(mirror=True, shift=1)
    whole = TrainBatches(examples, batch_size, seed=1, augmentation=augmentation)[step]
    parts = [
        TrainBatches(
            examples, batch_size, seed=1, augmentation=augmentation, process=(index, processes)
        )[step]
        for index in range(processes)
    ]
    assert {len(part.targets) for part in parts} == {share}
    _assert_same(whole, [np.concatenate(values) for values in zip(*parts, strict=True)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("start", [0, 5, 17])
def test_batches_made_ahead_are_those_of_their_numbers_from_any_start(threads, start):
    batches = TrainBatches(_examples(10), 3, seed=0, augmentation=MOVED)
    steps = range(start, 18)
    made = list(ahead(batches, steps, threads=threads))
    assert len(made) == len(steps)
    for step, batch in zip(steps, made, strict=True):
        _assert_same(batch, batches[step])


def test_no_steps_are_no_batches():
    batches = TrainBatches(_examples(10), 3, seed=0)
    assert list(ahead(batches, range(4, 4))) == []


class _Broken(TrainBatches):
    def __getitem__(self, step):
        if step == 6:
            raise OSError("frame_000123.png: cut short")
        return super().__getitem__(step)


def test_an_error_in_a_thread_comes_out_with_its_message_after_the_batches_before_it():
    batches = _Broken(_examples(10), 3, seed=0)
    made = ahead(batches, range(4, 20))
    for step, batch in zip((4, 5), itertools.islice(made, 2), strict=True):
        _assert_same(batch, batches[step])
    with pytest.raises(OSError, match=r"frame_000123\.png: cut short"):
        next(made)


@given(st.integers(0, 20), st.integers(1, 8), st.booleans())
def test_an_evaluation_sees_every_example_once_in_order(count, batch_size, fill):
    made = InOrder(_examples(count, 1), batch_size, fill=fill)
    batches = list(made)
    assert len(made) == len(batches) == -(-count // batch_size)
    seen = [batch.targets[batch.real] for batch in batches]
    np.testing.assert_array_equal(np.concatenate([[], *seen]), np.arange(count))
    for batch in batches:
        assert len(batch.inputs) == len(batch.targets) == len(batch.real)
        # Copies are of examples that are there, with their own targets.
        np.testing.assert_array_equal(batch.inputs[:, 0, 0, 0], batch.targets)
    sizes = [len(batch.targets) for batch in batches]
    if fill:
        assert set(sizes) <= {batch_size}
        assert all(batch.real.any() for batch in batches)
    else:
        assert all(batch.real.all() for batch in batches)
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        assert sum(sizes) == count
