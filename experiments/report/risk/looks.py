"""What the figures of the risks share: colours of the estimators, and the line at 1."""

from collections.abc import Sequence

from matplotlib.axes import Axes

EQUAL = 1.0
"""Where an estimator is as good as the sample statistics."""

# Okabe & Ito's colours, as for the norms where there is one.
_LOOKS: dict[str, tuple[str, object]] = {
    "james_stein": ("#000000", "-"),
    "tr S - 2 lmax": ("#E69F00", (0, (5, 2))),
    "stein": ("#D55E00", "-"),
    "stein, fraction 0.5": ("#D55E00", (0, (2, 2))),
    "jsnorm": ("#009E73", (0, (6, 1.5, 1, 1.5))),
    "ridge": ("#56B4E9", (0, (1, 1))),
    "lasso": ("#0072B2", (0, (8, 2))),
    "moderated": ("#0072B2", (0, (5, 1))),
    "toward_running": ("#CC79A7", "-"),
}


def draw_line(  # noqa: PLR0917
    axis: Axes,
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    label: str | None = "",
    thin: bool = False,
) -> None:
    """Draws an estimator's line in its colour.

    Args:
      axis: where.
      name: of the estimator.
      x: places.
      y: values.
      label: in the legend; the name by default, None for none.
      thin: where many lines share a panel.
    """
    colour, dashes = _LOOKS[name]
    axis.plot(
        x,
        y,
        color=colour,
        linestyle=dashes,
        linewidth=1.1 if thin else 1.8,
        marker="" if thin else ".",
        label=name if label == "" else label,
    )


def finish(axis: Axes, *, line: bool = True) -> None:
    """Draws the grid and, where the axis is of ratios, the line at 1."""
    axis.grid(alpha=0.3)
    if line:
        axis.axhline(EQUAL, color="#777777", linewidth=0.8, zorder=1)
