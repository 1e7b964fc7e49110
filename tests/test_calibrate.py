"""The pass that calibrates: exact over batches of any sizes; what cannot be calibrated."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from steinnorm import Calibration, RunningStatistics, linen, stein_batch_norm
from steinnorm import nnx as stein_nnx
from steinnorm._calibration import Recorder
from tests import reference
from tests.calibrations import (
    CHANNELS,
    X,
    assert_calibration,
    batches,
    counted,
    norm,
    of_collection,
    of_layer,
)

pytestmark = pytest.mark.filterwarnings("ignore:a calibration from:UserWarning")


def finished(recorder):
    return recorder.calibrations({"a": np.zeros(CHANNELS, np.float32)})["a"]


class TestSums:
    """What is counted in pieces is what one pass over everything counts."""

    @given(
        sizes=st.lists(st.sampled_from([1, 4, 20]), min_size=2, max_size=6),
        offset=st.sampled_from([0.0, -30.0, 1e4]),
        masked=st.booleans(),
    )
    def test_batches_of_any_sizes(self, sizes, offset, masked):
        x = (X[: sum(sizes)].astype(np.float64) + offset).astype(np.float32)
        mask = np.random.default_rng(0).random(x.shape) < 0.6 if masked else None
        recorder = Recorder("")
        for start, stop in itertools.pairwise([0, *np.cumsum(sizes)]):
            part = None if mask is None else mask[start:stop]
            recorder.add({"a": counted(x[start:stop], part)})
        want = reference.calibration(x, mask=mask)
        assert_calibration(finished(recorder), want, 1e-5)

    def test_batches_that_have_nothing_in_common(self):
        """Sorted data: the spread between batches is part of the spread between examples."""
        x = np.concatenate([X, X + 100, X * 5 - 300]).astype(np.float32)
        recorder = Recorder("")
        for part in np.split(x, 3):
            recorder.add({"a": counted(part)})
        found = finished(recorder)
        assert_calibration(found, reference.calibration(x), 1e-4)

    def test_constant_channels_have_no_spread(self):
        x = X.copy()
        x[..., 1] = 0.1
        x[..., 2] = 1e4 / 3
        recorder = Recorder("")
        for part in batches(x):
            recorder.add({"a": counted(part)})
        found = finished(recorder)
        for values in (found.variance, found.mean_spread, found.variance_spread):
            np.testing.assert_array_equal(np.asarray(values) == 0, [False, True, True, False])
        np.testing.assert_allclose(found.mean[1:3], [0.1, 1e4 / 3], rtol=1e-6)

    def test_channels_without_a_value(self):
        mask = np.arange(CHANNELS) != 3
        recorder = Recorder("")
        recorder.add({"a": counted(np.where(mask, X, np.nan), np.broadcast_to(mask, X.shape))})
        found = finished(recorder)
        want = reference.calibration(X)
        assert_calibration([a[:3] for a in found], [a[:3] for a in want])
        np.testing.assert_array_equal(found.variance[3], 0)


class Half(nnx.Module):
    def __init__(self):
        self.used, self.unused = norm(), norm()

    def __call__(self, x):
        return self.used(x)


class LinenHalf(nn.Module):
    @nn.compact
    def __call__(self, x, both):
        x = linen.SteinBatchNorm(use_running_average=True, name="used")(x)
        if both:
            x = linen.SteinBatchNorm(use_running_average=True, name="unused")(x)
        return x


def calibrate_linen(x=X, **options):
    net = linen.SteinBatchNorm(use_running_average=True, **options)
    variables = net.init(jax.random.key(0), X)
    return linen.calibrate(net, variables, x)


def calibrate_half_of_linen():
    variables = LinenHalf().init(jax.random.key(0), X, both=True)
    return linen.calibrate(LinenHalf(), variables, [X], both=False)


NOT_FINITE = [X[:60], np.where(np.arange(CHANNELS) == 1, np.inf, X)]


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: stein_nnx.calibrate(X, [X]), TypeError, "must be a flax.nnx.Module; got nd"),
            (
                lambda: stein_nnx.calibrate(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), [X]),
                ValueError,
                r"BatchNorm holds no SteinBatchNorm to calibrate; convert\(model\)",
            ),
            (lambda: stein_nnx.calibrate(Half(), [X]), ValueError, "no batch reached 'unused'"),
            (lambda: stein_nnx.calibrate(norm(), []), ValueError, "batches is empty"),
            (lambda: stein_nnx.calibrate(norm(), [X[:0]]), ValueError, "no batch reached"),
            (lambda: stein_nnx.calibrate(norm(), [X[:1]]), ValueError, "at least two examples"),
            (
                lambda: stein_nnx.calibrate(nnx.Sequential(norm()), NOT_FINITE),
                ValueError,
                "inputs of 'layers/0' in batch 2 are not finite",
            ),
            (lambda: counted(X * 1j), TypeError, "real inputs; got dtype complex64"),
            (calibrate_half_of_linen, ValueError, "no batch reached 'unused'"),
            (lambda: calibrate_linen([]), ValueError, "batches is empty"),
            (lambda: calibrate_linen([X[:1]]), ValueError, "at least two examples"),
            (lambda: calibrate_linen(NOT_FINITE), ValueError, "the model in batch 2 are not"),
            (
                lambda: linen.calibrate(nn.Dense(3), nn.Dense(3).init(jax.random.key(0), X), [X]),
                ValueError,
                "calls no SteinBatchNorm",
            ),
        ],
    )
    def test_what_cannot_be_calibrated(self, call, error, message):
        with pytest.raises(error, match=message):
            call()

    @pytest.mark.parametrize("kind", ["calibrated", "calibrated_streams"])
    def test_layers_that_are_not_calibrated(self, kind):
        layer = norm(test_statistics=kind)
        assert layer(X).shape == X.shape  # training does not need it
        with pytest.raises(ValueError, match=r"model = steinnorm.nnx.calibrate\(model"):
            nnx.view(layer, use_running_average=True)(X)
        net = linen.SteinBatchNorm(use_running_average=True, test_statistics=kind)
        with pytest.raises(ValueError, match=r"variables = steinnorm.linen.calibrate\(net.apply"):
            net.apply(net.init(jax.random.key(0), X), X)

    def test_few_examples_warn(self):
        with pytest.warns(UserWarning, match=r"from 99 examples is rough: below 100 .* 14 %"):
            stein_nnx.calibrate(norm(), [X[:99]])
        with pytest.warns(UserWarning, match="from 50 examples"):
            calibrate_linen([X[:50]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stein_nnx.calibrate(norm(), [X[:60], X[60:100]])


def test_values_by_hand_are_those_of_the_pure_function():
    layer = stein_nnx.calibrate(norm(), [X])
    view = nnx.view(layer, use_running_average=True, test_statistics="calibrated")
    known = Calibration(*of_layer(layer))
    got = stein_batch_norm(
        X[:2],
        layer.scale[...],
        layer.bias[...],
        RunningStatistics(layer.mean[...], layer.var[...]),
        use_running_average=True,
        test_statistics="calibrated",
        calibration=known,
    )
    np.testing.assert_array_equal(view(X[:2]), got.y)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("front_end", ["nnx", "linen"])
def test_statistics_of_few_digits_round_what_is_measured_and_no_more(front_end, dtype):
    """A model cast for inference: what is counted is as exact as ever."""
    x = (np.random.default_rng(0).normal(100, 5, X.shape)).astype(np.float32)
    means, variances = np.full(CHANNELS, 100.0), np.full(CHANNELS, 25.0)
    if front_end == "nnx":
        layer = norm()
        layer.mean[...], layer.var[...] = (jnp.float32(a) for a in (means, variances))
        cast = jax.tree.map(lambda a: a.astype(dtype), nnx.state(layer))
        nnx.update(layer, cast)
        with jax.numpy_dtype_promotion("standard"):  # Flax's layers need it there too
            found = of_layer(stein_nnx.calibrate(layer, batches(x)))
    else:
        net = linen.SteinBatchNorm(use_running_average=True)
        given = net.init(jax.random.key(0), x)
        given["batch_stats"] = {
            "mean": jnp.asarray(means, dtype),
            "var": jnp.asarray(variances, dtype),
        }
        found = of_collection(linen.calibrate(net, given, batches(x))["calibration"])
    assert {a.dtype for a in found} == {jnp.dtype(dtype)}
    want = reference.calibration(x)
    assert_calibration([np.asarray(a, np.float64) for a in found], want, 1e-2)
