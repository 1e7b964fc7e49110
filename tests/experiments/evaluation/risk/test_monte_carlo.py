"""Sampling and its intervals, where the answer is known."""

import numpy as np
import pytest

from experiments.evaluation.risk import correlated, exact, independent, perturbed
from experiments.evaluation.risk.monte_carlo import (
    dimension,
    draw_in_chunks,
    observe,
    paired_ratio,
    verdict,
)
from experiments.evaluation.risk.rules import MEANS, RUNNING, SAMPLE, VARIANCES, estimates
from steinnorm import batch_statistics


def losses(estimate, truth):
    return np.sum((estimate - truth) ** 2, axis=1)


def test_statistics_are_those_of_the_library():
    samples = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    found = observe(samples)
    for i, batch in enumerate(samples):
        known = batch_statistics(batch, noise=True)
        for name in ("mean", "variance", "mean_noise", "variance_noise"):
            np.testing.assert_allclose(found[name][i], getattr(known, name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5)])
def test_dimension_is_trace_over_largest_eigenvalue(shape):
    samples = np.random.default_rng(0).normal(size=shape)
    samples -= samples.mean(axis=1, keepdims=True)
    for one, found in zip(samples, dimension(samples), strict=True):
        eigenvalues = np.linalg.eigvalsh(np.cov(one, rowvar=False))
        assert found == pytest.approx(eigenvalues.sum() / eigenvalues[-1])


def test_chunks_are_put_together_in_order():
    sizes = []

    def make(size):
        sizes.append(size)
        return {"x": np.arange(size) + sum(sizes[:-1])}

    found = draw_in_chunks(7, 2_000_000, make)
    assert sizes == [2, 2, 2, 1]
    np.testing.assert_array_equal(found["x"], np.arange(7))


def test_ratio_has_its_interval():
    rng = np.random.default_rng(0)
    reference = rng.chisquare(4, size=2000)
    own = 0.5 * reference + rng.normal(size=2000)
    found = paired_ratio(own, reference)
    resampled = [
        own[i].mean() / reference[i].mean() for i in rng.integers(0, 2000, size=(2000, 2000))
    ]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_verdicts():
    assert verdict(0.8, 0.9) == "better"
    assert verdict(1.01, 1.02) == "worse"
    assert verdict(0.99, 1.01) == verdict(0.9995, 0.9998) == verdict(1, 1) == "tie"


def test_rules_have_their_known_risks():
    """James & Stein at the target: 2/C; the paper's rules where theory gives their risk."""
    draws, truth, variance = independent.point(16, 4, 0.0, 0.0, "zero average", 0, True)
    found = estimates("mean", draws, independent.past_of(16))
    own = losses(found[SAMPLE], truth)
    shrunk = paired_ratio(losses(found["james_stein, known noise"], truth), own)
    assert shrunk.value < 2 / 16  # the positive part is better still
    assert shrunk.value > 1 / 16
    by_paper = paired_ratio(losses(found["stein"], truth), own)
    known = exact.spread_rule_ratio(16, 0.0, 0.0, exact.paper_share(16))
    assert abs(by_paper.value - known) < 2 * (by_paper.high - by_paper.low)
    np.testing.assert_array_equal(
        found["known tr S - 2 lmax"], found["james_stein, known noise"]
    )  # independent and equal: tr S - 2 lmax is C - 2
    variances = estimates("variance", draws, independent.past_of(16))
    ratio = paired_ratio(losses(variances["stein"], variance), losses(variances[SAMPLE], variance))
    known = exact.variance_ratio(16, 4, 0.0, 1.0, reference="sample")
    assert abs(ratio.value - known) < 2 * (ratio.high - ratio.low)
    assert RUNNING not in found
    assert set(found) == set(MEANS) - {RUNNING}
    assert set(variances) == set(VARIANCES) - {RUNNING}


def test_true_means_have_the_asked_for_pattern_and_signal():
    for kind in independent.PATTERNS:
        draws, truth, variance = independent.point(16, 4, 3.0, 1.0, kind, 0, True)
        assert np.sum(truth**2) == pytest.approx(3 * np.sum(variance / 4))
        assert draws.known_dimension == pytest.approx(variance.sum() / variance.max())
    assert abs(independent.pattern("zero average", 16, 0).mean()) < 1e-12
    assert np.ptp(independent.pattern("equal", 16, 0)) == 0


@pytest.mark.parametrize("structure", correlated.STRUCTURES)
def test_correlations_are_correlations(structure):
    matrix = correlated.correlation(structure, 8, 0)
    np.testing.assert_allclose(np.diag(matrix), 1)
    np.testing.assert_allclose(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix)[0] > 0


def test_where_channels_are_correlated_james_stein_loses_and_the_correction_mends_it():
    rows = correlated.measure(0, True, lambda *_: None)
    shaped = [r for r in rows if r["structure"] == "equal 0.6" and r["direction"] == "leading"]
    worst = {r["estimator"]: r for r in shaped if r["signal"] == 3.0}
    assert worst["james_stein, known noise"]["verdict"] == "worse"
    assert worst["known tr S - 2 lmax"]["verdict"] == "tie"
    assert worst["known tr S - 2 lmax"]["ratio"] == 1  # tr S < 2 lmax: nothing is changed


@pytest.mark.parametrize("kind", perturbed.KINDS)
def test_perturbations_have_mean_zero_and_size_one(kind):
    drawn = perturbation = perturbed.perturbation(kind, (200_000,), np.random.default_rng(0))
    assert abs(drawn.mean()) < 0.02
    assert np.mean(np.square(perturbation, dtype=np.float64)) == pytest.approx(1, abs=0.05)
