"""Pictures of attacked examples: right colours at right places, any shape of input."""

import dataclasses
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments.data import cityscapes
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
    assert titles[:3] == [
        "true: cat\n✓ predicted: cat",
        "true: dog\n✓ predicted: dog",
        "true: cow\n✗ predicted: class 3",
    ]
    assert titles[3:6] == ["largest 8.0/255"] * 3
    assert titles[6:] == [
        "true: cat\n✗ predicted: dog",
        "true: dog\n✓ predicted: dog",
        "true: cow\n✗ predicted: class 3",
    ]
    labels = [figure.axes[i].get_ylabel() for i in (0, 3, 6)]
    assert labels == ["original", "change × 10\n(grey: none)", "attacked"]  # 10 * 8/255 <= 0.35
    images = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    x, change = attacked.shown["x"], attacked.shown["x_adv"] - attacked.shown["x"]
    of_first = (lambda v: v[0, 4]) if len(shape) == 4 else (lambda v: v[0])  # 4 is 9 // 2
    channels = slice(None) if shape[-1] == 3 else 0
    np.testing.assert_allclose(images[0], of_first(x)[..., channels])
    np.testing.assert_allclose(images[3], 0.5 + 10 * of_first(change)[..., channels], atol=1e-5)
    heading = figure.get_suptitle().replace("\n", " ")
    assert heading.startswith("digits, norm stein, running statistics, seed 0: pgd 8/255 (l∞ ball)")
    assert ("middle slice of 9" in heading) == (len(shape) == 4)


def test_without_clean_answers_no_one_is_called_right(figures):
    clean, attacked = _cells((8, 8, 1), [True] * 2, [True] * 2)
    other = dataclasses.replace(clean, shown={**clean.shown, "x": 1 - clean.shown["x"]})
    for missing in (None, other):
        decoded(pictures.grid(attacked, missing))
        assert [axis.get_title() for axis in figures[-1].axes[:2]] == ["true: cat", "true: dog"]


def test_examples_that_were_right_come_first(figures):
    clean, attacked = _cells(
        (8, 8, 1), [False, True, False, True, True, True], [False, False, True, True, False, False]
    )
    decoded(pictures.grid(attacked, clean, columns=5))
    first = figures[0].axes[:5]
    signs = [axis.get_title().split("\n")[1][0] for axis in first]
    assert signs == ["✓"] * 4 + ["✗"]
    expected = attacked.shown["x"][[1, 3, 4, 5, 0], ..., 0]
    np.testing.assert_array_equal([axis.images[0].get_array() for axis in first], expected)
    adv = attacked.shown["x_adv"][[1, 3, 4, 5, 0], ..., 0]
    np.testing.assert_array_equal([a.images[0].get_array() for a in figures[0].axes[10:]], adv)
    signs = [axis.get_title().split("\n")[1][0] for axis in figures[0].axes[10:]]
    assert signs == ["✗", "✓", "✗", "✗", "✗"]


def test_l2_changes_have_their_length_and_no_change_is_grey(figures):
    clean, attacked = _cells((8, 8, 1), [True], [True], 0.02, norm_order="l2")
    decoded(pictures.grid(attacked, clean))
    assert figures[0].axes[1].get_title() == "largest 5.1/255\nl2: 0.16"  # 0.02 * sqrt(64)
    still = dataclasses.replace(attacked, shown={**attacked.shown, "x_adv": attacked.shown["x"]})
    decoded(pictures.grid(still, clean))
    assert "change × 1\n" in figures[1].axes[1].get_ylabel()
    assert np.all(np.asarray(figures[1].axes[1].images[0].get_array()) == 0.5)


