"""Scores against the radius of the attacks: does a norm differ from batch norm, and by how much?

Curves of eight norms lie on one another.  So the upper panel has batch norm alone, and below it
every norm has a line of its own, with its paired differences to batch norm.
"""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.report.entries import Entry
from experiments.report.labels import REFERENCE, Source, strength
from experiments.report.measures import measure
from experiments.report.plots import estimates, style
from experiments.report.plots.content import NONE, RUNNING, Content
from experiments.report.plots.estimates import Estimate
from experiments.results import CLEAN

_TITLES = {
    "running": "Running statistics",
    "batch": "Statistics of the test batch",
    "shrunk": "Shrunk test-batch statistics",
    "calibrated": "Calibrated statistics",
    "calibrated_streams": "Calibrated statistics (streams)",
    "none": "No statistics of batches",
}
_CURVE_HEIGHT = 1.9  # inches
_ROW_OF_NORM, _ROW_OF_RADIUS = 0.16, 0.085  # inches per norm, and more per radius
_BETWEEN_BANDS = 0.2  # inches
_STRIPES = ("#F1F1F1", "#FFFFFF")
_LETTERS = 96  # of a line as broad as the figure
_DODGE = 0.74  # share of a norm's row that its radii take


def accuracy(entries: Sequence[Entry], metric: str = "accuracy", norm_order: str = "linf") -> bytes:
    """Draws batch norm's score against the radius and the other norms' differences to it.

    A column of panels per source of statistics: above, batch norm; below, a line per norm with a
    point per radius, clean examples first.  A point is full where a 95 % interval excludes zero.
    Norms without batch statistics are compared with batch norm's running ones.  Without batch norm
    of the same seeds the norms' own scores are shown instead.

    Args:
      entries: any; those of the metric are shown.
      metric: which.
      norm_order: of the attacks' balls.

    Returns:
      PNG bytes.
    """
    content = Content.choose(entries, metric, norm_order)
    with style.letters():
        return style.png(_figure(content))


