"""The interval of a lead, against SciPy, by hand, and by how often it is wrong."""

import numpy as np
import pytest
from scipy import stats

from steinnorm.attacks.checks.paired import lead, ratio, student_quantile


@pytest.mark.parametrize("confidence", [0.95, 0.975])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 99, 127, 500, 501, 5000])
def test_quantiles_are_students(confidence, freedom):
    expected = stats.t.ppf(confidence, freedom)
    assert student_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-12)


def labels(more, fewer, examples=100):
    gained = np.zeros(examples)
    gained[:more], gained[more : more + fewer] = 1, -1
    return gained, np.ones(examples)


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (3, 0), (5, 0), (12, 4), (2, 9)])
def test_with_one_label_each_it_is_students_interval_of_the_mean(more, fewer):
    found = lead(*labels(more, fewer), limit=0.01)
    low = stats.ttest_1samp(labels(more, fewer)[0], 0, alternative="greater")
    expected = low.confidence_interval(0.95).low if more + fewer else 0.0
    assert found.low == pytest.approx(expected)
    assert (found.more, found.fewer) == (more, fewer)
    assert found.value == pytest.approx((more - fewer) / 100)


@pytest.mark.parametrize(("more", "examples"), [(0, 100), (1, 100), (4, 100), (30, 128), (9, 9)])
def test_an_attack_that_holds_the_other_has_the_exact_interval_of_a_share(more, examples):
    found = lead(*labels(more, 0, examples), limit=0.01, nested=True)
    exact = stats.binomtest(more, examples, alternative="greater").proportion_ci(0.95)
    assert found.low == pytest.approx(exact.low, abs=1e-12)


def test_where_something_is_lost_after_all_the_interval_is_students():
    assert lead(*labels(9, 1), limit=0.01, nested=True) == lead(*labels(9, 1), limit=0.01)


@pytest.mark.parametrize(("fewer", "nested"), [(0, False), (1, False), (4, False), (0, True)])
def test_what_would_have_been_enough_is_the_first_that_fails(fewer, nested):
    def found(more):
        return lead(*labels(more, fewer), limit=0.01, nested=nested)

    enough = round(100 * found(0).enough) + fewer
    assert found(enough).low > 0.01
    assert found(enough - 1).low <= 0.01
    assert f"lead of +{enough - fewer}.0 points would have been enough" in found(0).words(0.01)


def test_pixels_of_an_image_fall_together():
    # One image of twenty lost all of its thousand pixels: by pixels that would be significant.
    gained, known = np.zeros(20), np.full(20, 1000)
    gained[0] = 1000
    found = lead(gained, known, limit=0.01)
    assert found.value == pytest.approx(0.05)
    assert found.low < 0 < found.enough
    # Where all images lose the same, there is no doubt.
    assert lead(np.full(20, 50), known, limit=0.01).low == pytest.approx(0.05)


def test_images_with_more_known_pixels_count_for_more():
    gained, known = np.array([10.0, 0.0, 3.0]), np.array([100.0, 300.0, 50.0])
    share, error = ratio(gained, known)
    assert share == pytest.approx(13 / 450)
    residual = gained - share * known
    assert error == pytest.approx(np.std(residual - residual.mean(), ddof=1) / np.sqrt(3) / 150)
    # An image of void pixels alone is no example.
    with_void = lead(np.append(gained, 0), np.append(known, 0), limit=0.01)
    assert with_void == lead(gained, known, limit=0.01)
    with pytest.raises(ValueError, match="needs two"):
        lead(np.array([1.0, 0.0]), np.array([1, 0]), limit=0.01)


def rate(more, fewer, examples, nested=False, draws=4000):
    """How often a comparison fails with these true shares."""
    table = np.random.default_rng(0).multinomial(
        examples, [more, fewer, 1 - more - fewer], size=draws
    )
    kinds, counts = np.unique(table[:, :2], axis=0, return_counts=True)
    found = [lead(*labels(*kind, examples), limit=0.01, nested=nested) for kind in kinds]
    failed = [each.low > 0.01 for each in found]
    return float(np.sum(counts * np.array(failed)) / draws)


@pytest.mark.parametrize("examples", [100, 128])
def test_false_alarms_are_rare_and_true_leads_are_found(examples):
    """The numbers of the module's docstring."""
    assert rate(0.01, 0.01, examples) < 0.01
    assert rate(0.1, 0.1, examples) < 0.05
    assert rate(0.02, 0.01, examples) < 0.06  # truly at the limit
    assert rate(0.05, 0.0, examples) == pytest.approx({100: 0.56, 128: 0.77}[examples], abs=0.03)
    assert rate(0.1, 0.0, examples) > 0.95
    assert rate(0.01, 0.0, examples, nested=True) < 0.05  # truly at the limit
    exact = rate(0.05, 0.0, examples, nested=True)
    assert exact == pytest.approx({100: 0.74, 128: 0.88}[examples], abs=0.03)
