"""Pictures of attacked examples: right colours at right places, any shape of input."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments.report import pictures
from tests.experiments.images import decoded, results_of, share

GREEN, RED = ([round(255 * part) for part in to_rgb(c)] for c in ("#00795A", "#C44601"))
SHAPES = [(8, 8, 1), (6, 12, 3), (9, 8, 7, 1), (8, 8, 2)]


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, still open."""
    drawn = []
    close = plt.close
    monkeypatch.setattr(plt, "close", drawn.append)
    yield drawn
    for figure in drawn:
        close(figure)


def _cells(shape, right_before, right_after, epsilon=8 / 255, **about):
    """A clean and an attacked cell; which examples are right is given."""
    generator = np.random.default_rng(0)
    count = len(right_before)
    x = generator.uniform(0.2, 0.8, (count, *shape)).astype(np.float32)
    change = epsilon * np.sign(generator.normal(size=x.shape))
    y = np.arange(count) % 3
    before = np.where(right_before, y, y + 1)
    after = np.where(right_after, y, y + 1)
    names = ["cat", "dog", "cow"]
    adv = (x + change).astype(np.float32)
    clean = results_of(
        x, x, y, before, attack="clean", epsilon=0.0, norm_order="", class_names=names
    )
    return clean, results_of(x, adv, y, after, epsilon=epsilon, class_names=names, **about)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_grid_of_any_kind_of_input(shape, figures):
    clean, attacked = _cells(shape, [True, True, False], [False, True, False])
    pixels = decoded(pictures.grid(attacked, clean))
    assert share(pixels, GREEN) > 0.002
    assert share(pixels, RED) > 0.002
    (figure,) = figures
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["is cat\n✓ says cat", "is dog\n✓ says dog", "is cow\n✗ says class 3"]
    assert titles[3:6] == ["largest 8.0/255"] * 3
    assert titles[6:] == ["✗ says dog", "✓ says dog", "✗ says class 3"]
    labels = [figure.axes[i].get_ylabel() for i in (0, 3, 6)]
    assert labels == ["original", "change × 10\n(grey: none)", "attacked"]  # 10 * 8/255 <= 1/2
    images = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    x, change = attacked.shown["x"], attacked.shown["x_adv"] - attacked.shown["x"]
    of_first = (lambda v: v[0, 4]) if len(shape) == 4 else (lambda v: v[0])  # 4 is 9 // 2
    channels = slice(None) if shape[-1] == 3 else 0
    np.testing.assert_allclose(images[0], of_first(x)[..., channels])
    np.testing.assert_allclose(images[3], 0.5 + 10 * of_first(change)[..., channels], atol=1e-5)
    heading = figure.get_suptitle()
    assert heading.startswith("digits, norm stein, running statistics, seed 0: pgd 8/255 (l∞ ball)")
    assert ("middle slice of 9" in heading) == (len(shape) == 4)


def test_without_clean_answers_no_one_is_called_right(figures):
    clean, attacked = _cells((8, 8, 1), [True] * 2, [True] * 2)
    other = dataclasses.replace(clean, shown={**clean.shown, "x": 1 - clean.shown["x"]})
    for missing in (None, other):
        decoded(pictures.grid(attacked, missing))
        assert [axis.get_title() for axis in figures[-1].axes[:2]] == ["is cat", "is dog"]


def test_l2_changes_have_their_length_and_no_change_is_grey(figures):
    clean, attacked = _cells((8, 8, 1), [True], [True], 0.02, norm_order="l2")
    decoded(pictures.grid(attacked, clean))
    assert figures[0].axes[1].get_title() == "largest 5.1/255\nl2: 0.16"  # 0.02 * sqrt(64)
    still = dataclasses.replace(attacked, shown={**attacked.shown, "x_adv": attacked.shown["x"]})
    decoded(pictures.grid(still, clean))
    assert "change × 1\n" in figures[1].axes[1].get_ylabel()
    assert np.all(np.asarray(figures[1].axes[1].images[0].get_array()) == 0.5)


@pytest.mark.parametrize(
    ("largest", "factor"), [(8 / 255, 10), (0.07, 6), (0.5, 1), (1.0, 0.5), (0.05, 10), (2e-3, 200)]
)
def test_the_factor_is_round_and_fills_the_range(largest, factor, figures):
    clean, attacked = _cells((8, 8, 1), [True], [True], largest)
    decoded(pictures.grid(attacked, clean))
    assert figures[0].axes[1].get_ylabel().startswith(f"change × {factor:g}\n")


def _maps(void=True):
    generator = np.random.default_rng(2)
    x = generator.uniform(0, 1, (2, 24, 48, 3)).astype(np.float32)
    y = np.zeros((2, 24, 48), np.uint8)
    y[:, :, 24:] = 1
    if void:
        y[:, :6] = 255
    wrong = np.where(np.arange(24)[:, None] < 12, y % 2, 5).astype(np.int32)
    names = ["road", "car"]
    clean = results_of(x, x, y, np.minimum(y, 1).astype(np.int32), attack="clean", epsilon=0.0)
    return clean, results_of(x, x, y, wrong, class_names=names)


def test_segmentation_shows_truth_and_both_predictions(figures):
    clean, attacked = _maps()
    decoded(pictures.segmentation(attacked, clean))
    (figure,) = figures
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == [
        "image",
        "truth",
        "prediction",
        "prediction\nunder attack",
    ]
    titles = [axis.get_title() for axis in figure.axes[4:]]
    # without the 6 lines of void, 6 of 18 lines are right under the attack
    assert titles == ["100 % of pixels right"] * 2 + ["33 % of pixels right"] * 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["road", "car", "class 5", "void (does not count)"]
    truth, before, after = (np.asarray(figure.axes[i].images[0].get_array()) for i in (2, 4, 6))
    for shown in (truth, before, after):
        assert np.all(shown[:6] == 0)
    np.testing.assert_allclose(truth, before)
    assert np.abs(after[12:] - truth[12:]).max() > 0.2
    # colour and brightness: the mean over the channels is that of the image, in its share
    grey = attacked.shown["x"][0].mean(-1)[6:, :24]
    rest = truth[6:, :24] - 0.3 * grey[..., None]
    np.testing.assert_allclose(rest, np.broadcast_to(rest[0, 0], rest.shape), atol=1e-5)


def test_segmentation_without_void_or_clean_answers(figures):
    _, attacked = _maps(void=False)
    decoded(pictures.segmentation(attacked))
    assert [axis.get_ylabel() for axis in figures[0].axes[::2]] == [
        "image",
        "truth",
        "prediction\nunder attack",
    ]
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["road", "car", "class 5"]
    decoded(pictures.grid(attacked))
    assert pictures.is_segmentation(attacked)


def test_classes_of_segmentation_have_colours_of_their_own():
    colours = {pictures.class_colour(label) for label in [*range(40), 255]}
    assert len(colours) == 41


def test_a_cell_without_examples_is_refused():
    _, attacked = _maps()
    with pytest.raises(ValueError, match="no examples"):
        pictures.grid(dataclasses.replace(attacked, shown={}))
