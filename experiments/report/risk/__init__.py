"""Writes what the measurement of risks found: tables in Markdown and figures."""

from experiments.report.risk.document import markdown, summary
from experiments.report.risk.figures import figures

__all__ = ["figures", "markdown", "summary"]
