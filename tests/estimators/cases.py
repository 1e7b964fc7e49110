"""The table of estimators and their inputs: a new estimator is one new row.

The truth is tests/reference.py (float64 NumPy, written from the equations).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from steinnorm import estimators
from tests import reference

ALL_SIZES = (1, 2, 3, 4, 17, 512, 4096)
CHANNEL_BY_CHANNEL = (1, 17, 4096)  # for rules that treat each channel on its own


class Row(NamedTuple):
    """One estimator with one choice of arguments.

    `arguments(C)` are the positional arguments after the first. `relative` compares with the
    result itself, channel by channel; without it with the input too (rules that subtract).
    """

    name: str
    kind: str  # of the first argument: "mean" (any sign) or "variance" (>= 0)
    arguments: Callable[[int], tuple[Any, ...]] = lambda channels: ()
    kwargs: Callable[[int], dict[str, Any]] = lambda channels: {}
    label: str = ""
    sizes: tuple[int, ...] = (5,)
    relative: bool = True
    identity_up_to: int = 0  # the largest C for which the result is the input
    without: tuple[str, ...] = ()  # scenarios that have no finite answer
    smooth: bool = True  # no kinks in the middle of the data

    @property
    def curved(self) -> bool:
        return "ridge" not in self.name and "lasso" not in self.name

    @property
    def id(self) -> str:
        return self.name + (f"-{self.label}" if self.label else "")

    def function(self, x: Any) -> jax.Array:
        return self._call(getattr(estimators, self.name), x)

    def reference(self, x: np.ndarray) -> np.ndarray:
        return self._call(getattr(reference, self.name), np.asarray(x))

    def _call(self, function: Callable, x: Any) -> Any:
        channels = x.shape[-1]
        return function(x, *self.arguments(channels), **self.kwargs(channels))


def _counts(channels: int) -> np.ndarray:
    return (2.0 + np.arange(channels) % 7).astype(np.float32)


def _scattered(channels: int) -> np.ndarray:
    return (0.25 + 0.125 * (np.arange(channels) % 5)).astype(np.float32)


ROWS = (
    Row("stein_mean", "mean", sizes=ALL_SIZES, identity_up_to=2),
    Row("stein_variance", "variance", lambda c: (32,), sizes=ALL_SIZES, identity_up_to=2),
    Row("stein_variance", "variance", lambda c: (2,), lambda c: {"fraction": 0.5}, "half"),
    Row("stein_variance", "variance", lambda c: (_counts(c),), label="counts", identity_up_to=2),
    Row("jsnorm_mean", "mean", sizes=(2, 3, 512, 4096), identity_up_to=2),
    Row("jsnorm_variance", "variance", sizes=(2, 3, 512, 4096), identity_up_to=2),
    Row(
        "ridge_mean", "mean", lambda c: (32,), lambda c: {"strength": 0.5}, sizes=CHANNEL_BY_CHANNEL
    ),
    Row("ridge_mean", "mean", lambda c: (_counts(c),), lambda c: {"strength": 0.5}, "counts"),
    Row("ridge_variance", "variance", kwargs=lambda c: {"strength": 0.5}, sizes=CHANNEL_BY_CHANNEL),
    Row(
        "lasso_mean",
        "mean",
        lambda c: (32,),
        lambda c: {"strength": 8.0},
        sizes=CHANNEL_BY_CHANNEL,
        relative=False,
        smooth=False,
    ),
    Row(
        "lasso_mean",
        "mean",
        lambda c: (_counts(c),),
        lambda c: {"strength": 1.0},
        "counts",
        relative=False,
        smooth=False,
    ),
    Row(
        "lasso_variance",
        "variance",
        kwargs=lambda c: {"strength": 1.0},
        sizes=CHANNEL_BY_CHANNEL,
        relative=False,
        smooth=False,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        sizes=ALL_SIZES,
        relative=False,
        identity_up_to=2,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (_scattered(c),),
        lambda c: {"target": 0.5},
        "number",
        relative=False,
        identity_up_to=2,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        lambda c: {"target": _scattered(c)},
        "array",
        relative=False,
        identity_up_to=2,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        lambda c: {"target": "mean"},
        "average",
        sizes=ALL_SIZES,
        relative=False,
        identity_up_to=3,
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (0.25,),
        lambda c: {"positive_part": False},
        "plain",
        relative=False,
        identity_up_to=2,
        without=("tiny",),  # the plain rule has a pole beside the target
    ),
    Row(
        "james_stein",
        "mean",
        lambda c: (_scattered(c),),
        lambda c: {"effective_dimension": max(1.0, 0.8 * c)},
        "correlated",
        relative=False,
        identity_up_to=2,
    ),
    Row(
        "moderated_variance",
        "variance",
        lambda c: (31,),
        sizes=(1, 3, 512, 4096),  # seconds to compile
        identity_up_to=2,
    ),
    Row("moderated_variance", "variance", lambda c: (_counts(c),), label="degrees"),
)
ROW = {row.id: row for row in ROWS}
assert len(ROW) == len(ROWS)
MAIN_ROWS = tuple(row for row in ROWS if not row.label)

main_rows = pytest.mark.parametrize("row", MAIN_ROWS, ids=lambda row: row.id)


def scenarios(row: Row, channels: int) -> dict[str, np.ndarray]:
    """Named (C,) inputs, ordinary and singular, the same for every dtype (float32 numbers)."""
    rng = np.random.default_rng(channels)
    normal, wide = rng.normal(size=channels), rng.uniform(-8, 8, size=channels)
    ones, first = np.ones(channels), np.arange(channels) == 0
    if row.kind == "mean":
        cases = {
            "ordinary": normal,
            "offset": 3 + normal,
            "zeros": 0 * ones,
            "one_not_zero": 2.0 * first,
            "one_zero": normal * ~first,
            "equal": 1.2 * ones,
            "alternating": np.where(np.arange(channels) % 2, -1.0, 1.0),
            "mixed": np.sign(normal) * 10**wide,
            "one_dominates": np.where(first, 1e6, normal),
            "tiny": 1e-30 * normal,
            "huge": 1e30 * normal,
        }
    else:
        chi_square = rng.chisquare(31, size=channels) / 31
        cases = {
            "ordinary": chi_square,
            "scattered": chi_square * np.exp(normal),
            "1.44": 1.44 * ones,
            "1e-8": 1e-8 * ones,
            "1e8": 1e8 * ones,
            "nearly_equal": 1.44 + 1e-3 * normal,
            "zeros": 0 * ones,
            "one_zero": chi_square * ~first,
            "one_not_zero": 2.0 * first,
            "half_zero": chi_square * (np.arange(channels) % 2),
            "mixed": 10**wide,
            "one_dominates": np.where(first, 1e6, chi_square),
            "tiny": 1e-30 * chi_square,
            "huge": 1e30 * chi_square,
        }
    return {k: v.astype(np.float32) for k, v in cases.items() if k not in row.without}
