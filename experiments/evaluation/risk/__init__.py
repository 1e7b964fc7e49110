"""Measures the risk of the estimators: exactly, by Monte Carlo, and on real feature maps."""
