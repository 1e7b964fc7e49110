"""Writes what the measurement of risks found: tables and figures."""


def figures(rows):
    return {}


def markdown(*a):
    return "x"


def summary(rows):
    return []
