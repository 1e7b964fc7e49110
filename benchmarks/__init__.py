"""Benchmarks: each answers the question in its first line."""