def _figure(content: Content) -> Figure:
    """Arranges the panels: columns of sources, at most three beside each other."""
    sources = content.sources
    columns = content.columns
    row = _ROW_OF_NORM + _ROW_OF_RADIUS * len(content.epsilons)
    parts: list[tuple[float, Callable[[Axes, Content, Source], None]]] = []
    if content.curve:
        parts.append((_CURVE_HEIGHT, _draw_curve))
    if content.rows or not parts:
        parts.append((max(0.5, row * len(content.rows)), _draw_rows))
    bands = math.ceil(len(sources) / columns)
    heights = ([height for height, _ in parts] + [_BETWEEN_BANDS]) * bands
    del heights[-1]
    label = _name_of_values(content)
    around = bands * (0.35 + 0.4 * len(parts)) + 0.8 + 0.2 * label.count("\n")  # inches of text
    figure = plt.figure(figsize=(style.WIDTH, sum(heights) + around), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    first: dict[object, Axes] = {}
    for i, source in enumerate(sources):
        band, column = divmod(i, columns)
        for j, (_, draw) in enumerate(parts):
            shared = first.get(draw)
            axis = figure.add_subplot(
                grid[band * (len(parts) + 1) + j, column], sharex=shared, sharey=shared
            )
            first.setdefault(draw, axis)
            draw(axis, content, source)
            if j == 0:
                axis.set_title(_wrapped(_panel_title(content, source), columns))
            if column:
                axis.tick_params(labelleft=False)
                axis.set_ylabel("")
    figure.supxlabel(label)
    _add_legends(figure, content)
    return figure


def _wrapped(text: str, columns: int) -> str:
    """Breaks lines that are longer than a panel is broad."""
    return "\n".join(
        part for line in text.split("\n") for part in textwrap.wrap(line, _LETTERS // columns)
    )


def _panel_title(content: Content, source: Source) -> str:
    title = _TITLES[source.statistics]
    if source.threat_model:
        title += f" ({source.threat_model})"
    reference = content.of(REFERENCE, source)
    if content.compares and not content.curve and reference:
        what, s = measure(content.metric), reference[0]
        spread = f" ± {what.text(s.std)}" if s.seeds > 1 else ""
        title += f"\nbatch norm: {what.text(s.mean)}{spread} {what.unit}".rstrip()
    return title


def _draw_curve(axis: Axes, content: Content, source: Source) -> None:
    """Draws the reference's own scores; dotted, beside them, those with running statistics."""
    assert content.curve is not None
    scale = 255.0 if content.in_steps else 1.0
    beside = content.of(content.curve, RUNNING)
    if source != RUNNING and beside:
        heights = [estimates.absolute(s).value for s in beside]
        axis.plot([scale * s.epsilon for s in beside], heights, ":", color="#555555", zorder=2)
    points = content.of(content.curve, source)
    heights = [estimates.absolute(s).value for s in points]
    axis.plot([scale * s.epsilon for s in points], heights, color="black", linewidth=1.2, zorder=3)
    for s in points:
        estimate = estimates.absolute(s)
        colour = _colour(content, s.epsilon)
        axis.errorbar(
            scale * s.epsilon,
            estimate.value,
            yerr=estimate.bar,
            color=colour,
            **_POINT,  # type: ignore[arg-type]
        )
    what = measure(content.metric)
    if estimates.is_share(content.metric):
        axis.set_ylim(-0.04 * what.scale, 1.04 * what.scale)
    axis.grid(alpha=0.3)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    unit = "1/255 of the image range" if content.in_steps else "image range 0 to 1"
    ball = style.BALLS.get(content.norm_order, content.norm_order)
    between = "\n" if content.columns == 3 else " "
    axis.set_xlabel(f"radius of the {ball}{between}({unit})")
    name = "batch norm" if content.curve == REFERENCE else content.curve
    axis.set_ylabel(f"{name}:\n{what.label}")


_POINT = {"marker": "o", "markersize": 6, "elinewidth": 1.6, "capsize": 2.5, "zorder": 4}


def _draw_rows(axis: Axes, content: Content, source: Source) -> None:
    """Draws a row per norm: its differences to batch norm, or its scores, a point per radius."""
    norms, epsilons = content.rows, content.epsilons
    estimate = estimates.difference if content.compares else estimates.absolute
    for row, norm in enumerate(norms):
        axis.axhspan(row - 0.5, row + 0.5, color=_STRIPES[row % 2], zorder=0)
        points = content.in_row(norm, source)
        for s in points:
            place = row + _offset(epsilons.index(s.epsilon), len(epsilons))
            _draw_estimate(axis, estimate(s), place, _colour(content, s.epsilon), content.compares)
        if not points:
            _write_in_row(axis, row, _why_empty(content, norm, source))
        elif all(math.isnan(estimate(s).value) for s in points):
            _write_in_row(axis, row, "undefined (not a number)")
    if content.compares:
        axis.axvline(0.0, color="black", linewidth=1.2, zorder=1)
    axis.set_yticks(range(len(norms)), norms)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(max(1, len(norms)) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.4)


def _write_in_row(axis: Axes, row: int, text: str) -> None:
    axis.text(
        0.5,
        row,
        text,
        transform=axis.get_yaxis_transform(),
        ha="center",
        va="center",
        color="#444444",
        fontsize=9,
        bbox={"facecolor": _STRIPES[row % 2], "edgecolor": "none", "pad": 2.0},
    )


def _offset(place: int, count: int) -> float:
    """Returns how far below the middle of a row a point lies, in rows."""
    return _DODGE * ((place + 0.5) / count - 0.5)


def _draw_estimate(axis: Axes, estimate: Estimate, y: float, colour: str, compares: bool) -> None:
    full = estimate.excludes_zero or not compares
    axis.errorbar(
        estimate.value,
        y,
        xerr=estimate.bar,
        marker="o",
        markersize=5,
        markerfacecolor=colour if full else "white",
        color=colour,
        elinewidth=1.4,
        capsize=2,
        zorder=3,
    )


def _why_empty(content: Content, norm: str, source: Source) -> str:
    alone = content.of(norm, NONE)
    home = estimates.compared_under(alone[0]) if alone else source
    if home != source and home in content.sources:
        return f"no batch statistics:\nsee {_TITLES[home.statistics].lower()}"
    if content.of(norm, source) or alone:
        return "no batch norm of\nthe same seed and examples"
    return "not measured"


def _name_of_values(content: Content) -> str:
    """Names the lowest axis: what a point is, which side is better, and what bars are."""
    what = measure(content.metric)
    if not content.points:
        return f"nothing was measured: {what.label}"
    if not content.compares:
        name = "" if content.curve else f"{content.score}{_in_unit(what.unit)}\n"
        return f"{name}bars: {estimates.explain_absolute(content.points)}"
    unit = "percentage points" if what.unit == "%" else what.unit
    better = ""
    if estimates.is_share(content.metric) or estimates.is_loss(content.metric):
        better = f", {'less' if estimates.is_loss(content.metric) else 'more'} than 0: better"
    compared = [s for s in content.points if estimates.is_compared(s)]
    where = "" if len(content.epsilons) > 1 else f" in {content.score}"
    lines = [
        f"difference to batch norm of the same seed{where}{_in_unit(unit)}{better}",
        f"bars of differences: {estimates.explain_difference(compared)}",
    ]
    of_reference = [s for s in content.points if s.norm == REFERENCE]
    name = "bars of batch norm" if content.curve else "batch norm"
    if content.curve or any(s.seeds > 1 for s in of_reference):
        lines.append(f"{name}: {estimates.explain_absolute(of_reference)}")
    return "\n".join(lines)


def _in_unit(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _colour(content: Content, epsilon: float) -> str:
    """Returns a colour that gets lighter with the radius, for colour-blind readers too."""
    shades = np.linspace(0.0, 0.82, max(2, len(content.epsilons)))
    return to_hex(plt.get_cmap("viridis")(shades[content.epsilons.index(epsilon)]))


def _add_legends(figure: Figure, content: Content) -> None:
    radii = content.epsilons
    if len(radii) > 1:
        labels = [strength(epsilon) if epsilon > 0 else CLEAN for epsilon in radii]
        handles = [
            Line2D([], [], marker="o", linestyle="", color=_colour(content, epsilon), label=label)
            for epsilon, label in zip(radii, labels, strict=True)
        ]
        ball = style.BALLS.get(content.norm_order, content.norm_order)
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=math.ceil(len(handles) / math.ceil(len(handles) / 5)),
            title=f"{content.score},\nradius of the {ball}:",
            **_LEGEND,
        )
    if notes := list(_notes(content)):
        figure.legend(handles=notes, loc="outside upper right", **_LEGEND)


_LEGEND = {
    "frameon": False,
    "alignment": "left",
    "columnspacing": 1.0,
    "handlelength": 1.3,
    "handletextpad": 0.5,
}


def _notes(content: Content) -> Iterator[Line2D]:
    """Yields what signs mean that occur in the figure."""
    if content.compares:
        found = [estimates.difference(s) for s in content.points if estimates.is_compared(s)]
        if any(estimate.is_interval for estimate in found):
            yield _sign("95 % interval excludes 0\n(1 in 20 does so by chance)", "#444444")
        yield _sign("no 95 % interval, or it includes 0", "white")
    if content.curve and len(content.sources) > 1 and content.of(content.curve, RUNNING):
        name = "batch norm" if content.curve == REFERENCE else content.curve
        yield Line2D([], [], color="#555555", linestyle=":", label=f"{name}, running statistics")


def _sign(label: str, face: str) -> Line2D:
    return Line2D(
        [], [], marker="o", color="#444444", markerfacecolor=face, linestyle="", label=label
    )
