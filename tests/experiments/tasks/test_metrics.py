"""Tallies and intervals against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import jaccard_score

from experiments.tasks.metrics import auc, mean_iou, micro_jaccard
from steinnorm.attacks.intervals import Tally, bootstrap_intervals, wilson_interval


def bootstrap_interval(statistic, examples, **settings):
    """Of a single number."""
    numbers = bootstrap_intervals(lambda index: {"it": statistic(index)}, examples, **settings)
    return numbers["it"]


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


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=15))
def test_auc_is_the_share_of_pairs_in_order_with_ties_one_half(examples):
    scores, positive = np.array(examples).T
    pairs = [
        (high > low) + 0.5 * (high == low)
        for high in scores[positive == 1]
        for low in scores[positive == 0]
    ]
    found = auc(scores.astype(np.float32), positive)
    if pairs:
        assert found == pytest.approx(np.mean(pairs), abs=1e-12)
    else:
        assert math.isnan(found)


def test_auc_of_scores_that_are_not_finite_or_of_nothing_is_not_a_number():
    assert math.isnan(auc(np.array([0.0, np.nan, 1.0]), np.array([0, 1, 1])))
    assert math.isnan(auc(np.array([0.0, np.inf, 1.0]), np.array([0, 1, 1])))
    assert math.isnan(auc(np.zeros(0), np.zeros(0, int)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_mean_iou_is_the_mean_over_the_classes_of_the_truth(pixels):
    truth, prediction = np.array(pixels).T
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (truth, prediction), 1)
    expected = jaccard_score(truth, prediction, labels=np.unique(truth), average="macro")
    assert mean_iou(confusion) == pytest.approx(expected, abs=1e-12)


def test_mean_iou_of_no_pixels_is_not_a_number():
    assert math.isnan(mean_iou(np.zeros((3, 3), int)))


def test_micro_jaccard_weighs_batches_alike():
    # 3 of 4 pixels, 3 of 4, then 0 of 4 in a batch of its own: 6 / 10 and 0.
    assert micro_jaccard(np.array([3, 3, 0]), np.array([4, 4, 4]), 2) == pytest.approx(0.3)
    assert micro_jaccard(np.array([4]), np.array([4]), 16) == 1
    assert math.isnan(micro_jaccard(np.zeros(0), np.zeros(0), 16))


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        values = generator.normal(size=40)
        low, high = bootstrap_interval(
            lambda index, v=values: v[index].mean(), 40, resamples=100, confidence=0.8
        )
        assert low < values.mean() < high
        covered.append(low < 0 < high)
    assert 0.7 < np.mean(covered) < 0.9  # 0.8, with a standard error of 0.03


def test_bootstrap_interval_is_that_of_normal_theory_for_a_mean():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(lambda index: values[index].mean(), 400, resamples=2000)
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_bootstrap_interval_depends_on_its_seed_only_and_resamples_whole_sets():
    values, sizes = np.arange(30.0), []

    def mean(index):
        sizes.append((len(index), index.min() >= 0, index.max() < 30))
        return values[index].mean()

    first = bootstrap_interval(mean, 30, seed=1, resamples=50)
    assert set(sizes) == {(30, True, True)}
    assert len(sizes) == 50
    assert bootstrap_interval(mean, 30, seed=1, resamples=50) == first
    assert bootstrap_interval(mean, 30, seed=2, resamples=50) != first


def test_bootstrap_interval_leaves_out_what_is_not_a_number():
    numbers = iter([math.nan, 1.0, 2.0, math.nan, math.inf, 3.0])
    low, high = bootstrap_interval(lambda index: next(numbers), 5, resamples=6, confidence=0.5)
    assert (low, high) == (1.5, 2.5)
    assert np.isnan(bootstrap_interval(lambda index: math.nan, 5, resamples=3)).all()
    assert bootstrap_intervals(lambda index: {"it": 1.0}, 0) == {}


def test_bootstrap_intervals_of_several_numbers_are_those_of_each():
    values = np.random.default_rng(0).normal(size=50)
    both = bootstrap_intervals(lambda i: {"mean": values[i].mean(), "top": values[i].max()}, 50)
    assert both["mean"] == bootstrap_interval(lambda i: values[i].mean(), 50)
    assert both["top"] == bootstrap_interval(lambda i: values[i].max(), 50)
