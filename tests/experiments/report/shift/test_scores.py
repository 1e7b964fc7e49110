"""Means, leads and paired intervals of known results."""

import numpy as np
import pytest

from experiments.evaluation.shift.plan import CLEAN, Condition
from experiments.report.plots import against_batch_size
from experiments.report.shift import tables
from experiments.report.shift.scores import Scores, average, estimate, is_clean, is_held_out

DARK = Condition("darkness", 2)
FOG = Condition("fog", 1)
RULES = ["running", "batch", "N/(N+n)", "shrunk"]
LEVELS = {CLEAN: (0.8, 0.6, 0.7, 0.75), DARK: (0.2, 0.5, 0.4, 0.3), FOG: (0.4, 0.4, 0.4, 0.6)}


def _scores(spread=0.0):
    """Known scores whose resamples move all rules alike."""
    moves = np.concatenate([[0.0], spread * np.linspace(-1, 1, 1000)])
    values = {
        (condition, rule, size): levels[i] + moves + (0.1 if (rule, size) == ("batch", 8) else 0)
        for condition, levels in LEVELS.items()
        for i, rule in enumerate(RULES)
        for size in (2, 8)
    }
    return Scores(RULES, [2, 8], list(LEVELS), values, 100)


def test_means_over_conditions_and_sizes():
    scores = _scores()
    assert scores.mean("running")[0] == pytest.approx(1.4 / 3)
    assert scores.mean("batch", 8)[0] == pytest.approx(0.6)
    assert scores.mean("shrunk", 2, is_clean)[0] == pytest.approx(0.75)
    assert scores.mean("shrunk", 2, is_held_out)[0] == pytest.approx(0.3)


def test_the_worst_condition_against_the_better_of_two():
    assert _scores().leads("shrunk", 8) == pytest.approx({CLEAN: -0.05, DARK: -0.3, FOG: 0.1})
    assert tables.worst_leads(_scores()).splitlines()[-1] == (
        "| shrunk | -20.0 (darkness 2) | -30.0 (darkness 2) | -30.0 | 4 of 6 |"
    )


def test_differences_are_paired():
    """What moves both rules alike is no doubt about their difference."""
    scores = _scores(spread=0.2)
    low, high = estimate(scores.mean("running"))[1:]
    assert high - low == pytest.approx(0.38, abs=0.01)
    table = tables.differences(scores)
    assert "| shrunk | batch | +5.0 [+5.0, +5.0] | -5.0 [-5.0, -5.0] | +0.0 [+0.0, +0.0] |" in table
    pairs = [line.split(" | ")[:2] for line in table.splitlines()[2:]]
    assert len(pairs) == 6  # no rule against itself, none twice
    assert not any(a.strip("| ") == b for a, b in pairs)


def test_a_mean_over_networks_is_taken_resample_by_resample():
    one, other = _scores(), _scores(spread=0.2)
    both = average([one, other])
    np.testing.assert_allclose(
        both.mean("batch"), (one.mean("batch") + other.mean("batch")) / 2, rtol=1e-12
    )


@pytest.mark.parametrize("ordered", [None, _scores()])
def test_the_plot_is_a_png(ordered):
    content = against_batch_size.draw([("A", _scores(0.1), ordered)], "accuracy")
    assert content.startswith(b"\x89PNG")
