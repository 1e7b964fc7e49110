"""How near a result is to the truth: tolerances by scale, differences for derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.estimators.cases import Row

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}


def assert_near(actual: Any, expected: np.ndarray, scale: np.ndarray, tolerance: float) -> None:
    actual, expected, scale = (np.asarray(a, np.float64) for a in (actual, expected, scale))
    error = np.abs(actual - expected)
    allowed = tolerance * np.abs(scale) + np.finfo(np.float32).tiny
    if not np.all(error <= allowed):
        worst = int(np.argmax(np.where(np.isnan(error), np.inf, error) / allowed))
        raise AssertionError(
            f"channel {worst}: got {actual.flat[worst]}, expected {expected.flat[worst]}; "
            f"error {error.flat[worst]:.2e} > {tolerance:g} of {np.abs(scale).flat[worst]:.2e}"
        )


def error_scale(row: Row, x: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(expected) if row.relative else np.abs(expected) + np.abs(x).astype(np.float64)


def directional_difference(function: Callable, x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Fourth-order central difference of a float64 function."""
    step = 1e-3

    def at(k: int) -> np.ndarray:
        return function(x + k * step * direction)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
