"""Runs whose seeds draw their own training, validation and test parts of one data set."""

import math
from collections.abc import Mapping
from typing import Any

SPLIT_SEED = "data.split_seed"
"""The setting that says which parts are drawn."""


def test_per_training(settings: Mapping[str, Any], n: int) -> float | None:
    """Returns test examples per training example where ``split_seed`` draws both from one set.

    Args:
      settings: of an experiment, as ``config.json`` holds them.
      n: test examples.

    Returns:
      The ratio; None where the test part is the same for every ``split_seed``.
    """
    data = settings.get("data") or {}
    if data.get("kind") not in ("digits", "volumes"):
        return None
    if data["train_examples"] is not None:
        return float(n / data["train_examples"])
    test = data["test_share"]
    return float(test / (1 - test - data["validation_share"]))


def standard_error(deviation: float, seeds: int, ratio: float | None) -> float:
    """Returns the standard error of a mean over seeds.

    Seeds that draw their parts from one data set train on much the same examples, so that their
    results are not independent, and the usual standard error is too small.  Nadeau & Bengio (2003),
    "Inference for the Generalization Error", section 4.2, add test examples per training example to
    1 / seeds; the examples that a run validates on count as neither.

    Args:
      deviation: between the seeds.
      seeds: how many.
      ratio: test examples per training example; None where seeds share their parts.
    """
    return deviation * math.sqrt(1 / seeds + (ratio or 0.0))


def parts_note(ratio: float | None) -> str:
    """Returns what a reader should know where seeds drew their own parts.

    Args:
      ratio: as for ``standard_error``.
    """
    if ratio is None:
        return "Each seed drew its own training and validation parts; the test part is the same."
    return (
        "Each seed drew its own training, validation and test parts. Intervals over seeds count "
        f"that they overlap (Nadeau & Bengio 2003; {ratio:.2f} test examples per training example)."
    )
