"""Scores under an attack against clean scores: is a norm more robust, or only less accurate?"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.models.norms import NORMS
from experiments.report.entries import Entry
from experiments.report.equal_accuracy import Run, line_of, scores
from experiments.report.labels import REFERENCE, Source, strength
from experiments.report.measures import measure
from experiments.report.plots import style

_HEIGHT = 3.6  # inches of a row of panels
_MARKERS = "sDvPo^X*p"


def draw(entries: Sequence[Entry], runs: Sequence[Run], controls: Sequence[Run]) -> bytes:
    """Draws a panel per source of statistics: batch norm's line, and the runs of each norm.

    Args:
      entries: of one metric, attack and radius; of all norms.
      runs: of all norms.
      controls: batch norm's other runs.

    Returns:
      PNG bytes.
    """
    sources = sorted({s.source for s in entries}, key=lambda source: source.place)
    panels = [source for source in sources if source.statistics != "none"] or sources
    columns = min(2, len(panels))
    bands = -(-len(panels) // columns)
    with style.letters():
        figure, grid = plt.subplots(
            bands,
            columns,
            figsize=(style.WIDTH, _HEIGHT * bands + 0.8),
            squeeze=False,
            layout="constrained",
        )
        axes = list(grid.flat)
        for axis, source in zip(axes, panels, strict=False):
            # Norms without batch statistics stand beside the running ones, as in all tables.
            beside = {source, Source("none")} if source.statistics == "running" else {source}
            _panel(axis, [s for s in entries if s.source in beside], source, runs, controls)
        for axis in axes[len(panels) :]:
            axis.axis("off")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
        return style.png(figure)


def _panel(
    axis: Axes,
    entries: Sequence[Entry],
    source: Source,
    runs: Sequence[Run],
    controls: Sequence[Run],
) -> None:
    what = measure(entries[0].metric)
    for entry in entries:
        mine = [run for run in runs if run[0].norm == entry.norm]
        if entry.norm == REFERENCE:
            _reference(axis, entry, mine, controls)
            continue
        found = what.scale * scores(mine, entry.source, entry)
        marker = _MARKERS[NORMS.index(entry.norm) % len(_MARKERS)]
        colour = style.line_style(entry.norm)["color"]
        axis.plot(found[:, 0], found[:, 1], ".", color=colour, markersize=4, alpha=0.6)
        axis.plot(*found.mean(axis=0), marker, color=colour, markersize=7, label=entry.norm)
    axis.set_title(f"statistics: {source.name}")
    axis.set_xlabel(f"clean {what.label}")
    axis.set_ylabel(f"{entries[0].attack} {strength(entries[0].epsilon)}: {what.label}")
    axis.grid(alpha=0.3)


def _reference(axis: Axes, entry: Entry, runs: Sequence[Run], controls: Sequence[Run]) -> None:
    """Draws batch norm's runs, the controls hollow, and the line through them."""
    scale = measure(entry.metric).scale
    main, others = (scale * scores(some, entry.source, entry) for some in (runs, controls))
    axis.plot(*main.T, "o", color="black", markersize=5, label=REFERENCE)
    axis.plot(*others.T, "o", color="black", mfc="none", markersize=5, label="batch, controls")
    line = line_of(entry, [*runs, *controls])
    if line is not None:
        ends = np.array([line.clean.min(), line.clean.max()])
        axis.plot(scale * ends, scale * line.at(ends), color="black", linewidth=1.2)
