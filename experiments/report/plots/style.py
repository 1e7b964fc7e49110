"""What all figures share: width, letters, colours of norms, and the way to PNG bytes."""

import io
import zlib
from contextlib import AbstractContextManager

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

WIDTH = 9.0
"""Inches.  Shown 900 pixels wide, as in a README, letters of 10 points are 14 pixels high."""

_PIXELS_PER_INCH = 180  # twice what is shown: sharp on screens of double density too

# Okabe & Ito's colours, told apart by colour-blind readers too; their yellow is too pale on white.
# Each norm has dashes of its own besides.
_COLOURS = {
    "batch": "#000000",
    "stein": "#D55E00",
    "stein_mean_only": "#6B2D00",
    "jsnorm": "#009E73",
    "ridge": "#56B4E9",
    "lasso": "#0072B2",
    "toward_running": "#CC79A7",
    "group": "#777777",
}
_OTHER_COLOURS = ("#E69F00", "#7A5195", "#3D7A3D")
_DASHES = {
    "stein_mean_only": (0, (3, 2)),
    "jsnorm": (0, (6, 1.5, 1, 1.5)),
    "ridge": (0, (1, 1)),
    "lasso": (0, (8, 2)),
    "group": (0, (4, 1, 1, 1, 1, 1)),
}
BALLS = {"linf": "l∞ ball", "l2": "l2 ball"}
"""The norm order of an attack's ball -> its name."""


def letters() -> AbstractContextManager[None]:
    """Returns a context in which figures are drawn with letters of the common sizes."""
    return plt.rc_context(
        {
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 10,
            "legend.fontsize": 9.5,
            "legend.title_fontsize": 10,
            "figure.titlesize": 11,
            "figure.labelsize": 10,
        }
    )


def line_style(norm: str) -> dict[str, object]:
    """Returns colour, dashes and width of a norm's line, as arguments of ``Axes.plot``."""
    # stein_mean_only often runs along stein, which is broad enough to be seen through its gaps.
    width = {"stein": 3.2, "stein_mean_only": 1.5}.get(norm, 1.8)
    spare = _OTHER_COLOURS[zlib.crc32(norm.encode()) % len(_OTHER_COLOURS)]
    return {
        "color": _COLOURS.get(norm, spare),
        "linestyle": _DASHES.get(norm, "-"),
        "linewidth": width,
    }


def png(figure: Figure) -> bytes:
    """Returns the figure as PNG bytes and closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PIXELS_PER_INCH)
    plt.close(figure)
    return buffer.getvalue()
