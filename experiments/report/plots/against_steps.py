"""Scores against the number of PGD's steps: has the attack converged?"""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from experiments.models.norms import NORMS
from experiments.report.entries import Entry
from experiments.report.labels import REFERENCE, Source, strength
from experiments.report.measures import measure
from experiments.report.plots import estimates, style
from experiments.results import CONVERGENCE

# Okabe & Ito's, told apart by colour-blind readers too.
_COLOURS = {
    "running": "#000000",
    "batch": "#D55E00",
    "shrunk": "#009E73",
    "calibrated": "#0072B2",
    "calibrated_streams": "#CC79A7",
    "none": "#777777",
}
_DASHES = {"": "-", "joint": "-", "independent": "--", "companion": ":"}
_MARKERS = "osD^vPX"
_COLUMNS = 4
_IN_A_LINE = 4  # names of sources
_LABELS = 6  # ticks with a number


def convergence(entries: Sequence[Entry], metric: str = "accuracy") -> bytes:
    """Draws a score against the number of PGD's steps: a panel per norm, a line per source.

    A curve that still falls has not converged.  There are no bars: all points of a curve are of
    the same examples, so that a fall between two of them is no chance.

    Args:
      entries: any; those of the metric and of the attack ``convergence`` are shown.
      metric: which.

    Returns:
      PNG bytes.
    """
    points = [s for s in entries if s.metric == metric and s.attack == CONVERGENCE]
    with style.letters():
        return style.png(_figure(points, metric))


def _figure(points: Sequence[Entry], metric: str) -> Figure:
    norms = [norm for norm in NORMS if any(s.norm == norm for s in points)]
    sources = sorted({s.source for s in points}, key=lambda source: source.place)
    looks = _looks(sources)
    columns = max(1, min(_COLUMNS, len(norms)))
    rows = max(1, math.ceil(len(norms) / columns))
    figure, axes = plt.subplots(
        *(rows, columns),
        figsize=(style.WIDTH, 2.0 * rows + 1.1),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, norm in zip(axes.ravel(), norms, strict=False):
        for source, look in looks.items():
            _draw_line(axis, [s for s in points if (s.norm, s.source) == (norm, source)], look)
        axis.set_title("batch (reference)" if norm == REFERENCE else norm)
        axis.grid(alpha=0.3)
    for axis in axes.ravel()[len(norms) :]:
        axis.set_visible(False)
    _scale_axes(axes[0, 0], points, metric)
    for column in range(columns):  # below the lowest panel of a column, which the last row may lack
        lowest = axes[(len(norms) - 1 - column) // columns if norms else 0, column]
        lowest.tick_params(labelbottom=True)
    figure.supxlabel("gradient steps of PGD")
    figure.supylabel(measure(metric).label)
    handles = [Line2D([], [], label=source.name, **look) for source, look in looks.items()]  # type: ignore[arg-type]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(1, min(_IN_A_LINE, len(handles))),
        frameon=False,
        title=_heading(points),
        alignment="left",
    )
    return figure


def _draw_line(axis: Axes, points: Sequence[Entry], look: dict[str, object]) -> None:
    if not points:  # the layout cannot place an unclipped line without points
        return
    line = sorted(points, key=lambda s: s.steps)
    heights = [measure(s.metric).scale * s.mean for s in line]
    axis.plot([s.steps for s in line], heights, **look)  # type: ignore[arg-type]


def _looks(sources: Sequence[Source]) -> dict[Source, dict[str, object]]:
    """Returns the lines' looks: each is thinner than those below, which stay visible so."""
    return {
        source: {
            "color": _COLOURS[source.statistics],
            "linestyle": _DASHES[source.threat_model],
            "marker": _MARKERS[place % len(_MARKERS)],
            "markersize": max(3.0, 8.0 - 1.5 * place),
            "linewidth": max(0.8, 3.0 - 0.7 * place),
            "zorder": 3 + place,  # above the frame, on which curves of a strong attack end
            "clip_on": False,
        }
        for place, source in enumerate(sources)
    }


def _scale_axes(axis: Axes, points: Sequence[Entry], metric: str) -> None:
    """Sets the scales that all panels share."""
    marks = sorted({s.steps for s in points if s.steps > 0})
    if marks:
        axis.set_xscale("log")
        every = math.ceil(len(marks) / _LABELS)
        axis.set_xticks(marks, [str(m) if i % every == 0 else "" for i, m in enumerate(marks)])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    what = measure(metric)
    if estimates.is_share(metric):
        top = max((what.scale * s.mean for s in points), default=what.scale)
        axis.set_ylim(0.0, max(1.1 * top, 0.05 * what.scale))


def _heading(points: Sequence[Entry]) -> str:
    """Says what was measured, above the names of the sources of statistics."""
    if not points:
        return "nothing was measured"
    ball = style.BALLS.get(points[0].norm_order, points[0].norm_order)
    seeds = {s.seeds for s in points}
    mean = f", mean over {_span(seeds)} seeds" if max(seeds) > 1 else ""
    return (
        f"PGD in the {ball} of {strength(points[0].epsilon)}, on "
        f"{_span({s.n for s in points})} test examples{mean}\nStatistics:"
    )


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
