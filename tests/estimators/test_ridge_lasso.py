"""The strength of the ridge and lasso rules."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steinnorm import estimators
from tests.estimators.cases import ROW, scenarios


@pytest.mark.parametrize("strength", [-1e-3, -2.0, math.nan])
@pytest.mark.parametrize("name", ["ridge_mean", "ridge_variance", "lasso_mean", "lasso_variance"])
def test_negative_strength(name: str, strength: float) -> None:
    row = ROW[name]
    with pytest.raises(ValueError, match=f"strength.*{strength}"):
        getattr(estimators, name)(np.ones(4, np.float32), *row.arguments(4), strength=strength)


@pytest.mark.parametrize("name", ["ridge_mean", "ridge_variance", "lasso_mean", "lasso_variance"])
def test_no_strength_is_the_identity(name: str) -> None:
    row = ROW[name]
    x = scenarios(row, 17)["ordinary"]
    value = getattr(estimators, name)(x, *row.arguments(17), strength=0.0)
    np.testing.assert_array_equal(value, x)
