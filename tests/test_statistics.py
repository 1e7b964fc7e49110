"""Batch statistics against the float64 reference, with masks, several axes and large offsets."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm import batch_statistics
from tests import reference
from tests.derivatives import assert_derivatives

CASES = [  # shape, feature axis, mask shape or None
    ((7, 3), -1, None),
    ((8, 5), -1, (8, 1)),
    ((6, 5, 4), 1, None),
    ((4, 3, 3, 5), -1, (4, 1, 1, 1)),
    ((4, 3, 3, 5), -1, (4, 3, 3, 5)),
    ((4, 5, 3, 3), 1, (1, 1, 3, 3)),
    ((2, 3, 4, 2, 6), -1, None),
    ((4, 3, 6, 2), (1, 3), (4, 1, 6, 1)),
    ((5, 8), 0, None),
]
# jit once per shape and option: eager JAX is slow, and jit is what users run.
statistics = jax.jit(
    batch_statistics, static_argnames=("axis", "noise", "use_fast_variance", "axis_name")
)


def draw(shape, mask_shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(2.0, 3.0, shape)
    if mask_shape is None:
        return x, None
    mask = rng.random(mask_shape) < 0.7
    mask.flat[0] = True
    return x, mask


@pytest.mark.parametrize("use_fast_variance", [True, False])
@pytest.mark.parametrize(("shape", "axis", "mask_shape"), CASES)
def test_agrees_with_the_reference(shape, axis, mask_shape, use_fast_variance):
    x, mask = draw(shape, mask_shape)
    if mask is not None:  # what is masked out may be anything
        x = np.where(np.broadcast_to(mask, shape), x, np.nan)
    got = statistics(
        x.astype(np.float32), axis=axis, mask=mask, use_fast_variance=use_fast_variance
    )
    example_axis = 1 if axis == 0 else 0
    with np.errstate(invalid="ignore"):
        want = reference.batch_statistics(
            np.nan_to_num(x), axis=axis, mask=mask, example_axis=example_axis
        )
    valid = want.count > 0
    np.testing.assert_allclose(np.broadcast_to(got.count, want.count.shape), want.count)
    np.testing.assert_allclose(got.mean[valid], want.mean[valid], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.variance[valid], want.variance[valid], rtol=1e-5, atol=1e-6)
    assert np.all(got.mean[~valid] == 0)
    assert np.all(got.variance[~valid] == 0)


@pytest.mark.parametrize(
    ("shape", "axis", "mask_shape"),
    [
        ((9, 4), -1, None),
        ((12, 3, 3, 5), -1, None),
        ((12, 3, 3, 5), -1, (12, 3, 3, 1)),
        ((12, 5, 3), 1, (12, 5, 1)),
        ((3, 20), 0, (1, 20)),
    ],
)
def test_noise_agrees_with_the_reference(shape, axis, mask_shape, x64):
    x, mask = draw(shape, mask_shape)
    x += np.random.default_rng(1).normal(size=(shape[0],) + (1,) * (len(shape) - 1))
    got = statistics(x, axis=axis, mask=mask, noise=True)
    want = reference.batch_statistics(x, axis=axis, mask=mask, example_axis=1 if axis == 0 else 0)
    np.testing.assert_allclose(got.mean_noise, want.mean_noise, rtol=1e-9)
    np.testing.assert_allclose(got.variance_noise, want.variance_noise, rtol=1e-9)
    np.testing.assert_allclose(np.broadcast_to(got.examples, want.examples.shape), want.examples)


def test_noise_of_one_example_is_zero_and_the_examples_say_so():
    x, _ = draw((1, 4, 4, 3), None)
    got = statistics(x.astype(np.float32), noise=True)
    np.testing.assert_array_equal(got.mean_noise, np.zeros(3))
    np.testing.assert_array_equal(got.variance_noise, np.zeros(3))
    assert got.examples == 1


def test_cluster_noise_sees_what_pixel_noise_does_not():
    """Images that are constant inside: the mean's noise is that of 8 values, not of 800."""
    per_image = np.random.default_rng(0).normal(size=(8, 1, 1, 3))
    x = np.broadcast_to(per_image, (8, 10, 10, 3)).astype(np.float32)
    got = statistics(x, noise=True)
    np.testing.assert_allclose(
        got.mean_noise, per_image.reshape(8, 3).var(0, ddof=1) / 8, rtol=1e-5
    )


