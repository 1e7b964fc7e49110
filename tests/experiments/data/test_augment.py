"""Mirroring and shifting against index arithmetic, pixel by pixel."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data import augment
from experiments.data.augment import Augmentation, Draw
from steinnorm.attacks import VOID

BOTH = Augmentation(mirror=True, shift=9)  # what is drawn below may be anything up to 9


def _moved(x, mirror, offset, fill):
    """One example (spatial...), by a loop over its pixels."""
    out = np.full_like(x, fill)
    for place in itertools.product(*map(range, x.shape)):
        source = [p - o for p, o in zip(place, offset, strict=True)]
        if all(0 <= s < size for s, size in zip(source, x.shape, strict=True)):
            if mirror:
                axis = 0 if x.ndim == 3 else 1  # of volumes, of images
                source[axis] = x.shape[axis] - 1 - source[axis]
            out[place] = x[tuple(source)]
    return out


@st.composite
def _batches(draw, spatial=(2, 3)):
    dimensions = draw(st.sampled_from(spatial))
    count = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 4)) for _ in range(dimensions))
    pixels = np.random.default_rng(0).integers(1, 250, (count, *shape), dtype=np.uint8)
    mirror = np.array([draw(st.booleans()) for _ in range(count)])
    offset = np.array([[draw(st.integers(-6, 6)) for _ in shape] for _ in range(count)])
    return pixels, Draw(mirror, offset)


@pytest.mark.parametrize("at_once", [True, False])
@given(_batches(), st.sampled_from([np.uint8, np.float32]), st.integers(1, 2))
def test_images_and_label_maps_move_by_the_same_pixels(at_once, batch, dtype, channels):
    pixels, draw = batch
    inputs = np.stack([pixels.astype(dtype)] * channels, axis=-1)
    before = inputs.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "_FEW_PIXELS", 4096 if at_once else 0)
        moved, labels = BOTH.apply(inputs, pixels, draw)
    assert moved.dtype == dtype
    assert labels.dtype == np.uint8
    for index, x in enumerate(pixels):
        expected = _moved(x, draw.mirror[index], draw.offset[index], 0)
        for channel in range(channels):
            np.testing.assert_array_equal(moved[index, ..., channel], expected)
        expected = _moved(x, draw.mirror[index], draw.offset[index], VOID)
        np.testing.assert_array_equal(labels[index], expected)
    np.testing.assert_array_equal(moved[..., 0] == 0, labels == VOID)
    np.testing.assert_array_equal(inputs, before)  # what was passed in is not written to


@given(_batches())
def test_mirroring_twice_is_nothing_and_mirroring_once_keeps_the_pixels(batch):
    pixels, draw = batch
    draw = Draw(draw.mirror, np.zeros_like(draw.offset))
    inputs = pixels[..., None]
    once, labels = BOTH.apply(inputs, pixels, draw)
    for x, y in zip(once, inputs, strict=True):
        np.testing.assert_array_equal(np.sort(x, axis=None), np.sort(y, axis=None))
    twice, again = BOTH.apply(once, labels, draw)
    np.testing.assert_array_equal(twice, inputs)
    np.testing.assert_array_equal(again, pixels)


def test_mirroring_is_left_to_right():
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[None, ..., None]
    draw = Draw(np.array([True]), np.zeros((1, 2), int))
    moved, _ = Augmentation(mirror=True).apply(image, np.zeros(1, np.int32), draw)
    np.testing.assert_array_equal(moved[0, ..., 0], [[3, 2, 1], [6, 5, 4]])
    # The axes of a volume are right-left, posterior-anterior, inferior-superior: only the first
    # has two sides that are alike.
    volume = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4, 1)
    draw = Draw(np.array([True]), np.zeros((1, 3), int))
    moved, _ = Augmentation(mirror=True).apply(volume, np.zeros(1, np.int32), draw)
    np.testing.assert_array_equal(moved, volume[:, ::-1])


@pytest.mark.parametrize("offset", [(3, 0), (0, -3), (7, 7), (-100, 1)])
def test_a_shift_out_of_the_image_leaves_nothing(offset):
    pixels = np.ones((1, 3, 3), np.uint8)
    draw = Draw(np.array([False]), np.array([offset]))
    moved, labels = BOTH.apply(pixels[..., None], pixels, draw)
    assert not moved.any()
    assert (labels == VOID).all()


def test_labels_of_whole_examples_stay_as_they_are():
    labels = np.arange(4, dtype=np.int32)
    draw = BOTH.draw(np.random.default_rng(0), 4, 2)
    _, kept = BOTH.apply(np.ones((4, 3, 3, 1), np.float32), labels, draw)
    assert kept is labels


def test_switched_off_it_hands_on_the_same_arrays():
    off = Augmentation()
    inputs, targets = np.ones((2, 3, 3, 1), np.uint8), np.ones((2, 3, 3), np.uint8)
    draw = off.draw(np.random.default_rng(0), 2, 2)
    assert not draw.mirror.any()
    assert not draw.offset.any()
    moved, labels = off.apply(inputs, targets, draw)
    assert moved is inputs
    assert labels is targets


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 3), st.integers(0, 4))
def test_what_is_drawn_for_one_does_not_depend_on_whether_the_other_is_on(
    seed, count, dimensions, shift
):
    def drawn(mirror, shift):
        generator = np.random.default_rng(seed)
        return Augmentation(mirror, shift).draw(generator, count, dimensions)

    both, shifted, mirrored = drawn(True, shift), drawn(False, shift), drawn(True, 0)
    np.testing.assert_array_equal(both.offset, shifted.offset)
    np.testing.assert_array_equal(both.mirror, mirrored.mirror)
    assert not shifted.mirror.any()
    assert not mirrored.offset.any()
    assert both.offset.shape == (count, dimensions)
    assert np.abs(both.offset).max() <= shift


def test_half_are_mirrored_and_all_shifts_are_alike():
    draw = Augmentation(mirror=True, shift=2).draw(np.random.default_rng(0), 4000, 3)
    assert abs(draw.mirror.mean() - 0.5) < 0.03  # 4 standard errors
    for axis in range(3):
        values, counts = np.unique(draw.offset[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, [-2, -1, 0, 1, 2])
        assert np.abs(counts / 4000 - 0.2).max() < 0.026
    assert abs(np.corrcoef(draw.offset[:, 0], draw.offset[:, 1])[0, 1]) < 0.07
