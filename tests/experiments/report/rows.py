"""Rows of a measurement that the tests make up."""

import dataclasses

from experiments.results import Row

SOURCES = (("running", ""), ("batch", "joint"))

CLEAN = Row("digits", "batch", 0, "running", "clean", 0.0, "accuracy", 0.95, 100, 0.9, 0.99)


def row_of(norm, seed, value, statistics="running", *, attack="clean", epsilon=0.0, **more):
    defaults = {"n": 500, "ci_low": value - 0.02, "ci_high": value + 0.03, "metric": "accuracy"}
    what = {**defaults, **more}
    return Row("digits", norm, seed, statistics, attack, epsilon, value=value, **what)


def convergence_rows(metric="accuracy", norms=("batch", "stein")):
    base = dataclasses.replace(
        CLEAN, attack="convergence", epsilon=8 / 255, norm_order="linf", metric=metric
    )
    for norm in norms:
        for statistics, threat in SOURCES:
            for steps in (10, 1, 5):
                value = 0.5 / steps + 0.1 * (statistics == "batch")
                about = {"norm": norm, "statistics": statistics, "threat_model": threat}
                yield dataclasses.replace(base, steps=steps, n=64, value=value, **about)