@pytest.mark.usefixtures("as_users_compile")
class TestFarFromTheReference:
    @pytest.mark.parametrize("use_fast_variance", [True, False])
    @pytest.mark.parametrize("shape", [(64, 8, 8, 3), (4096, 4), (3, 16, 16, 16, 2)])
    def test_large_offset(self, shape, use_fast_variance):
        """Mean 1e4, standard deviation 1: E[x^2] - E[x]^2 would give anything."""
        x = 1e4 + np.random.default_rng(0).normal(size=shape).astype(np.float32)
        got = statistics(x, use_fast_variance=use_fast_variance)
        want = reference.batch_statistics(x)
        np.testing.assert_allclose(got.variance, want.variance, rtol=1e-3)
        # Older CPU compilers sum in one chain, with 1.1e-6 in jaxlib 0.8.1.
        rtol = 1e-6 if jax.__version_info__ >= (0, 10) else 2e-6
        np.testing.assert_allclose(got.mean, want.mean, rtol=rtol)

    def test_noise_of_unequal_examples_whose_mean_is_far_from_the_reference(self):
        """Sums that are made again count each example's own number of values."""
        x = (np.random.default_rng(0).normal(50, 2, (6, 5, 3))).astype(np.float32)
        mask = np.arange(5) < np.array([1, 5, 2, 5, 3, 4]).reshape(6, 1)
        got = statistics(x, mask=mask[..., None], noise=True)
        want = reference.batch_statistics(x, mask=mask[..., None])
        np.testing.assert_allclose(got.mean_noise, want.mean_noise, rtol=1e-4)
        np.testing.assert_allclose(got.variance_noise, want.variance_noise, rtol=1e-4)


@pytest.mark.parametrize("noise", [False, True])
def test_the_reference_decides_what_is_read_not_the_result(noise):
    x = draw((16, 5, 5, 3), None)[0].astype(np.float32)
    mask = np.arange(16).reshape(16, 1, 1, 1) % 3 > 0
    want = reference.batch_statistics(x, mask=mask)
    for guess in (None, [2.0, 2.0, 2.0], [1e3, -50.0, 2.0], [np.nan, np.inf, -1e30]):
        guessed = functools.partial(batch_statistics, noise=noise, reference=guess)
        got = jax.jit(guessed)(x, mask=mask)
        # A few roundings of the reference, which is 300 standard deviations away at most.
        np.testing.assert_allclose(got.mean, want.mean, rtol=1e-5, atol=5e-4)
        np.testing.assert_allclose(got.variance, want.variance, rtol=2e-4)
        if noise:
            np.testing.assert_allclose(got.mean_noise, want.mean_noise, rtol=1e-3)
            np.testing.assert_allclose(got.variance_noise, want.variance_noise, rtol=1e-3)


def test_where_all_axes_are_features_it_is_one_example():
    got = batch_statistics(jnp.array([[1.0, 2.0]]), axis=(0, 1))
    np.testing.assert_array_equal(got.mean, [[1.0, 2.0]])
    np.testing.assert_array_equal(got.variance, [[0.0, 0.0]])


def test_count_has_one_value_unless_the_mask_differs_between_channels():
    x = jnp.ones((4, 6, 3))
    assert batch_statistics(x).count.shape == ()
    assert batch_statistics(x, mask=jnp.ones((4, 1, 1))).count == 24
    by_channel = batch_statistics(x, mask=jnp.array([True, False, True]))
    np.testing.assert_array_equal(by_channel.count, [24, 0, 24])


