"""Derivatives against central differences, each compiled once (jax.test_util runs uncompiled)."""

from collections.abc import Callable

import jax
import numpy as np


def assert_derivatives(loss: Callable, *arguments: jax.Array, second: bool = False) -> None:
    """Checks reverse mode, forward mode and, on request, forward over reverse, in float64.

    Along a random direction u: grad . u and the forward derivative against differences of the
    loss; the Hessian times u against differences of the gradient.
    """
    each = tuple(range(len(arguments)))
    both = jax.jit(jax.value_and_grad(loss, argnums=each))
    # NumPy between the programs, for eager JAX would compile an operation at a time.
    at = tuple(np.asarray(a) for a in arguments)
    rng = np.random.default_rng(7)
    direction = tuple(rng.normal(size=a.shape).astype(a.dtype) for a in at)
    step = 1e-5

    def moved(sign: float) -> tuple[np.ndarray, ...]:
        return tuple(a + sign * step * u for a, u in zip(at, direction, strict=True))

    above, gradient_above = both(*moved(1.0))
    below, gradient_below = both(*moved(-1.0))
    difference = (np.asarray(above) - np.asarray(below)) / (2 * step)
    _, gradients = both(*at)
    along = sum(np.vdot(g, u) for g, u in zip(gradients, direction, strict=True))
    _, forward = jax.jit(lambda a, u: jax.jvp(loss, a, u))(at, direction)
    np.testing.assert_allclose(along, difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(forward, difference, rtol=1e-6, atol=1e-8)
    if second:
        gradient = jax.grad(loss, argnums=each)
        _, products = jax.jit(lambda a, u: jax.jvp(gradient, a, u))(at, direction)
        for product, up, down in zip(products, gradient_above, gradient_below, strict=True):
            want = (np.asarray(up) - np.asarray(down)) / (2 * step)
            np.testing.assert_allclose(product, want, rtol=1e-5, atol=1e-7)
