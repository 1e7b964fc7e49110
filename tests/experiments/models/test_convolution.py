"""The CPU's convolution by patches against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments.models.convolution import LAYOUT, convolve3d


@pytest.mark.parametrize(
    ("shape", "size", "stride"), [((5, 6, 4), 3, 2), ((4, 4, 4), 1, 1), ((5, 3, 4), 3, 1)]
)
def test_values_and_gradients_are_those_of_xla(shape, size, stride):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(2, *shape, 3)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(size,) * 3 + (3, 4)), jnp.float32)
    pads = [(size // 2, size // 2)] * 3

    def total(convolve):
        def f(x, kernel):
            y = convolve(x, kernel, (stride,) * 3, pads, dimension_numbers=LAYOUT)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(x, kernel)

    (ours, y), gradients = total(convolve3d)
    (theirs, want), wanted = total(lax.conv_general_dilated)
    np.testing.assert_allclose(y, want, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for got, expected in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension_numbers": ("NCDHW", "DHWIO", "NCDHW")}, "expected the layout"),
        ({"rhs_dilation": (2, 2, 2)}, "dilation"),
        ({"feature_group_count": 3}, "groups"),
    ],
)
def test_what_it_does_not_know_is_refused(settings, message):
    x, kernel = jnp.zeros((1, 4, 4, 4, 3)), jnp.zeros((3, 3, 3, 3, 3))
    with pytest.raises(ValueError, match=message):
        convolve3d(x, kernel, (1, 1, 1), [(1, 1)] * 3, **settings)
