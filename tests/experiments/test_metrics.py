"""Tallies and intervals against closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from experiments.metrics import Tally, wilson_interval


def test_tallies_of_unequal_batches_merge_exactly():
    # Averaging the two shares would give 0.5.
    merged = Tally.of(np.array([True])).merge(Tally.of(np.zeros(9, bool)))
    assert merged == Tally(1, 10)
    assert merged.share == 0.1
    assert math.isnan(Tally().share)
    with pytest.raises(TypeError, match="boolean"):
        Tally.of(np.array([0.3, 0.7]))


@pytest.mark.parametrize("hits", [0, 1, 250, 499, 500])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_interval_is_scipys(hits, confidence):
    expected = binomtest(hits, 500).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(Tally(hits, 500), confidence)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_interval_of_nothing_and_of_nonsense():
    assert wilson_interval(Tally()) == (0, 1)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(Tally(1, 2), 1.0)
