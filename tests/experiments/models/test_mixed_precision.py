"""Kernels of bfloat16 convolutions: gradients that are float32 sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from experiments.models.convolution import convolve3d
from experiments.models.layers import conv
from experiments.models.mixed_precision import Window, convolve
from experiments.models.norms import norm_factory
from experiments.models.resnet import ResNet

CASES = [
    # spatial shape, kernel, stride, what convolves
    ((6, 5), 3, 1, lax.conv_general_dilated),
    ((6, 5), 3, 2, lax.conv_general_dilated),
    ((7, 8), 1, 2, lax.conv_general_dilated),
    ((8, 3), 5, 3, lax.conv_general_dilated),
    ((5, 6, 4), 3, 2, convolve3d),
]


def _problem(shape, size, stride, function, dtype):
    generator = np.random.default_rng(0)
    window = Window((stride,) * len(shape), ((size // 2, size // 2),) * len(shape), function)
    x = jnp.asarray(generator.normal(size=(4, *shape, 3))).astype(dtype)
    kernel = jnp.asarray(generator.normal(size=(size,) * len(shape) + (3, 2)), jnp.float32)
    out = jax.eval_shape(window.apply, x, kernel).shape
    g = jnp.asarray(generator.normal(size=out)).astype(dtype)
    return window, x, kernel, g


@pytest.mark.parametrize(("shape", "size", "stride", "function"), CASES)
def test_the_kernels_gradient_is_not_rounded(shape, size, stride, function):
    window, x, kernel, g = _problem(shape, size, stride, function, jnp.bfloat16)
    y, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, window), x, kernel)
    dx, dkernel = pullback(g)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # The same numbers as float32 throughout; a kernel of few digits is the one that was used.
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    plain = Window(window.strides, window.padding)
    want, pullback = jax.vjp(plain.apply, x.astype(jnp.float32), rounded)
    want_dx, want_dkernel = pullback(g.astype(jnp.float32))
    np.testing.assert_allclose(dkernel, want_dkernel, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(y.astype(jnp.float32), want, rtol=0.01, atol=0.02)
    np.testing.assert_allclose(dx.astype(jnp.float32), want_dx, rtol=0.01, atol=0.05)


@pytest.mark.parametrize(("shape", "size", "stride", "function"), CASES)
def test_accelerators_compute_the_same_gradient(shape, size, stride, function):
    """The convolution that they run and a CPU does not, here all the same."""
    window, x, kernel, g = _problem(shape, size, stride, function, jnp.bfloat16)
    found = window._by_convolution(kernel.shape[:-2], x, g)
    assert found.dtype == jnp.float32
    want = window._by_float32(kernel.shape[:-2], x, g)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


def test_forward_mode_and_each_argument_alone():
    window, x, kernel, g = _problem(*CASES[1], jnp.bfloat16)
    both = jax.vjp(lambda x, k: convolve(x, k, window), x, kernel)[1](g)
    (dx,) = jax.vjp(lambda x: convolve(x, kernel, window), x)[1](g)
    np.testing.assert_array_equal(dx, both[0])
    (dkernel,) = jax.vjp(lambda k: convolve(x, k, window), kernel)[1](g)
    np.testing.assert_array_equal(dkernel, both[1])
    _, slope = jax.jvp(lambda k: convolve(x, k, window), (kernel,), (kernel,))
    np.testing.assert_array_equal(slope, window.apply(x, kernel))


@pytest.mark.usefixtures("mixed_dtypes")
def test_float32_convolutions_are_those_of_flax():
    layer = conv(3, 4, stride=2, use_bias=True, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
    np.testing.assert_array_equal(layer(x), nnx.Conv.__call__(layer, x))


def test_no_gradient_of_a_network_is_rounded_to_bfloat16():
    """What is summed over devices, the gradients, comes out of its convolution in float32."""
    model = ResNet(
        norm_factory("stein", dtype=jnp.bfloat16),
        channels_in=3,
        outputs=2,
        width=4,
        stage_sizes=(1, 1),
        dtype=jnp.bfloat16,
        rngs=nnx.Rngs(jax.random.key(0, impl="rbg")),
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x):
        return jnp.sum(jnp.square(nnx.merge(graphdef, params, rest, copy=True)(x)))

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, jnp.zeros((4, 8, 8, 3)))
    kernels = {p.shape for p in jax.tree.leaves(params) if p.ndim == 4}
    made = [
        v.aval
        for eqn in _equations(jaxpr.jaxpr)
        for v in eqn.outvars
        if eqn.primitive.name == "conv_general_dilated" and v.aval.shape in kernels
    ]
    assert {aval.shape for aval in made} == kernels  # in the programs of CPUs and of accelerators
    assert {aval.dtype for aval in made} == {jnp.dtype(jnp.float32)}


def _equations(jaxpr):
    """All equations of a program, those inside others too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_program(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
