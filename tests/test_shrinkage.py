"""The shrinkages: against the reference, by name, combined and written by a user."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steinnorm
from steinnorm import shrinkage as rules
from tests import reference

# Eager, each of its operations would be compiled by itself.
batch_statistics = jax.jit(steinnorm.batch_statistics, static_argnames="noise")
RUNNING = rules.RunningStatistics(
    jnp.array([0.1, -0.2, 0.3, 0.0, 1.0]), jnp.array([1.0, 1.5, 0.5, 2.0, 1.0])
)


def batch(seed=0, examples=12, spread=0.4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, 3, 5)) + spread * rng.normal(size=(examples, 1, 5))
    return x.astype(np.float32)


def apply(rule, statistics, running=RUNNING):
    return rule.mean(statistics, running), rule.variance(statistics, running)


@pytest.mark.parametrize("name", rules.NAMES)
def test_agrees_with_the_reference(name):
    x = batch()
    got = apply(rules.by_name(name), batch_statistics(x, noise=True))
    want = reference.shrink(name, reference.batch_statistics(x), *RUNNING)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)


@pytest.mark.parametrize("name", ["ridge", "lasso"])
def test_strength_changes_the_result(name):
    x = batch()
    got = apply(rules.by_name(name, strength=0.5), batch_statistics(x))
    want = reference.shrink(name, reference.batch_statistics(x), strength=0.5)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)


class TestTowardRunning:
    def test_lies_between_the_batch_and_the_running_statistics(self):
        statistics = batch_statistics(batch(examples=4), noise=True)
        mean, variance = apply(rules.toward_running(), statistics)
        share = (mean - RUNNING.mean) / (statistics.mean - RUNNING.mean)
        assert 0 < share[0] < 1
        np.testing.assert_allclose(share, share[0], rtol=1e-3)  # one factor for all channels
        log_share = jnp.log(variance / RUNNING.variance) / jnp.log(
            statistics.variance / RUNNING.variance
        )
        assert np.all(log_share >= 0)
        assert np.all(log_share < 1)

    def test_more_examples_are_trusted_more(self):
        def kept(examples):
            statistics = batch_statistics(batch(examples=examples), noise=True)
            mean, _ = apply(rules.toward_running(), statistics)
            return float(((mean - RUNNING.mean) / (statistics.mean - RUNNING.mean))[0])

        assert kept(4) < kept(64) < kept(1024) <= 1

    def test_one_example_falls_back_to_the_batch_or_the_running_statistics(self):
        statistics = batch_statistics(batch(examples=1), noise=True)
        mean, variance = apply(rules.toward_running(), statistics)
        np.testing.assert_array_equal(mean, statistics.mean)
        np.testing.assert_array_equal(variance, statistics.variance)
        mean, variance = apply(rules.toward_running(single_example="running"), statistics)
        np.testing.assert_allclose(mean, RUNNING.mean)
        np.testing.assert_allclose(variance, RUNNING.variance, rtol=1e-6)

    def test_empty_running_statistics_fall_back_to_the_batch(self):
        empty = rules.RunningStatistics(jnp.zeros(5), jnp.ones(5))
        statistics = batch_statistics(batch(), noise=True)
        mean, variance = apply(rules.toward_running(), statistics, empty)
        np.testing.assert_array_equal(mean, statistics.mean)
        np.testing.assert_array_equal(variance, statistics.variance)

    def test_constant_channels_stay_finite(self):
        x = batch()
        x[:, :, 2] = 7.0
        mean, variance = apply(rules.toward_running(), batch_statistics(x, noise=True))
        assert np.all(np.isfinite(mean))
        assert np.all(np.isfinite(variance))
        assert mean[2] == 7.0
        assert variance[2] == 0.0

    @pytest.mark.parametrize("value", [0.0, 50.0])
    def test_a_dead_channel_does_not_decide_for_the_others(self, value):
        x = batch(examples=4)
        dead = x.copy()
        dead[:, :, 4] = value
        running = rules.RunningStatistics(RUNNING.mean, RUNNING.variance.at[4].set(1e-5))
        got = apply(rules.toward_running(), batch_statistics(dead, noise=True), running)
        alive = rules.RunningStatistics(RUNNING.mean[:4], RUNNING.variance[:4])
        want = apply(rules.toward_running(), batch_statistics(x[:, :, :4], noise=True), alive)
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours[:4], theirs, rtol=1e-5)

    def test_an_empty_channel_does_not_decide_for_the_others(self):
        x = batch(examples=4)
        mask = np.array([True, True, True, True, False])
        got = apply(rules.toward_running(), batch_statistics(x, mask=mask, noise=True))
        alive = rules.RunningStatistics(RUNNING.mean[:4], RUNNING.variance[:4])
        want = apply(rules.toward_running(), batch_statistics(x[:, :, :4], noise=True), alive)
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours[:4], theirs, rtol=1e-5)

    def test_asks_for_noise(self):
        with pytest.raises(ValueError, match="noise=True"):
            apply(rules.toward_running(), batch_statistics(batch()))


def test_combine_takes_each_rule_from_its_own():
    both = rules.combine(mean="stein", variance=rules.stein(fraction=0.5))
    statistics = batch_statistics(batch())
    mean, variance = apply(both, statistics)
    np.testing.assert_array_equal(mean, steinnorm.stein_mean(statistics.mean))
    np.testing.assert_array_equal(
        variance, steinnorm.stein_variance(statistics.variance, statistics.count, fraction=0.5)
    )
    assert not both.needs_noise
    assert rules.combine(mean="stein", variance="toward_running").needs_noise


def test_equal_arguments_give_equal_shrinkages():
    """Otherwise every new layer would be compiled anew."""
    assert rules.stein(0.5) == rules.stein(0.5)
    assert rules.stein(0.5) != rules.stein(1.0)
    assert hash(rules.by_name("ridge", strength=0.1)) == hash(rules.ridge(0.1))
    assert copy.deepcopy(rules.toward_running()) == rules.toward_running()
    for rule in (rules.stein(0.5), rules.none(), rules.toward_running("running")):
        assert pickle.loads(pickle.dumps(rule)) == rule


def test_a_changed_rule_is_copied_with_its_change():
    changed = dataclasses.replace(rules.stein(), variance=rules.none().variance)
    assert copy.deepcopy(changed) == changed
    assert copy.deepcopy(changed) != rules.stein()


def test_names_say_what_was_chosen():
    assert rules.stein().name == "stein"
    assert rules.stein(0.5).name == "stein(fraction=0.5)"
    assert rules.lasso(2.0).name == "lasso(strength=2.0)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: rules.by_name("stain"), ValueError, "none, stein, .*got 'stain'"),
        (lambda: rules.resolve(3), TypeError, "one of the names none, stein"),
        (lambda: rules.resolve(rules.stein), TypeError, r"Did you mean stein\(\)"),
        (lambda: rules.stein(0.0), ValueError, r"\(0, 1\].*got 0.0"),
        (lambda: rules.stein(1.5), ValueError, r"got 1.5"),
        (lambda: rules.ridge(-1.0), ValueError, "at least 0; got -1.0"),
        (lambda: rules.lasso(float("nan")), ValueError, "got nan"),
        (lambda: rules.toward_running("both"), ValueError, "batch, running; got 'both'"),
        (lambda: rules.by_name("none", strength=1), TypeError, "strength"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_statistics_survive_pickling():
    statistics = batch_statistics(batch())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(statistics)).mean, statistics.mean)
