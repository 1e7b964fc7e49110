"""Plots: what is drawn is what was measured, with units, and nothing is cut off."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import report
from experiments.report import plots
from experiments.results import LoggedStep, Row
from tests.experiments.images import decoded


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, still open."""
    drawn = []
    close = plt.close
    monkeypatch.setattr(plt, "close", drawn.append)
    yield drawn
    for figure in drawn:
        close(figure)


def _rows(metric="accuracy", sources=(("running", ""), ("batch", "joint"), ("shrunk", "joint"))):
    rows = []
    for i, norm in enumerate(("batch", "stein", "group")):
        for statistics, threat in sources if norm != "group" else (("none", ""),):
            for seed in (0, 1):
                row = Row(
                    "digits", norm, seed, statistics, "clean", 0, metric, 0.95, 100, 0.9, 0.99
                )
                rows.append(_with(row, threat_model=threat))
                for attack, drop in (("fgsm", 4), ("pgd", 8), ("worst", 9)):
                    for epsilon in (2 / 255, 8 / 255):
                        value = 0.9 - drop * epsilon - 0.05 * i + 0.02 * seed
                        more = {"attack": attack, "epsilon": epsilon, "norm_order": "linf"}
                        rows.append(_with(row, value=value, threat_model=threat, **more))
    return rows


def _with(row, **changes):
    return Row(**{**vars(row), **changes})


def _curves(axis):
    """(x, y) of the lines, without the ends of their bars."""
    lines = [line for line in axis.lines if line.get_linestyle() != "None"]
    return [np.array(line.get_data(), dtype=float) for line in lines]


def test_accuracy_against_radius_shows_the_worst_of_all(figures):
    decoded(plots.accuracy(report.summarise(_rows())))
    (figure,) = figures
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        "Running statistics",
        "Statistics of the test batch (joint)",
        "Shrunk statistics of the test batch (joint)",
    ]
    assert figure.axes[0].get_ylabel() == "test accuracy (%)\nunder the worst of all attacks"
    assert figure.axes[0].get_xlabel() == "radius of the l∞ ball\n(1/255 of the image range)"
    expected = [[0, 2, 8], [95.0, *(100 * (0.91 - 9 * n / 255) for n in (2, 8))]]
    np.testing.assert_allclose(_curves(figure.axes[0])[0], expected)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["batch (reference)", "stein", "group (no statistics)"]
    # three norms, and batch norm with test-batch statistics beside those of another source
    assert "of the test batch" in labels[3]
    assert [len(_curves(axis)) for axis in figure.axes] == [4, 3, 4]


def test_nothing_lies_outside_the_picture(figures):
    decoded(plots.accuracy(report.summarise(_rows())))
    (figure,) = figures
    figure.canvas.draw()
    inside = figure.bbox
    parts = [*figure.legends, *(axis.yaxis.label for axis in figure.axes)]
    parts += [part for axis in figure.axes for part in (axis.title, axis.xaxis.label)]
    for part in parts:
        box = part.get_window_extent()
        assert inside.x0 - 1 <= box.x0
        assert box.x1 <= inside.x1 + 1
        assert inside.y0 - 1 <= box.y0
        assert box.y1 <= inside.y1 + 1


def test_without_a_worst_row_the_strongest_attack_is_taken():
    rows = [row for row in _rows() if row.attack != "worst"]
    summaries = report.summarise(rows)
    assert plots.strongest(summaries, "linf") == "pgd"
    # one of a single radius says less, however low it is
    single = _with(rows[0], attack="big", epsilon=0.9, norm_order="linf", value=0.0)
    assert plots.strongest(report.summarise([*rows, single]), "linf") == "pgd"
    assert plots.strongest(summaries, "l2") is None


def test_bars_are_seeds_or_the_interval_of_one(figures):
    rows = [row for row in _rows() if row.norm == "batch" and row.statistics == "running"]
    for chosen, bar in ((rows, (93.9, 95.9)), (rows[:7], (90.0, 99.0))):
        values = [_with(r, value=0.959 if r.seed else 0.939) for r in chosen if r.attack == "clean"]
        decoded(plots.accuracy(report.summarise(values)))
        (bars,) = figures[-1].axes[0].collections
        np.testing.assert_allclose(bars.get_segments()[0][:, 1], bar)


def test_accuracy_against_steps(figures):
    rows = [
        Row(
            "c",
            "stein",
            0,
            "batch",
            "convergence",
            8 / 255,
            "pixel_accuracy",
            0.5 / steps,
            64,
            0,
            1,
            norm_order="linf",
            steps=steps,
            threat_model="joint",
        )
        for steps in (10, 1, 5)
    ]
    decoded(plots.steps(report.summarise(rows), "pixel_accuracy"))
    axis = figures[0].axes[0]
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "5", "10"]
    assert axis.get_ylabel() == (
        "pixel accuracy (%) under PGD\nin the l∞ ball of 8/255, on 64 test examples"
    )
    np.testing.assert_allclose(_curves(axis), [[[1, 5, 10], [50, 10, 5]]])


def test_auc_is_not_in_per_cent(figures):
    decoded(plots.accuracy(report.summarise(_rows("auc")), "auc"))
    axis = figures[0].axes[0]
    assert axis.get_ylabel().startswith("test AUC\n")
    assert axis.get_ylim() == pytest.approx((-0.03, 1.03))


def test_plots_are_png_even_with_one_norm_and_one_seed():
    row = LoggedStep(5, 1.0, 1.0, 0.5, {"stem": {"mean_factor": 0.3, "variance_factor": 1.1}})
    runs = [("stein", [row])]
    clean = Row("digits", "stein", 0, "running", "clean", 0.0, "accuracy", 0.5, 500, 0, 1)
    for content in (
        plots.accuracy(report.summarise([clean])),
        plots.shrinkage(runs),
        plots.shrinkage([("group", [])]),
    ):
        assert content.startswith(b"\x89PNG")
