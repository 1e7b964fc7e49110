"""shrinkage="none" is Flax's BatchNorm in both families: outputs, statistics, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from steinnorm import linen as stein_linen
from steinnorm import nnx as stein_nnx

pytestmark = pytest.mark.usefixtures("mixed_dtypes")

F32, BF16, F16, C64 = jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64
LINEN_CASES = [  # shape, axis, input dtype, layer options, mask shape
    ((16, 5), -1, F32, {}, None),
    ((16, 5), -1, F32, {"use_bias": False}, (16, 1)),
    ((8, 6, 5), -1, F32, {"use_scale": False, "momentum": 0.5}, None),
    ((8, 5, 6), 1, F32, {"epsilon": 1e-2}, (8, 1, 6)),
    ((4, 6, 6, 5), -1, F32, {"use_fast_variance": False}, (4, 6, 6, 1)),
    ((4, 5, 6, 6), 1, F32, {"use_scale": False, "use_bias": False}, None),
    ((2, 4, 4, 4, 5), -1, F32, {"momentum": 0.9}, (2, 1, 1, 1, 1)),
    ((4, 6, 3, 5), (1, 3), F32, {}, None),
    ((4, 6, 3, 5), (-1,), F32, {}, None),
    ((16, 5), -1, BF16, {}, None),
    ((4, 6, 6, 5), -1, BF16, {"dtype": BF16}, None),
    ((4, 6, 6, 5), -1, F16, {"dtype": F16}, (4, 1, 1, 1)),
    ((4, 6, 6, 5), -1, F32, {"dtype": BF16}, None),
    ((16, 5), -1, BF16, {"dtype": BF16, "param_dtype": BF16}, None),
    ((16, 5), -1, BF16, {"force_float32_reductions": False}, None),
    ((16, 5), -1, C64, {}, None),
    ((16, 5), -1, C64, {"dtype": C64}, (16, 1)),
]
NNX_CASES = [
    c
    for c in LINEN_CASES
    if "force_float32_reductions" not in c[3] and c[1] != (1, 3) and c[2] != C64
]


def draw(shape, dtype, mask_shape):
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 2.0, shape)
    if dtype == C64:
        x = x + 1j * rng.normal(size=shape)
    mask = None if mask_shape is None else jnp.asarray(rng.random(mask_shape) < 0.7).at[0].set(True)
    return jnp.asarray(x, dtype), mask


def curved(y):
    """A loss whose gradient is neither constant nor zero in any input of the layer."""
    weights = jnp.cos(jnp.arange(y.size, dtype=F32)).reshape(y.shape)
    wide = jnp.abs(y).astype(F32) if jnp.iscomplexobj(y) else y.astype(F32)
    return jnp.sum(weights * jnp.square(wide))


def assert_close(ours, theirs, rounding=F32, roundings=2):
    """1e-5 of the largest entry, or a few roundings of a smaller dtype where one is involved."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        tolerance = max(1e-5, *(roundings * float(jnp.finfo(d).eps) for d in (a.dtype, rounding)))
        wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
        wanted = np.asarray(b, wide)
        np.testing.assert_allclose(
            np.asarray(a, wide), wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
        )


def assert_same_layer(ours, theirs, case):
    """Outputs and running statistics to 1e-5; gradients to the rounding of what they pass."""
    *_, dtype, options, _ = case
    rounded = not options.get("force_float32_reductions", True)
    assert_close(ours[:2], theirs[:2], dtype if rounded else F32)
    lowest = min((dtype, options.get("dtype", dtype)), key=lambda d: jnp.finfo(d).bits)
    # In bfloat16 Flax sums gradients in bfloat16; ours were nearer to the float32 ones.
    assert_close(ours[2], theirs[2], lowest, roundings=8)


@pytest.mark.parametrize("case", LINEN_CASES, ids=str)
def test_linen(case):
    shape, axis, dtype, options, mask_shape = case
    x, mask = draw(shape, dtype, mask_shape)

    def run(layer, x):
        variables = jax.tree.map(lambda a: a + 0.3, layer.init(jax.random.key(0), x))

        def loss(variables, x):
            y, updated = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
            return curved(y), (y, updated)

        gradients, (y, updated) = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, x)
        return y, updated, gradients

    @jax.jit
    def compared(x):
        """In training and in inference: one program is compiled faster than four."""
        return [
            [
                run(layer(use_running_average=inference, axis=axis, **options, **more), x)
                for layer, more in (
                    (stein_linen.SteinBatchNorm, {"shrinkage": "none"}),
                    (nn.BatchNorm, {}),
                )
            ]
            for inference in (False, True)
        ]

    for ours, theirs in compared(x):
        assert_same_layer(ours, theirs, case)


@pytest.mark.parametrize("case", NNX_CASES, ids=str)
def test_nnx(case):
    shape, axis, dtype, options, mask_shape = case
    x, mask = draw(shape, dtype, mask_shape)
    # Flax rounds the input to a smaller dtype first, ours only the output.
    x = x.astype(options.get("dtype", dtype)).astype(dtype)
    features = shape[np.atleast_1d(axis)[0]]

    def run(layer, x):
        graph, params, statistics = nnx.split(layer, nnx.Param, nnx.BatchStat)
        # Exact in bfloat16, in which Flax keeps running statistics at inference.
        params, statistics = jax.tree.map(lambda a: a + 0.25, (params, statistics))

        def loss(params, x, statistics):
            layer = nnx.merge(graph, params, statistics, copy=True)
            y = layer(x, mask=mask)
            return curved(y), (y, nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat)))

        gradients, (y, updated) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            params, x, statistics
        )
        return y, updated, gradients

    @jax.jit
    def compared(x):
        same = {"axis": axis, "rngs": nnx.Rngs(0), **options}
        return [
            [
                run(layer(features, use_running_average=inference, **same, **more), x)
                for layer, more in (
                    (stein_nnx.SteinBatchNorm, {"shrinkage": "none"}),
                    (nnx.BatchNorm, {}),
                )
            ]
            for inference in (False, True)
        ]

    for ours, theirs in compared(x):
        assert_same_layer(ours, theirs, case)


@pytest.mark.parametrize("shrinkage", ["none", "stein", "toward_running"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("mask_shape", [None, (8, 1, 1)])
def test_linen_and_nnx_are_one(shrinkage, dtype, mask_shape):
    """No adaptor argument: the two families call the same function."""
    x, mask = draw((8, 3, 5), dtype, mask_shape)
    ours = stein_linen.SteinBatchNorm(
        use_running_average=False, shrinkage=shrinkage, dtype=dtype, momentum=0.9
    )
    variables = ours.init(jax.random.key(0), x)
    y, updated = ours.apply(variables, x, mask=mask, mutable=["batch_stats"])
    layer = stein_nnx.SteinBatchNorm(
        5, shrinkage=shrinkage, dtype=dtype, momentum=0.9, rngs=nnx.Rngs(0)
    )
    np.testing.assert_array_equal(layer(x, mask=mask), y)
    np.testing.assert_array_equal(layer.mean[...], updated["batch_stats"]["mean"])
    np.testing.assert_array_equal(layer.var[...], updated["batch_stats"]["var"])
