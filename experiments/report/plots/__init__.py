"""The plots of a report, as PNG bytes."""

from experiments.report.plots.against_clean import draw as against_clean
from experiments.report.plots.against_radius import accuracy
from experiments.report.plots.against_steps import convergence
from experiments.report.plots.content import strongest
from experiments.report.plots.factors import History, shrinkage

__all__ = ["History", "accuracy", "against_clean", "convergence", "shrinkage", "strongest"]
