"""The plots, as PNG bytes."""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.models.norms import NORMS
from experiments.report import (
    REFERENCE,
    Source,
    Summary,
    measure,
    strength,
)
from experiments.results import CLEAN, CONVERGENCE, WORST, LoggedStep

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
_PANELS = {
    "running": "Running statistics",
    "batch": "Statistics of the test batch",
    "shrunk": "Shrunk statistics of the test batch",
    "none": "No statistics of batches",
}
_BALLS = {"linf": "l∞ ball", "l2": "l2 ball"}
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


# Batch norm with test-batch statistics, in the panels of the other sources.
_BESIDE = {"color": "#000000", "linewidth": 1.4, "linestyle": (0, (1, 1.5)), "zorder": 4}


def _legend(figure: Figure, norms: Iterable[str], *, markers: bool, beside: bool = False) -> None:
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
    if beside:
        handles.append(Line2D([], [], label="batch, with statistics\nof the test batch", **_BESIDE))  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def strongest(summaries: Sequence[Summary], norm_order: str) -> str | None:
    """The attack that a plot shows: ``worst``, else that of most radii and the lowest scores.

    Args:
      summaries: of one metric.
      norm_order: of the attack's ball.

    Returns:
      Its name; None where there was no attack.
    """
    by_attack: dict[str, list[Summary]] = {}
    for s in summaries:
        if s.norm_order == norm_order and s.attack != CONVERGENCE:
            by_attack.setdefault(s.attack, []).append(s)
    if WORST in by_attack or not by_attack:
        return WORST if by_attack else None

    def rank(name: str) -> tuple[int, float]:
        found = by_attack[name]
        return len({s.epsilon for s in found}), -fmean(s.mean for s in found)

    return max(by_attack, key=rank)


def accuracy(
    summaries: Sequence[Summary], metric: str = "accuracy", norm_order: str = "linf"
) -> bytes:
    """A score against the attacks' radius, a line per norm, a panel per source of statistics.

    Norms without batch statistics stand in all panels, and so does batch norm with statistics of
    the test batch.  Bars reach from the lowest to the highest seed or, of one seed, over the 95 %
    interval.

    Args:
      summaries: any; those of the metric are shown.
      metric: which.
      norm_order: of the attacks' balls.
    """
    of_metric = [s for s in summaries if s.metric == metric]
    attack = strongest(of_metric, norm_order)
    points = [
        s
        for s in of_metric
        if s.attack == CLEAN or (s.attack == attack and s.norm_order == norm_order)
    ]
    in_steps = all("/255" in strength(s.epsilon) for s in points if s.epsilon > 0)
    scale = 255.0 if in_steps and any(s.epsilon > 0 for s in points) else 1.0
    unit = "1/255 of the image range" if scale > 1 else "image range 0 to 1"
    figure = _panels(points, lambda s: s.epsilon * scale)
    by = f"\nunder {'the worst of all attacks' if attack == WORST else attack}" if attack else ""
    _name_axes(
        figure,
        f"radius of the {_BALLS.get(norm_order, norm_order)}\n({unit})",
        f"test {measure(metric).label}{by}",
    )
    return _png(figure)


def steps(summaries: Sequence[Summary], metric: str = "accuracy") -> bytes:
    """A score against the number of PGD's steps; a curve that still falls has not converged.

    Args:
      summaries: any; those of the metric and of the attack ``convergence`` are shown.
      metric: which.
    """
    points = [s for s in summaries if s.metric == metric and s.attack == CONVERGENCE]
    figure = _panels(points, lambda s: s.steps)
    marks = sorted({s.steps for s in points})
    for axis in figure.axes:
        axis.set_xscale("log")
        axis.set_xticks(marks, [str(mark) for mark in marks])
        axis.minorticks_off()
    of = ""
    if points:
        sizes = sorted({s.n for s in points})
        count = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        ball = _BALLS.get(points[0].norm_order, points[0].norm_order)
        of = f"\nin the {ball} of {strength(points[0].epsilon)}, on {count} test examples"
    _name_axes(figure, "gradient steps", f"{measure(metric).label} under PGD{of}")
    return _png(figure)


