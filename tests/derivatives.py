"""Derivatives against central differences, each compiled once (jax.test_util runs uncompiled)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def assert_derivatives(loss: Callable, *arguments: jax.Array, second: bool = False) -> None:
    """Checks reverse mode, forward mode and, on request, forward over reverse, in float64.

    Along a random direction u: grad . u and the forward derivative against differences of the
    loss; the Hessian times u against differences of the gradient.
    """
    loss = jax.jit(loss)
    gradient = jax.jit(jax.grad(loss, argnums=tuple(range(len(arguments)))))
    keys = jax.random.split(jax.random.key(7), len(arguments))
    direction = tuple(
        jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, arguments, strict=True)
    )
    step = 1e-5

    def moved(sign: float) -> tuple[jax.Array, ...]:
        return tuple(a + sign * step * u for a, u in zip(arguments, direction, strict=True))

    difference = (loss(*moved(1.0)) - loss(*moved(-1.0))) / (2 * step)
    along = sum(jnp.vdot(g, u) for g, u in zip(gradient(*arguments), direction, strict=True))
    _, forward = jax.jit(lambda a, u: jax.jvp(loss, a, u))(arguments, direction)
    np.testing.assert_allclose(along, difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(forward, difference, rtol=1e-6, atol=1e-8)
    if second:
        _, products = jax.jit(lambda a, u: jax.jvp(gradient, a, u))(arguments, direction)
        for product, up, down in zip(
            products, gradient(*moved(1.0)), gradient(*moved(-1.0)), strict=True
        ):
            np.testing.assert_allclose(product, (up - down) / (2 * step), rtol=1e-5, atol=1e-7)