def test_all_false_mask_is_finite_with_finite_gradients():
    def total(x):
        s = batch_statistics(x, mask=jnp.zeros((4, 1), bool), noise=True)
        return s.mean.sum() + s.variance.sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.ones((4, 3)))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((4, 3)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_results_are_float32(dtype):
    got = batch_statistics(jnp.ones((4, 3), dtype))
    chex.assert_type([got.mean, got.variance, got.count], jnp.float32)


def test_float64_stays(x64):
    got = statistics(jnp.ones((4, 3), jnp.float64))
    chex.assert_type([got.mean, got.variance], jnp.float64)


def test_complex_input_has_a_real_variance():
    x = np.random.default_rng(0).normal(size=(16, 3, 2)) @ [1, 1j]
    got = statistics(x.astype(np.complex64))
    np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.variance, x.var(0), rtol=1e-5)
    chex.assert_type(got.variance, jnp.float32)


def test_named_axis_equals_the_pooled_batch(key):
    x = jax.random.normal(key, (4, 3, 5, 6))
    pooled = statistics(x.reshape(12, 5, 6), noise=True)
    mapped = jax.jit(
        jax.vmap(
            lambda shard: batch_statistics(shard, axis_name="shards", noise=True),
            axis_name="shards",
        )
    )(x)
    for name, value in pooled._asdict().items():
        for shard in range(4):
            np.testing.assert_allclose(getattr(mapped, name)[shard], value, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"use_fast_variance": False}, {"noise": True}], ids=str)
def test_derivatives_against_differences(options, x64, key):
    """The centre is held constant to first order: the second order must still be right."""
    x = jax.random.normal(key, (6, 2, 3), jnp.float64) + 3

    def total(x):
        fields = [f for f in batch_statistics(x, **options) if f is not None and f.ndim == 1]
        return sum(jnp.sum(jnp.cos(jnp.arange(3.0) + i) * f) for i, f in enumerate(fields))

    assert_derivatives(total, x, second=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axis": 2}, ValueError, r"axis 2 is out of range for an input of rank 2"),
        ({"reference": np.ones(3)}, ValueError, r"shape of the features, \(2,\); got \(3,\)"),
        ({"axis": 1.0}, TypeError, r"axis must be an integer"),
        ({"mask": np.ones(3, bool)}, ValueError, r"broadcastable to the input's shape \(4, 2\)"),
        ({"mask": np.ones((1, 4, 2), bool)}, ValueError, r"got shape \(1, 4, 2\)"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        batch_statistics(jnp.ones((4, 2)), **arguments)


def test_noise_of_complex_input_is_an_error():
    with pytest.raises(ValueError, match="complex64"):
        batch_statistics(jnp.ones((4, 2), jnp.complex64), noise=True)


def test_scalar_input_is_an_error():
    with pytest.raises(ValueError, match="out of range for an input of rank 0"):
        batch_statistics(jnp.float32(1.0))


@pytest.mark.parametrize(
    ("mask_shape", "noise", "sent"),
    [  # with 16 channels; what is sent, and what again where a reference is far from its mean
        (None, False, (2 * 16, 16)),
        ((8, 1), False, (2 * 16 + 1, 16)),
        ((8, 16), False, (3 * 16, 16)),
        (None, True, (5 * 16, 3 * 16)),
        ((8, 1), True, (7 * 16 + 3, 4 * 16)),
        ((8, 16), True, (10 * 16, 4 * 16)),
    ],
)
def test_how_many_numbers_devices_send(mesh, mask_shape, noise, sent):
    """Those in the docstring."""
    mask = None if mask_shape is None else np.ones(mask_shape, bool)

    def run(x, *masks):
        return batch_statistics(x, mask=[*masks, None][0], axis_name="devices", noise=noise)

    inputs = [np.ones((8, 16), np.float32), *([] if mask is None else [mask])]
    specs = tuple(jax.sharding.PartitionSpec("devices") for _ in inputs)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=jax.sharding.PartitionSpec())
    text = jax.jit(mapped).lower(*inputs).as_text()
    found = re.findall(r"all_reduce.*?-> tensor<(\d+)xf32>", text, re.DOTALL)
    assert tuple(map(int, found)) == sent