@pytest.mark.parametrize(
    ("largest", "factor"),
    [(8 / 255, 10), (0.07, 5), (0.35, 1), (1.0, 0.3), (0.05, 6), (2e-3, 100)],
)
def test_the_factor_is_round_and_changes_are_not_saturated(largest, factor, figures):
    clean, attacked = _cells((8, 8, 3), [True], [True], largest)
    decoded(pictures.grid(attacked, clean))
    assert figures[0].axes[1].get_ylabel().startswith(f"change × {factor:g}\n")
    change = np.asarray(figures[0].axes[1].images[0].get_array())
    assert 0.14 < change.min() < 0.33
    assert 0.67 < change.max() < 0.86


def test_the_factor_comes_from_the_examples_that_are_shown(figures):
    _, attacked = _cells((8, 8, 1), [True, True], [True, True], 0.02)
    adv = attacked.shown["x_adv"].copy()
    adv[1, 0, 0] += 0.2
    larger = dataclasses.replace(attacked, shown={**attacked.shown, "x_adv": adv})
    decoded(pictures.grid(larger, columns=1))
    assert figures[0].axes[1].get_ylabel().startswith("change × 10\n")
    decoded(pictures.grid(larger, columns=2))
    assert figures[1].axes[2].get_ylabel().startswith("change × 1\n")


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 16, 3), (16, 8, 1)])
def test_titles_fit_above_their_pictures(count, shape, figures):
    clean, attacked = _cells(shape, [True] * count, [False] * count)
    names = ["automobile", "a very long name of a class", "cow"]
    about = {**attacked.about, "class_names": names}
    decoded(pictures.grid(dataclasses.replace(attacked, about=about), clean))
    (figure,) = figures
    figure.canvas.draw()
    titles = [axis.title.get_window_extent() for axis in figure.axes[:count]]
    for left, right in itertools.pairwise(titles):
        assert left.x1 < right.x0
    heading = figure._suptitle.get_window_extent()
    assert heading.y0 > max(title.y1 for title in titles) - 1
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert -0.02 <= box.x0 < box.x1 <= width + 0.02
    assert -0.02 <= box.y0 < box.y1 <= height + 0.02


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


def test_streets_have_the_colours_of_cityscapes(figures):
    names = list(cityscapes.CLASSES)
    assert list(pictures.CITYSCAPES_COLOURS) == names
    assert pictures.class_colour(0, names) == (128 / 255, 64 / 255, 128 / 255)
    assert pictures.class_colour(10, names) == (70 / 255, 130 / 255, 180 / 255)
    _, attacked = _maps()
    about = {**attacked.about, "class_names": names}
    decoded(pictures.segmentation(dataclasses.replace(attacked, about=about)))
    truth = np.asarray(figures[0].axes[2].images[0].get_array())
    grey = attacked.shown["x"][0].mean(-1)
    # on the left road, on the right sidewalk; below the lines of void
    for column, colour in ((0, (128, 64, 128)), (-1, (244, 35, 232))):
        expected = 0.3 * grey[10, column] + 0.7 * np.array(colour) / 255
        np.testing.assert_allclose(truth[10, column], expected, atol=1e-5)
    patches = [to_rgb(p.get_facecolor()) for p in figures[0].legends[0].legend_handles]
    np.testing.assert_allclose(patches[0], 0.15 + 0.7 * np.array([128, 64, 128]) / 255)


def test_other_classes_keep_colours_that_lie_apart():
    names = [*list(cityscapes.CLASSES)[:18], "cyclist"]
    assert pictures.class_colour(0, names) == pictures.class_colour(0)
    assert pictures.class_colour(0) == to_rgb("#e6194b")
    # and so does a label without a name
    assert pictures.class_colour(1, ["road"]) == pictures.class_colour(1)


def test_classes_of_segmentation_have_colours_of_their_own():
    colours = {pictures.class_colour(label) for label in [*range(40), 255]}
    assert len(colours) == 41


def test_a_cell_without_examples_is_refused():
    _, attacked = _maps()
    with pytest.raises(ValueError, match="no examples"):
        pictures.grid(dataclasses.replace(attacked, shown={}))
