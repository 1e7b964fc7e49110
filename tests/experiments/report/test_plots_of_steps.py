"""Plots against steps: PGD's convergence, and shrinkage over a training."""

import dataclasses

import numpy as np
import pytest

from experiments import report
from experiments.report import plots
from experiments.report.plots import factors
from experiments.results import LoggedStep
from tests.experiments.images import decoded
from tests.experiments.report.plotted import assert_inside, labels
from tests.experiments.report.rows import convergence_rows


def test_convergence_has_a_panel_per_norm(figures):
    decoded(
        plots.convergence(report.merge_seeds(convergence_rows("pixel_accuracy")), "pixel_accuracy")
    )
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes] == ["batch (reference)", "stein"]
    assert figure.get_supylabel() == "pixel accuracy (%)"
    assert figure.get_supxlabel() == "gradient steps of PGD"
    assert figure.legends[0].get_title().get_text() == (
        "PGD in the l∞ ball of 8/255, on 64 test examples\nStatistics:"
    )
    assert labels(figure) == ["running", "test batch (joint)"]
    for axis in figure.axes:
        assert axis.get_xscale() == "log"
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "5", "10"]
        running, batch = (line.get_data() for line in axis.lines)
        np.testing.assert_allclose(running, [[1, 5, 10], [50, 10, 5]])
        np.testing.assert_allclose(batch, [[1, 5, 10], [60, 20, 15]])
        assert axis.get_ylim() == pytest.approx((0, 66))
    assert_inside(figure)


def test_lines_that_coincide_stay_visible(figures):
    same = [dataclasses.replace(row, value=0.5) for row in convergence_rows()]
    decoded(plots.convergence(report.merge_seeds(same)))
    below, above = figures[0].axes[0].lines
    assert above.get_zorder() > below.get_zorder()
    assert above.get_linewidth() < below.get_linewidth()
    assert above.get_markersize() < below.get_markersize()


def test_convergence_under_a_strong_attack_ends_on_the_axis(figures):
    rows = [dataclasses.replace(row, value=0.0) for row in convergence_rows()]
    decoded(plots.convergence(report.merge_seeds(rows)))
    assert figures[0].axes[0].get_ylim() == pytest.approx((0, 5))
    assert not any(line.get_clip_on() for line in figures[0].axes[0].lines)


def _history(norm, mean, variance, layers=("stem", "b10", "b9"), epochs=(0.5, 1.0, 1.5)):
    made = {layer: {"mean_factor": mean, "variance_factor": variance} for layer in layers}
    return norm, [LoggedStep(i, epoch, 1.0, 0.5, made) for i, epoch in enumerate(epochs)]


def _halves(figure):
    mean, variance = figure.subfigs
    return mean, variance


def test_factors_that_stay_at_one_are_named_and_not_drawn(figures):
    runs = [
        _history("batch", 1.0, 1.0),
        _history("ridge", 0.999999, 0.999),
        _history("stein", 0.4, 1.002),
        _history("jsnorm", 0.3, 0.8),
    ]
    decoded(plots.shrinkage(runs))
    mean, variance = _halves(figures[0])
    assert mean.get_suptitle() == (
        "Shrinkage of the batch mean\n"
        "not drawn, within 0.005 of 1 throughout: batch (reference), ridge"
    )
    assert variance.get_suptitle().endswith(": batch (reference), stein, ridge")
    assert labels(figures[0]) == ["stein", "jsnorm"]
    drawn = [line for line in mean.axes[0].lines if len(line.get_xdata()) == 2][:2]
    np.testing.assert_allclose(drawn[0].get_data(), [[1, 2], [0.4, 0.4]])
    np.testing.assert_allclose(drawn[1].get_data(), [[1, 2], [0.3, 0.3]])
    assert_inside(figures[0])


def test_a_factor_that_leaves_one_once_is_drawn(figures):
    norm, steps = _history("lasso", 1.0, 1.0)
    _, late = _history("lasso", 0.98, 1.0)
    decoded(plots.shrinkage([(norm, [*steps, *late])]))
    (mean,) = figures[0].subfigs  # of the variance there would be nothing but empty panels
    assert "not drawn" not in mean.get_suptitle()
    assert mean.get_supxlabel() == "epoch\nno norm shrinks the batch variance"


def test_shrinkage_is_the_mean_of_the_seeds_with_a_band(figures):
    decoded(plots.shrinkage([_history("stein", 0.2, 1.0), _history("stein", 0.6, 1.0)]))
    axis = figures[0].subfigs[0].axes[0]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [0.4, 0.4])
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.2, 0.6))
    assert "band: lowest to highest seed" in figures[0].legends[0].get_title().get_text()
    decoded(plots.shrinkage([_history("stein", 0.2, 1.0)]))
    assert figures[1].legends[0].get_title().get_text() == "line: mean over an epoch"


def test_layers_stand_in_the_networks_order_and_not_all_of_many(figures):
    decoded(plots.shrinkage([_history("stein", 0.2, 1.0)]))
    titles = [axis.get_title() for axis in figures[0].subfigs[0].axes]
    assert titles == ["stem", "b9", "b10"]
    many = [f"blocks/{i}" for i in range(100)]
    decoded(plots.shrinkage([_history("jsnorm", 0.2, 0.9, many)]))
    mean, variance = _halves(figures[1])
    titles = [axis.get_title() for axis in mean.axes]
    assert len(titles) == factors.MAX_LAYERS
    assert (titles[0], titles[-1]) == ("blocks/0", "blocks/99")
    assert variance.get_supxlabel() == "epoch; 12 of 100 layers"
