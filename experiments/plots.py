"""The two plots, as PNG bytes."""

import io
import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.models.norms import NORMS
from experiments.record import Run
from experiments.report import REFERENCE, STRONGEST, Summary

# Okabe & Ito's colours, told apart by colour-blind readers too; their yellow is too pale on white.
_COLOURS = {
    "batch": "#000000",
    "stein": "#D55E00",
    "stein_mean_only": "#E69F00",
    "jsnorm": "#009E73",
    "ridge": "#56B4E9",
    "lasso": "#0072B2",
    "toward_running": "#CC79A7",
    "group": "#888888",
}
_MARKERS = dict(zip(NORMS, "osD^vPX*", strict=True))
_LABELS = {REFERENCE: f"{REFERENCE} (reference)", "group": "group (no statistics)"}
_PANELS = {"running": "Running statistics", "batch": "Statistics of the test batch"}
_FACTORS = {"mean_factor": "Mean", "variance_factor": "Variance"}


# Lines that lie on one another stay visible where the upper one has gaps.
_DASHES = {"ridge": (0, (4, 3)), "group": "-."}


def _line_style(norm: str) -> dict[str, object]:
    reference = norm == REFERENCE
    return {
        "color": _COLOURS[norm],
        "linewidth": 3.2 if reference else 1.4,
        "linestyle": _DASHES.get(norm, "-"),
        # The reference lies under the others, which are thinner: all stay visible.
        "zorder": 2 if reference else 3,
    }


def _legend(figure: Figure, norms: Iterable[str], markers: bool) -> None:
    handles = [
        Line2D(
            [],
            [],
            label=_LABELS.get(norm, norm),
            marker=_MARKERS[norm] if markers else "",
            markersize=6,
            **_line_style(norm),  # type: ignore[arg-type]
        )
        for norm in NORMS
        if norm in norms
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def accuracy(summaries: Sequence[Summary], attack: str = STRONGEST) -> bytes:
    """Accuracy against the attacks' radius, a line per norm, a panel per source of statistics.

    Norms without batch statistics stand in both panels.  Bars reach from the lowest to the
    highest seed.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True, layout="constrained")
    for axis, (source, title) in zip(axes, _PANELS.items(), strict=True):
        for norm in NORMS:
            points = [
                s
                for s in summaries
                if s.norm == norm
                and s.statistics in (source, "none")
                and s.attack in ("clean", attack)
            ]
            _curve(axis, norm, sorted(points, key=lambda s: s.epsilon))
        axis.set_title(title)
        axis.set_xlabel("largest change of a pixel (image range 0 to 1)")
        axis.set_ylim(-3, 103)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"test accuracy under the {attack} attack (%)")
    _legend(figure, {s.norm for s in summaries}, markers=True)
    return _png(figure)


def _curve(axis: Axes, norm: str, points: Sequence[Summary]) -> None:
    if not points:
        return
    means = [100 * s.mean for s in points]
    below = [100 * (s.mean - s.lowest) for s in points]
    above = [100 * (s.highest - s.mean) for s in points]
    axis.errorbar(
        [s.epsilon for s in points],
        means,
        yerr=[below, above],
        marker=_MARKERS[norm],
        markersize=7 if norm == REFERENCE else 5,
        capsize=2,
        elinewidth=0.8,
        **_line_style(norm),  # type: ignore[arg-type]
    )


def shrinkage(runs: Sequence[Run]) -> bytes:
    """Shrinkage factors over training: a panel per layer, means left, variances right.

    A point is the mean over an epoch and over the seeds: ``toward_running`` sets its factor anew
    for every batch, and step by step its line would hide the others.  1 leaves the statistic as it
    is, 0 replaces it by the rule's target; above 1 it is enlarged.
    """
    layers = _layers(runs)
    columns = max(1, math.ceil(math.sqrt(len(layers))))
    rows = max(1, math.ceil(len(layers) / columns))
    figure = plt.figure(figsize=(5.4 * columns, 2.1 * rows + 1), layout="constrained")
    halves = figure.subfigures(1, 2, wspace=0.03, squeeze=False)[0]
    shown: set[str] = set()
    for half, (factor, title) in zip(halves, _FACTORS.items(), strict=True):
        axes = half.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, layer in zip(axes, layers, strict=False):
            shown |= _factor_lines(axis, runs, layer, factor)
            axis.set_title(layer, fontsize=9)
            axis.grid(alpha=0.3)
        for axis in axes[len(layers) :]:
            axis.set_visible(False)
        half.suptitle(f"Shrinkage of the batch {title.lower()}")
        half.supxlabel("epoch")
    halves[0].supylabel("factor (1: untouched, 0: shrunk to the target)")
    _legend(figure, shown, markers=False)
    return _png(figure)


def _factor_lines(axis: Axes, runs: Sequence[Run], layer: str, factor: str) -> set[str]:
    by_norm: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for row in run.history:
            if layer in row.factors:
                epochs = by_norm.setdefault(run.norm, {})
                epochs.setdefault(math.ceil(row.epoch), []).append(row.factors[layer][factor])
    for norm, epochs in by_norm.items():
        means = [fmean(epochs[epoch]) for epoch in sorted(epochs)]
        axis.plot(sorted(epochs), means, **_line_style(norm))  # type: ignore[arg-type]
    return set(by_norm)


def _layers(runs: Sequence[Run]) -> list[str]:
    names = {layer for run in runs for row in run.history for layer in row.factors}
    # The stem comes first in the network, but not in the alphabet.
    return sorted(names, key=lambda name: (not name.startswith("stem"), name))
