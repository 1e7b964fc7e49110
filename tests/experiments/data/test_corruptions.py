"""Corruptions: pure functions, harder with the severity, for images and volumes of any size."""

import numpy as np
import pytest
from scipy import ndimage

from experiments.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupt_all, fitting

SHAPES = [(8, 8, 1), (32, 32, 3), (40, 72, 3), (16, 20, 12, 1)]


def _images(shape, count=12):
    """Smooth images that use the whole range, with more contrast than any noise."""
    random = np.random.default_rng(0).random((count, *shape))
    smooth = [ndimage.gaussian_filter(x, [1.0] * (len(shape) - 1) + [0]) for x in random]
    axes = tuple(range(1, len(shape) + 1))
    x = np.stack(smooth)
    x = (x - x.min(axes, keepdims=True)) / np.ptp(x, axes, keepdims=True)
    return x.astype(np.float32)


CASES = [(shape, name) for shape in SHAPES for name in fitting(shape)]


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_range_determinism_and_order_of_severities(shape, name):
    images = _images(shape)
    before = images.copy()
    distances = []
    for severity in SEVERITIES:
        changed = corrupt_all(images, name, severity, seed=1)
        assert changed.shape == images.shape
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        np.testing.assert_array_equal(corrupt_all(images, name, severity, seed=1), changed)
        distances.append(float(np.sqrt(np.mean((changed - images) ** 2))))
    np.testing.assert_array_equal(images, before)
    # The smallest is 0.0029: a blur with a sigma of a quarter of a pixel.
    assert distances[0] > 0.002
    assert distances[1] > 1.05 * distances[0]
    assert distances[2] > 1.05 * distances[1]


def test_what_fits_which_examples():
    assert len(fitting((32, 32, 3))) == 14
    assert set(CORRUPTIONS) - set(fitting((8, 8, 1))) == {"desaturate"}
    assert set(CORRUPTIONS) - set(fitting((32, 32, 3), pixel_labels=True)) == {"elastic"}
    assert set(CORRUPTIONS) - set(fitting((9, 9, 9, 1))) == {"desaturate", "jpeg"}


def test_an_image_does_not_depend_on_its_neighbours():
    images = _images((8, 8, 1))
    whole = corrupt_all(images, "gaussian_noise", 2, seed=3)
    np.testing.assert_array_equal(corrupt_all(images[:5], "gaussian_noise", 2, seed=3), whole[:5])
    noise = whole - images
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.5


def test_seeds_kinds_and_severities_draw_independently():
    image = np.full((16, 16, 1), 0.5, np.float32)
    noise = [corrupt(image, "gaussian_noise", s, seed) - image for s in (1, 2) for seed in (0, 1)]
    noise += [corrupt(image, "speckle_noise", 1, 0) - image]
    table = np.corrcoef([n.ravel() for n in noise])
    assert np.abs(table - np.eye(5)).max() < 0.3


def test_bytes_stand_for_shares_of_255():
    images = (255 * _images((8, 8, 1))).astype(np.uint8)
    np.testing.assert_array_equal(
        corrupt_all(images, "contrast", 1, 0),
        corrupt_all(images.astype(np.float32) / np.float32(255), "contrast", 1, 0),
    )


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur", "elastic"])
def test_lengths_are_shares_of_the_image(name):
    """A picture of twice the size changes as much, once both are seen at the small size."""
    large = _images((64, 64, 1), count=8)
    large = np.stack([ndimage.gaussian_filter(x, (4, 4, 0)) for x in large])
    large = (large - large.min()) / np.ptp(large)
    small = large.reshape(8, 32, 2, 32, 2, 1).mean((2, 4))
    changes = [np.sqrt(np.mean((corrupt_all(x, name, 3, seed=0) - x) ** 2)) for x in (small, large)]
    assert changes[1] == pytest.approx(changes[0], rel=0.25)


def test_known_values():
    image = np.array([[0.2, 0.6], [0.4, 0.8]], np.float32)[..., None]
    near = {"rtol": 1e-6}
    np.testing.assert_allclose(corrupt(image, "darkness", 2, 0), 0.5 * image, **near)
    np.testing.assert_allclose(corrupt(image, "contrast", 3, 0), 0.4 + 0.2 * image, **near)
    np.testing.assert_allclose(
        corrupt(image, "brightness", 3, 0), np.minimum(image + np.float32(0.35), 1), **near
    )
    cells = np.arange(16, dtype=np.float32).reshape(4, 4, 1) / 16
    # 35 % of 4 is one cell: the mean of all.
    np.testing.assert_allclose(corrupt(cells, "pixelate", 3, 0), np.full_like(cells, 7.5 / 16))
    grey = np.full((8, 8, 3), (1, 0, 0), np.float32)
    np.testing.assert_allclose(corrupt(grey, "desaturate", 3, 0), np.full_like(grey, 0.299), **near)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((8, 8, 1), "frost", 1), "unknown corruption 'frost'; expected one of gaussian_noise"),
        (((8, 8, 1), "contrast", 4), "severity must be 1, 2 or 3; got 4"),
        (((8, 8), "contrast", 1), r"expected an image \(H, W, C\).*got float32 of shape \(8, 8\)"),
        (((8, 8, 1), "desaturate", 1), r"desaturate needs 3 channels; got shape \(8, 8, 1\)"),
        (((8, 8, 8, 1), "jpeg", 1), r"jpeg needs an image \(H, W, C\) with 1 or 3 channels"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, words):
    shape, name, severity = arguments
    with pytest.raises(ValueError, match=words):
        corrupt(np.zeros(shape, np.float32), name, severity, 0)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_values_outside_the_range_are_refused(value):
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\]"):
        corrupt(np.full((8, 8, 1), value, np.float32), "contrast", 1, 0)
