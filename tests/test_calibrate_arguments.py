"""Batches that calibrating cannot take are refused, with the remedy, by all front ends alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import linen
from steinnorm import nnx as stein_nnx
from tests import reference
from tests.front_ends import X, nnx_layer


def linen_calibrated(batches, apply=None):
    net = linen.SteinBatchNorm(use_running_average=True)
    variables = net.init(jax.random.key(0), X)
    return linen.calibrate(net if apply is None else apply(net), variables, batches)["calibration"]


def nnx_calibrated(batches, **options):
    return stein_nnx.calibrate(nnx_layer(), batches, **options)


CALIBRATE = {
    "linen": linen_calibrated,
    "linen apply": lambda batches: linen_calibrated(batches, lambda net: net.apply),
    "nnx": nnx_calibrated,
}


@pytest.mark.parametrize("calibrate", CALIBRATE.values(), ids=CALIBRATE)
class TestBatches:
    @pytest.mark.parametrize("array", [X, jnp.asarray(X)])
    def test_one_array_is_no_list_of_batches(self, calibrate, array):
        with pytest.raises(
            TypeError, match=r"an array of shape \(128, 4\).*pass a list of it: \[x"
        ):
            calibrate(array)

    @pytest.mark.parametrize(("wrong", "came"), [({"image": X}, "a dict"), (3, "an? int")])
    def test_nor_are_a_dictionary_and_a_number(self, calibrate, wrong, came):
        with pytest.raises(TypeError, match=f"must be an iterable of batches.*got {came}"):
            calibrate(wrong)

    @pytest.mark.parametrize(
        ("batch", "came"),
        [((X, np.zeros(128)), "a tuple of 2"), ([X], "a list of 1"), ({"x": X}, "dict")],
    )
    def test_a_batch_of_several_parts(self, calibrate, batch, came):
        with pytest.raises(TypeError, match=f"cannot take a batch, {came}, as its one") as error:
            calibrate([batch])
        assert "lambda" in str(error.value)
        assert "(x for x, *_ in loader)" in str(error.value)
        assert error.value.__cause__ is not None


def test_what_the_messages_say_to_do_works():
    loader = [(X, np.zeros(128))]
    want = reference.calibration(X)
    apply = functools.partial(linen_calibrated, loader)
    inputs = (x for x, *_ in loader)
    for found in (
        linen_calibrated(inputs),
        apply(
            lambda net: (
                lambda variables, batch, **options: net.apply(variables, batch[0], **options)
            )
        ),
    ):
        np.testing.assert_allclose(found["mean"], want.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["var_spread"], want.variance_spread, rtol=1e-4)
    layer = nnx_calibrated(loader, call=lambda model, batch: model(batch[0]))
    np.testing.assert_allclose(layer.calibrated_mean[...], want.mean, rtol=1e-5, atol=1e-6)


def test_errors_of_a_call_of_ones_own_are_left_as_they_are():
    def call(model, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        nnx_calibrated([(X, X)], call=call)