def _panels(points: Sequence[Summary], x: Callable[[Summary], float]) -> Figure:
    """A panel per source of statistics, a line per norm, and the legend outside."""
    sources = sorted({s.source for s in points}, key=lambda source: source.place)
    sources = [s for s in sources if s.statistics != "none"] or sources or [Source("none")]
    columns = 2 if len(sources) == 4 else min(3, len(sources))
    rows = math.ceil(len(sources) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.6 * columns + 2.8, 4.2 * rows + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    beside = [s for s in points if s.norm == REFERENCE and s.source == _beside_source(sources)]
    for axis, source in zip(axes.ravel(), sources, strict=False):
        for norm in NORMS:
            here = [s for s in points if s.norm == norm and s.source in (source, Source("none"))]
            _curve(axis, norm, sorted(here, key=x), x)
        if beside and source != beside[0].source:
            line = sorted(beside, key=x)
            heights = [measure(s.metric).scale * s.mean for s in line]
            axis.plot([x(s) for s in line], heights, **_BESIDE)
        axis.set_title(_title(source), fontsize=11)
        axis.grid(alpha=0.3)
        what = measure(points[0].metric) if points else measure("accuracy")
        if what.title != "loss":
            axis.set_ylim(-0.03 * what.scale, 1.03 * what.scale)
    for axis in axes.ravel()[len(sources) :]:
        axis.remove()
    _legend(
        figure, {s.norm for s in points}, markers=True, beside=bool(beside) and len(sources) > 1
    )
    return figure


def _name_axes(figure: Figure, x: str, y: str) -> None:
    """At the left, and below the lowest panel of each column."""
    places = {a: place for a in figure.axes if (place := a.get_subplotspec()) is not None}
    lowest: dict[int, int] = {}
    for place in places.values():
        column, row = place.colspan.start, place.rowspan.start
        lowest[column] = max(row, lowest.get(column, 0))
    for axis, place in places.items():
        if place.colspan.start == 0:
            axis.set_ylabel(y, fontsize=11)
        if place.rowspan.start == lowest[place.colspan.start]:
            axis.set_xlabel(x, fontsize=11)
            axis.tick_params(labelbottom=True)


def _beside_source(sources: Sequence[Source]) -> Source | None:
    """Batch norm's, with statistics of the test batch and the strongest attacker."""
    return next((source for source in sources if source.statistics == "batch"), None)


def _title(source: Source) -> str:
    return _PANELS[source.statistics] + (f" ({source.threat_model})" if source.threat_model else "")


def _curve(axis: Axes, norm: str, points: Sequence[Summary], x: Callable[[Summary], float]) -> None:
    if not points:
        return
    scale = measure(points[0].metric).scale
    ends = [(s.lowest, s.highest) if s.seeds > 1 else (s.ci_low, s.ci_high) for s in points]
    # An interval of whole examples may miss a mean; bars of negative length are refused.
    below = [scale * max(0.0, s.mean - low) for s, (low, _) in zip(points, ends, strict=True)]
    above = [scale * max(0.0, high - s.mean) for s, (_, high) in zip(points, ends, strict=True)]
    axis.errorbar(
        [x(s) for s in points],
        [scale * s.mean for s in points],
        yerr=[below, above],
        marker=_MARKERS[norm],
        markersize=7 if norm == REFERENCE else 5,
        capsize=2,
        elinewidth=0.8,
        **_line_style(norm),  # type: ignore[arg-type]
    )


History = tuple[str, Sequence[LoggedStep]]
"""A norm, and the steps that were logged while a network with it was trained."""


def shrinkage(runs: Sequence[History]) -> bytes:
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


def _factor_lines(axis: Axes, runs: Sequence[History], layer: str, factor: str) -> set[str]:
    by_norm: dict[str, dict[int, list[float]]] = {}
    for norm, steps_of_run in runs:
        for row in steps_of_run:
            if layer in row.factors:
                epochs = by_norm.setdefault(norm, {})
                epochs.setdefault(math.ceil(row.epoch), []).append(row.factors[layer][factor])
    for norm, epochs in by_norm.items():
        means = [fmean(epochs[epoch]) for epoch in sorted(epochs)]
        axis.plot(sorted(epochs), means, **_line_style(norm))  # type: ignore[arg-type]
    return set(by_norm)


def _layers(runs: Sequence[History]) -> list[str]:
    names = {layer for _, steps_of_run in runs for row in steps_of_run for layer in row.factors}
    # The stem comes first in the network, but not in the alphabet.
    return sorted(names, key=lambda name: (not name.startswith("stem"), name))
