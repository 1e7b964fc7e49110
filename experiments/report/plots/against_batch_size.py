"""Scores on shifted test data against the batch size, a line per rule."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.shift.rules import FIXED, RUNNING
from experiments.report.plots import style
from experiments.report.shift.scores import Scores, estimate

# Okabe & Ito's colours, told apart by colour-blind readers too; each rule has a marker besides.
_LOOKS = (
    ("#000000", ""),
    ("#E69F00", ""),
    ("#777777", "s"),
    ("#56B4E9", "D"),
    ("#CC79A7", "v"),
    ("#D55E00", "o"),
    ("#009E73", "^"),
    ("#0072B2", "P"),
)
_HEIGHT = 3.6  # inches of a row of panels
_DODGE = 0.06  # between rules at one batch size, where batch sizes are 1 apart


def draw(parts: Sequence[tuple[str, Scores, Scores | None]], score: str) -> bytes:
    """Draws mean scores over conditions: on the left mixed batches, on the right sorted ones.

    Bars are not those of the scores, which all rules share for the most part, but of the paired
    differences to running: where a bar does not reach that line, the rule differs from it.

    Args:
      parts: name, scores in mixed batches and in sorted ones; a row each.
      score: name of the score.

    Returns:
      PNG bytes.
    """
    with style.letters():
        columns = 1 if all(ordered is None for _, _, ordered in parts) else 2
        figure, grid = plt.subplots(
            len(parts),
            columns,
            figsize=(style.WIDTH, _HEIGHT * len(parts) + 1.0),
            squeeze=False,
            sharey="row",
            layout="constrained",
        )
        for row, (name, mixed, ordered) in zip(grid, parts, strict=True):
            _panel(row[0], mixed, score)
            row[0].set_title(f"{name}: mixed batches,\n{_conditions(mixed)}")
            if columns == 1:
                continue
            if ordered is None:
                row[1].axis("off")
                continue
            _panel(row[1], ordered, score)
            row[1].set_title(f"{name}: sorted batches,\n{_conditions(ordered)}")
        _legend(figure, grid[0, 0], parts[0][1])
        return style.png(figure)


def _conditions(scores: Scores) -> str:
    return f"mean over {len(scores.conditions)} conditions"


def _panel(axis: Axes, scores: Scores, score: str) -> None:
    places = np.arange(len(scores.batch_sizes))
    middle = (len(scores.rules) - 1) / 2
    for i, rule in enumerate(scores.rules):
        colour, marker = _LOOKS[i % len(_LOOKS)]
        heights = np.array([100 * scores.mean(rule, size)[0] for size in scores.batch_sizes])
        if rule in FIXED:
            dashes = "-" if rule == RUNNING else "--"
            axis.plot(places, heights, dashes, label=rule, color=colour, linewidth=1.4)
            continue
        found = [
            estimate(100 * (scores.mean(rule, size) - scores.mean(RUNNING, size)))
            for size in scores.batch_sizes
        ]
        bars = [[e.value - e.low for e in found], [e.high - e.value for e in found]]
        axis.errorbar(
            places + _DODGE * (i - middle),
            heights,
            yerr=np.array(bars),
            label=rule,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=2.2 if i >= len(scores.rules) - 2 else 1.4,
            elinewidth=0.9,
            capsize=1.5,
        )
    axis.set_xticks(places, [str(size) for size in scores.batch_sizes])
    axis.set_xlabel("test examples per batch")
    axis.set_ylabel(f"{'mIoU' if score == 'miou' else score} (%)")
    axis.tick_params(labelleft=True)
    axis.grid(axis="y", alpha=0.3)


def _legend(figure: Figure, axis: Axes, scores: Scores) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        columnspacing=1.2,
        frameon=False,
        title="bars: 95 % intervals of the paired difference to running "
        f"({scores.examples} test examples in mixed batches)",
    )
