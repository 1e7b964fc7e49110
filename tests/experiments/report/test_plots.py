"""Plots: what is drawn is what was measured, with units, and nothing is cut off or hidden."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib.colors import is_color_like, to_hex

from experiments import report
from experiments.evaluation.attack_batch import DEPENDENT
from experiments.models.norms import NORMS
from experiments.report import plots
from experiments.report.labels import SOURCE_NAMES, Source
from experiments.report.plots import estimates
from tests.experiments.images import decoded
from tests.experiments.report.plotted import assert_inside, labels
from tests.experiments.report.rows import CLEAN, SOURCES, convergence_rows


def _rows(metric="accuracy", sources=SOURCES, seeds=2, norms=("batch", "stein", "group")):
    """Clean and attacked rows; each norm is 0.05 below the one before, at all radii alike.

    The seeds differ by 0.02, and the differences to batch norm by 0.01.
    """
    rows = []
    for norm in norms:
        place = ("batch", "stein", "group", "stein_mean_only").index(norm)
        for statistics, threat in sources if norm != "group" else (("none", ""),):
            for seed in range(seeds):
                lower = 0.05 * place - 0.02 * seed - 0.01 * seed * place
                about = {"norm": norm, "seed": seed, "statistics": statistics, "metric": metric}
                base = _with(CLEAN, **about, threat_model=threat)
                rows.append(_with(base, value=0.95 - lower))
                for attack, drop in (("fgsm", 4), ("pgd", 8), ("worst", 9)):
                    for epsilon in (2 / 255, 8 / 255):
                        value = 0.9 - drop * epsilon - lower
                        more = {"attack": attack, "epsilon": epsilon, "norm_order": "linf"}
                        rows.append(_with(base, value=value, **more))
    return rows


def _with(row, **changes):
    return dataclasses.replace(row, **changes)


def _drawn(figures, rows, metric="accuracy", paired=lambda row, reference: None):
    decoded(plots.accuracy(report.merge_seeds(rows, paired), metric))
    return figures[-1]


def _row_labels(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def _points(axis, row):
    """[(x, y, is full, ends of the bar or None)] of the points in a row, from top to bottom."""
    found = []
    for container in axis.containers:
        line, _, bars = container.lines
        x, y = (float(v[0]) for v in line.get_data())
        if abs(y - row) < 0.5:
            ends = bars[0].get_segments()[0][:, 0] if bars else None
            full = to_hex(line.get_markerfacecolor()) != "#ffffff"
            found.append((x, y, full, ends))
    return sorted(found, key=lambda point: point[1])


def test_batch_norm_stands_above_and_differences_below(figures):
    figure = _drawn(figures, _rows())
    running, running_rows, batch, batch_rows = figure.axes
    assert running.get_title() == "Running statistics"
    assert batch.get_title() == "Statistics of the test batch (joint)"
    assert running.get_ylabel() == "batch norm:\naccuracy (%)"
    assert running.get_xlabel() == "radius of the l∞ ball (1/255 of the image range)"
    assert _row_labels(running_rows) == ["stein", "group"]
    curve = running.lines[0].get_data()
    np.testing.assert_allclose(curve[0], [0, 2, 8])
    np.testing.assert_allclose(curve[1], [96, *(100 * (0.91 - 9 * n / 255) for n in (2, 8))])
    # seeds that differ by 2 points have the standard deviation sqrt(2)
    (bar,) = running.containers[0].lines[2]
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [96 - 2**0.5, 96 + 2**0.5])
    for axis in (running_rows, batch_rows):
        points = _points(axis, 0)
        # -5 and -4 points: the mean and its standard deviation, at every radius
        np.testing.assert_allclose([point[0] for point in points], [-4.5] * 3)
        np.testing.assert_allclose([point[3] for point in points], [[-5.207107, -3.792893]] * 3)
        assert not any(point[2] for point in points)
    np.testing.assert_allclose([point[0] for point in _points(running_rows, 1)], [-9.0] * 3)


def test_points_of_a_norm_do_not_hide_each_other(figures):
    # all differences are the same, so that only their places can tell the points apart
    figure = _drawn(figures, _rows())
    figure.canvas.draw()
    axis = figure.axes[1]
    heights = [axis.transData.transform(point[:2])[1] for point in _points(axis, 0)]
    marker = 5 * figure.dpi / 72
    assert np.all(np.diff(heights) < -marker)


def test_radii_have_colours_of_their_own_that_the_legend_explains(figures):
    figure = _drawn(figures, _rows())
    radii, notes = figure.legends
    assert radii.get_title().get_text() == (
        "test accuracy under the worst of all attacks,\nradius of the l∞ ball:"
    )
    assert [text.get_text() for text in radii.get_texts()] == ["clean", "2/255", "8/255"]
    colours = [to_hex(handle.get_color()) for handle in radii.legend_handles]
    assert len(set(colours)) == 3
    for axis in figure.axes[:2]:
        drawn = [to_hex(container.lines[0].get_color()) for container in axis.containers]
        assert drawn[:3] == colours
    assert "batch norm, running statistics" in [text.get_text() for text in notes.get_texts()]


def test_the_legend_has_no_radius_at_which_nothing_is_drawn(figures):
    rows = [r for r in _rows() if r.norm == "group" or r.epsilon != 8 / 255]
    figure = _drawn(figures, rows)
    assert labels(figure)[:2] == ["clean", "2/255"]
    assert "8/255" not in labels(figure)
    assert len(_points(figure.axes[1], 1)) == 2


def test_norms_without_statistics_are_compared_with_running_ones_only(figures):
    figure = _drawn(figures, _rows())
    assert len(_points(figure.axes[1], 1)) == 3
    assert not _points(figure.axes[3], 1)
    (text,) = figure.axes[3].texts
    assert text.get_text() == "no batch statistics:\nsee running statistics"
    assert text.get_position()[1] == 1
    # and batch norm with running statistics is dotted beside the one with those of the test batch
    dotted = [line for line in figure.axes[2].lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted[0].get_data(), figure.axes[0].lines[0].get_data())


def test_shared_statistics_are_those_that_evaluations_take_from_the_batch():
    assert {name for name in SOURCE_NAMES if Source(name).is_shared} == set(DEPENDENT)


def test_every_source_of_statistics_is_drawn(figures):
    """Calibrated ones had no title and no colour: the report of a demo ended in a KeyError."""
    every = [(s, "") for s in SOURCE_NAMES if not Source(s).is_shared and s != "none"]
    every += [(s, t) for s in SOURCE_NAMES if Source(s).is_shared for t in ("joint", "companion")]
    figure = _drawn(figures, _rows(sources=every, norms=("batch", "stein")))
    assert len(figure.axes) == 2 * len(every)
    assert len({axis.get_title() for axis in figure.axes} - {""}) == len(every)
    rows = [
        _with(row, statistics=s, threat_model=t) for row in convergence_rows() for s, t in every
    ]
    decoded(plots.convergence(report.merge_seeds(rows)))
    (legend,) = figures[-1].legends
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == len(every)
    assert_inside(figures[-1])


@pytest.mark.parametrize(
    "sources",
    [
        SOURCES,
        (*SOURCES, ("shrunk", "joint")),
        (*SOURCES, ("batch", "independent"), ("shrunk", "")),
    ],
)
def test_nothing_lies_outside_the_picture(sources, figures):
    norms = ("batch", "stein_mean_only", "group")  # the longest name leaves the least room
    figure = _drawn(figures, _rows(sources=sources, norms=norms))
    assert len(figure.axes) == 2 * len(sources)
    figure.canvas.draw()
    frame = figure.axes[3].get_window_extent()
    note = figure.axes[3].texts[0].get_window_extent()
    assert frame.x0 <= note.x0
    assert note.x1 <= frame.x1
    for axis in figure.axes:
        assert axis.title.get_window_extent().width <= axis.get_window_extent().width
    assert_inside(figure)


def test_the_lowest_label_says_what_bars_are(figures):
    bars = {}
    for seeds in (1, 2, 3):
        kept = None if seeds > 1 else (-0.07, -0.03)
        figure = _drawn(figures, _rows(seeds=seeds), paired=lambda row, other, kept=kept: kept)
        bars[seeds] = figure.get_supxlabel().splitlines()
    assert {lines[0] for lines in bars.values()} == {
        "difference to batch norm of the same seed (percentage points), more than 0: better"
    }
    assert [lines[1] for lines in bars.values()] == [
        "bars of differences: 95 % interval over 100 test examples, one seed "
        "(too narrow with test-batch statistics)",
        "bars of differences: ± standard deviation over 2 seeds (too few for an interval)",
        "bars of differences: 95 % t-interval over 3 seeds",
    ]
    assert [lines[2] for lines in bars.values()] == [
        "bars of batch norm: 95 % interval over 100 test examples, one seed",
        "bars of batch norm: ± standard deviation over 2 seeds",
        "bars of batch norm: ± standard deviation over 3 seeds",
    ]


def test_a_point_is_full_where_its_interval_excludes_zero(figures):
    def paired(row, reference):
        return (-0.01, 0.04) if row.attack == "clean" else (-0.07, -0.03)

    figure = _drawn(figures, _rows(seeds=1), paired=paired)
    points = _points(figure.axes[1], 0)
    assert [point[2] for point in points] == [False, True, True]
    np.testing.assert_allclose(points[1][3], [-7, -3])
    assert labels(figure)[3:5] == [
        "95 % interval excludes 0\n(1 in 20 does so by chance)",
        "no 95 % interval, or it includes 0",
    ]
    # without results per example there is neither bar nor verdict
    bare = _drawn(figures, _rows(seeds=1))
    assert [(point[2], point[3]) for point in _points(bare.axes[1], 0)] == [(False, None)] * 3
    assert "95 % interval excludes 0\n(1 in 20 does so by chance)" not in labels(bare)
    assert "none (one seed, without results per example)" in bare.get_supxlabel()


def test_intervals_of_seeds_are_students():
    (entry,) = (s for s in report.merge_seeds(_seeds([0.01, 0.02, 0.06])) if s.norm == "stein")
    estimate = estimates.difference(entry)
    # mean 3, deviation sqrt(7), t(2 degrees) = 4.302653: half a length of 6.572
    assert estimate.value == pytest.approx(3.0)
    assert (estimate.low, estimate.high) == pytest.approx((3 - 6.572411, 3 + 6.572411))
    assert estimate.is_interval
    assert not estimate.excludes_zero
    (clear,) = (s for s in report.merge_seeds(_seeds([0.05, 0.06, 0.07])) if s.norm == "stein")
    assert estimates.difference(clear).excludes_zero


@pytest.mark.parametrize("differences", [[0.05, 0.05], [0.05, 0.051], [0.05, 0.05, 0.05]])
def test_two_seeds_or_seeds_without_spread_prove_nothing(differences):
    (entry,) = (s for s in report.merge_seeds(_seeds(differences)) if s.norm == "stein")
    assert not estimates.difference(entry).excludes_zero


def _seeds(differences):
    """Clean rows of batch norm and of stein, which is ahead by these."""
    for seed, ahead in enumerate(differences):
        yield _with(CLEAN, seed=seed, value=0.5)
        yield _with(CLEAN, seed=seed, norm="stein", value=0.5 + ahead)


def test_without_batch_norm_the_scores_themselves_are_shown(figures):
    figure = _drawn(figures, _rows(norms=("stein", "group")))
    assert [axis.get_title() for axis in figure.axes] == [
        "Running statistics",
        "Statistics of the test batch (joint)",
    ]
    assert figure.get_supxlabel() == (
        "test accuracy under the worst of all attacks (%)\nbars: ± standard deviation over 2 seeds"
    )
    assert _row_labels(figure.axes[0]) == ["stein", "group"]
    for axis in figure.axes:
        found = [[point[0] for point in _points(axis, row)] for row in (0, 1)]
        attacked = [100 * (0.865 - 9 * n / 255) for n in (2, 8)]
        np.testing.assert_allclose(found[0], [91.5, *attacked])
        np.testing.assert_allclose(found[1], np.array(found[0]) - 4.5)
        assert not [line for line in axis.lines if list(line.get_xdata()) == [0, 0]]
    assert_inside(figure)


def test_a_norm_of_other_seeds_is_not_compared(figures):
    rows = [row for row in _rows() if row.norm != "group" or row.seed == 0]
    other = [_with(row, seed=7) if row.norm == "group" else row for row in rows]
    figure = _drawn(figures, other)
    assert not _points(figure.axes[1], 1)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == ["no batch norm of\nthe same seed and examples"]


@pytest.mark.parametrize(("norm", "name"), [("batch", "batch norm"), ("stein", "stein")])
def test_one_norm_alone_is_a_curve(norm, name, figures):
    figure = _drawn(figures, _rows(norms=(norm,), seeds=1))
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylabel() == f"{name}:\naccuracy (%)"
    ends = figure.axes[0].containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, [90, 99])
    assert figure.get_supxlabel() == "bars: 95 % interval over 100 test examples, one seed"


def test_clean_scores_alone_need_no_curve(figures):
    rows = [row for row in _rows() if row.attack == "clean"]
    figure = _drawn(figures, rows)
    assert [axis.get_title() for axis in figure.axes] == [
        "Running statistics\nbatch norm: 96.0 ± 1.4 %",
        "Statistics of the test batch (joint)\nbatch norm: 96.0 ± 1.4 %",
    ]
    assert figure.get_supxlabel().startswith(
        "difference to batch norm of the same seed in clean test accuracy (percentage points), "
    )
    np.testing.assert_allclose([point[0] for point in _points(figure.axes[0], 0)], [-4.5])
    assert_inside(figure)


def test_auc_is_not_in_per_cent_and_less_loss_is_better(figures):
    auc = _drawn(figures, _rows("auc"), "auc")
    assert auc.axes[0].get_ylabel() == "batch norm:\nAUC"
    assert auc.axes[0].get_ylim() == pytest.approx((-0.04, 1.04))
    assert auc.get_supxlabel().startswith(
        "difference to batch norm of the same seed, more than 0: better\n"
    )
    assert _points(auc.axes[1], 0)[0][0] == pytest.approx(-0.045)
    rows = [_with(row, value=5 * row.value) for row in _rows("loss")]
    loss = _drawn(figures, rows, "loss")
    assert loss.axes[0].get_ylim()[1] > 4.7
    assert "(nats), less than 0: better" in loss.get_supxlabel()


def test_scores_that_are_not_a_number_leave_a_note(figures):
    rows = [_with(r, value=math.nan) if r.norm == "stein" else r for r in _rows("auc", seeds=1)]
    figure = _drawn(figures, rows, "auc")
    assert [text.get_text() for text in figure.axes[1].texts] == ["undefined (not a number)"]
    assert len(_points(figure.axes[1], 1)) == 3


def test_without_a_worst_row_the_strongest_attack_is_taken():
    rows = [row for row in _rows() if row.attack != "worst"]
    entries = report.merge_seeds(rows)
    assert plots.strongest(entries, "linf") == "pgd"
    # one of a single radius says less, however low it is
    single = _with(rows[0], attack="big", epsilon=0.9, norm_order="linf", value=0.0)
    assert plots.strongest(report.merge_seeds([*rows, single]), "linf") == "pgd"
    assert plots.strongest(entries, "l2") is None
    # of losses the strongest attack has the highest
    losses = [_with(row, metric="loss", value=1 - row.value) for row in rows]
    assert plots.strongest(report.merge_seeds(losses), "linf") == "pgd"


def test_where_nothing_was_measured_the_plots_say_so(figures):
    for content in (
        plots.accuracy([]),
        plots.convergence([]),
        plots.shrinkage([("group", [])]),
    ):
        assert content.startswith(b"\x89PNG")
    accuracy, convergence, shrinkage = figures
    assert accuracy.get_supxlabel() == "nothing was measured: accuracy (%)"
    assert convergence.legends[0].get_title().get_text() == "nothing was measured"
    assert "no factors were logged" in shrinkage.subfigs[0].get_suptitle()


def test_norms_are_told_apart_without_colours():
    looks = [plots.style.line_style(norm) for norm in ("stein", "stein_mean_only", "jsnorm")]
    assert len({str(look["linestyle"]) for look in looks}) == 3


def test_a_norm_of_ones_own_is_drawn_too():
    for norm in (*NORMS, "my_norm"):
        assert is_color_like(plots.style.line_style(norm)["color"])
