"""A plot of accuracy against radius; importing this module needs matplotlib."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from steinnorm.attacks.robustness.names import WRITER
from steinnorm.attacks.robustness.rows import NONE, WORST, Row

# Okabe & Ito's colours, which colour-blind readers can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX*"


def accuracy_plot(rows: Sequence[Row]) -> bytes:
    """Returns a plot as PNG: a line with intervals for each attack, starting at radius 0.

    Args:
      rows: rows of an evaluation; noises are left out, because their strength is no radius.
    """
    clean = next(row for row in rows if row.attack == NONE)
    names = list(dict.fromkeys(row.attack for row in rows if row.norm_order))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        line = [clean, *sorted((r for r in rows if r.attack == name), key=lambda r: r.epsilon)]
        worst = name == WORST
        axes.errorbar(
            [row.epsilon for row in line],
            [100 * row.value for row in line],
            yerr=[
                [100 * max(0.0, row.value - row.ci_low) for row in line],
                [100 * max(0.0, row.ci_high - row.value) for row in line],
            ],
            label=name,
            color="#000000" if worst else _COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
            linewidth=2.6 if worst else 1.4,
            zorder=2 if worst else 3,  # lines on top of it stay visible
            capsize=3,
        )
    if not names:
        axes.plot([0.0], [100 * clean.value], "o", color="#000000", label=NONE)
    order = {"linf": "l∞", "l2": "l2"}.get(next((r.norm_order for r in rows if r.norm_order), ""))
    axes.set_xlabel(f"radius of the {order} ball" if order else "radius")
    kind = "pixel accuracy" if clean.metric == "pixel_accuracy" else "accuracy"
    axes.set_ylabel(f"{kind} (%), {clean.n} examples")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return png(figure)


def png(figure: Figure) -> bytes:
    """Returns a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": WRITER})
    return buffer.getvalue()
