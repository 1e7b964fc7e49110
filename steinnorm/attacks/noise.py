"""Random perturbations of a given size, which do not depend on the model.

All are called as ``noise(key, x, rms, bounds=None)`` with a random key, inputs ``x`` (any shape,
floating, within ``bounds``), a size in the units of ``x``, and optional bounds. They return the
noisy inputs, in the shape and dtype of ``x``, and raise ``ValueError`` for other arguments. With
``bounds`` the result is clipped, which makes the change smaller than ``rms`` if ``x`` is close to a
bound. All except ``clipped_cauchy`` are sub-Gaussian before clipping.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks.threat import Threat

Bounds = geometry.Bounds

_CUT = 2.0  # truncation of truncated_gaussian, in standard deviations of the normal law
# Variance of a standard normal draw, given that it lies in [-c, c]: 1 - 2 c phi(c) / (2 Phi(c) - 1)
_CUT_DENSITY = math.exp(-0.5 * _CUT**2) / math.sqrt(2 * math.pi)
_CUT_RMS = math.sqrt(1 - 2 * _CUT * _CUT_DENSITY / math.erf(_CUT / math.sqrt(2)))


def gaussian(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds normal noise of standard deviation ``rms``, in the units of ``x``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.full((100, 100), 0.5)
      >>> noisy = gaussian(jax.random.key(0), x, 0.1, bounds=(0.0, 1.0))
      >>> f"{float(jnp.std(noisy)):.2f}"
      '0.10'
    """
    return _add(x, lambda: jax.random.normal(key, x.shape, x.dtype), rms, bounds)


def uniform(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds uniform noise from [-sqrt(3) * rms, sqrt(3) * rms]."""
    edge = math.sqrt(3.0)
    return _add(x, lambda: jax.random.uniform(key, x.shape, x.dtype, -edge, edge), rms, bounds)


def rademacher(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds +rms or -rms to each value with equal probability: the random counterpart of FGSM."""
    return _add(x, lambda: jax.random.rademacher(key, x.shape, x.dtype), rms, bounds)


def truncated_gaussian(
    key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None
) -> jax.Array:
    """Adds normal noise truncated at two standard deviations, scaled to ``rms``.

    The largest change of a value is 2.27 * rms.
    """

    def draw() -> jax.Array:
        return jax.random.truncated_normal(key, -_CUT, _CUT, x.shape, x.dtype) / _CUT_RMS

    return _add(x, draw, rms, bounds)


def clipped_cauchy(
    key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = (0.0, 1.0)
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

    def draw() -> jax.Array:
        return jax.random.cauchy(key, x.shape, x.dtype) / math.sqrt(2.0)

    return _add(x, draw, rms, bounds)


NOISES: dict[str, Callable[..., jax.Array]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "rademacher": rademacher,
    "truncated_gaussian": truncated_gaussian,
    "clipped_cauchy": clipped_cauchy,
}
"""Noises by name."""


def _add(
    x: jax.Array, draw: Callable[[], jax.Array], rms: float, bounds: Bounds | None
) -> jax.Array:
    if not (math.isfinite(rms) and rms >= 0):
        raise ValueError(f"rms must be finite and not negative; got {rms}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating; got dtype {x.dtype}. Scale images to [0, 1] first")
    if bounds is None:
        return x + rms * draw()
    box = Threat("linf", 0.0, bounds)  # raises an error for invalid bounds
    checkable = not isinstance(x, jax.core.Tracer) and x.size  # values inside jit cannot be checked
    if checkable and not float(geometry.outside_box(x, box.bounds)) <= box.box_tolerance():
        smallest, largest = float(jnp.min(x)), float(jnp.max(x))
        raise ValueError(f"x must lie in {bounds}; got values in [{smallest}, {largest}]")
    return geometry.clip_to_box(x + rms * draw(), box.bounds)
