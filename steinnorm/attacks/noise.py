"""Random perturbations of a given size, which do not depend on the model.

All are called as ``noise(key, x, rms, bounds=None)`` with a random key, inputs ``x`` (any shape,
floating, within ``bounds``), a size in the units of ``x`` (one number), and optional bounds;
``clipped_cauchy`` needs bounds, (0, 1) by default. They return the noisy inputs, in the shape and
dtype of ``x``, and raise ``ValueError`` for other arguments. With ``bounds`` the result is clipped,
which makes the change smaller than ``rms`` if ``x`` is close to a bound. All except
``clipped_cauchy`` are sub-Gaussian before clipping. Inside ``jit`` no values are checked.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._arguments import (
    as_array,
    as_number,
    check_broadcasts,
    check_floating,
    check_key,
    check_size,
)
from steinnorm.attacks._measurements import check_finite_inputs, outside_box
from steinnorm.attacks.threat import Threat

Bounds = geometry.Bounds

_CUT = 2.0  # truncation of truncated_gaussian, in standard deviations of the normal law
# Variance of a standard normal draw, given that it lies in [-c, c]: 1 - 2 c phi(c) / (2 Phi(c) - 1)
_CUT_DENSITY = math.exp(-0.5 * _CUT**2) / math.sqrt(2 * math.pi)
_CUT_RMS = math.sqrt(1 - 2 * _CUT * _CUT_DENSITY / math.erf(_CUT / math.sqrt(2)))


def gaussian(key: jax.Array, x: ArrayLike, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds normal noise of standard deviation ``rms``, in the units of ``x``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.full((100, 100), 0.5)
      >>> noisy = gaussian(jax.random.key(0), x, 0.1, bounds=(0.0, 1.0))
      >>> f"{float(jnp.std(noisy)):.2f}"
      '0.10'
    """
    return _add(key, x, jax.random.normal, rms, bounds)


def uniform(key: jax.Array, x: ArrayLike, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds uniform noise from [-sqrt(3) * rms, sqrt(3) * rms]."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -math.sqrt(3.0), math.sqrt(3.0))

    return _add(key, x, draw, rms, bounds)


def rademacher(key: jax.Array, x: ArrayLike, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds +rms or -rms to each value with equal probability: the random counterpart of FGSM."""
    return _add(key, x, jax.random.rademacher, rms, bounds)


def truncated_gaussian(
    key: jax.Array, x: ArrayLike, rms: float, bounds: Bounds | None = None
) -> jax.Array:
    """Adds normal noise truncated at two standard deviations, scaled to ``rms``.

    The largest change of a value is 2.27 * rms.
    """

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.truncated_normal(key, -_CUT, _CUT, shape, dtype) / _CUT_RMS

    return _add(key, x, draw, rms, bounds)


def clipped_cauchy(
    key: jax.Array, x: ArrayLike, rms: float, bounds: Bounds | None = (0.0, 1.0)
) -> jax.Array:
    """Adds the noise that the code released with arXiv 2507.08261 draws as sub-Gaussian noise.

    It is Cauchy noise of scale ``rms`` / sqrt(2), which has neither mean nor variance, clipped to
    ``bounds``. ``rms`` is the sigma of that code and NOT the root mean square of the change;
    measure that from the result.

    Raises:
      ValueError: there are no bounds, or ``rms`` is negative or not finite.
    """
    if bounds is None:
        raise ValueError(
            "clipped_cauchy needs bounds, because Cauchy noise has no variance; got None"
        )

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.cauchy(key, shape, dtype) / math.sqrt(2.0)

    return _add(key, x, draw, rms, bounds)


NOISES: dict[str, Callable[..., jax.Array]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "rademacher": rademacher,
    "truncated_gaussian": truncated_gaussian,
    "clipped_cauchy": clipped_cauchy,
}
"""Noises by name."""


def _add(
    key: Any, x: ArrayLike, draw: Callable[..., jax.Array], rms: Any, bounds: Bounds | None
) -> jax.Array:
    """Adds ``rms`` times a draw, a function of a key, a shape and a dtype."""
    check_key(key, required=True, traced=True)
    x = _floating(x)
    rms = as_number("rms", rms)
    if np.ndim(rms):
        raise ValueError(f"rms must be one number; got an array of shape {np.shape(rms)}")
    check_size("rms", rms)
    box = Threat("linf", 0.0, bounds)  # raises an error for invalid bounds
    for bound in () if box.bounds is None else box.bounds:
        check_broadcasts("a bound", bound, x.shape, "x")
    if box.bounds is not None and x.size:
        outside = outside_box(x, box.bounds)
        is_traced = isinstance(outside, jax.core.Tracer)  # values inside jit cannot be checked
        if not is_traced:
            check_finite_inputs(x)
        if not is_traced and float(outside) > 0:
            smallest, largest = float(jnp.min(x)), float(jnp.max(x))
            raise ValueError(f"x must lie in {bounds}; got values in [{smallest}, {largest}]")
    noise = geometry.as_broadcastable(rms, x) * draw(key, x.shape, x.dtype)
    return geometry.clip_to_box(x + noise, box.bounds)


def _floating(x: ArrayLike) -> jax.Array:
    array = as_array("x", x)
    check_floating("x", array.dtype)
    return array
