"""Figures that stay open, to be looked at."""

import matplotlib.pyplot as plt
import pytest

from experiments.report.plots import style


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, still open; of few pixels, for what is in them is looked at."""
    drawn = []
    monkeypatch.setattr(style, "_PIXELS_PER_INCH", 100)
    close = plt.close
    monkeypatch.setattr(plt, "close", drawn.append)
    yield drawn
    for figure in drawn:
        close(figure)
