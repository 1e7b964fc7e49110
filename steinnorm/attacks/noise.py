"""Random perturbations of a given size, which no gradient guides.

All are called ``noise(key, x, rms, bounds=None)``, take an explicit key and keep the dtype of
``x``, which is floating and lies in ``bounds`` if there are any (else ``ValueError``).  With
``bounds`` the result is clipped, which makes the change smaller than ``rms`` where ``x`` is close
to a bound.  All but ``clipped_cauchy`` are sub-Gaussian before any clipping.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks.threat import Threat

Bounds = geometry.Bounds

_CUT = 2.0  # where truncated_gaussian is cut, in standard deviations of the uncut normal law
# Variance of a standard normal draw, given that it lies in [-c, c]: 1 - 2 c phi(c) / (2 Phi(c) - 1)
_CUT_DENSITY = math.exp(-0.5 * _CUT**2) / math.sqrt(2 * math.pi)
_CUT_RMS = math.sqrt(1 - 2 * _CUT * _CUT_DENSITY / math.erf(_CUT / math.sqrt(2)))


def gaussian(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds normal noise of standard deviation ``rms``, in the units of ``x``."""
    return _add(x, lambda: jax.random.normal(key, x.shape, x.dtype), rms, bounds)


def uniform(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds uniform noise from [-sqrt(3) * rms, sqrt(3) * rms]."""
    edge = math.sqrt(3.0)
    return _add(x, lambda: jax.random.uniform(key, x.shape, x.dtype, -edge, edge), rms, bounds)


def rademacher(key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None) -> jax.Array:
    """Adds +rms or -rms to each value with equal chance: the random relative of FGSM."""
    return _add(x, lambda: jax.random.rademacher(key, x.shape, x.dtype), rms, bounds)


def truncated_gaussian(
    key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = None
) -> jax.Array:
    """Adds normal noise without its tails beyond two deviations, scaled to ``rms``.

    The largest change of a value is 2.27 * rms.
    """

    def draw() -> jax.Array:
        return jax.random.truncated_normal(key, -_CUT, _CUT, x.shape, x.dtype) / _CUT_RMS

    return _add(x, draw, rms, bounds)


def clipped_cauchy(
    key: jax.Array, x: jax.Array, rms: float, bounds: Bounds | None = (0.0, 1.0)
) -> jax.Array:
    """Adds what the code released with arXiv 2507.08261 draws as sub-Gaussian noise.

    A Cauchy draw of scale ``rms`` / sqrt(2), which has neither mean nor variance: only clipping
    to ``bounds`` keeps it finite.  ``rms`` is that code's sigma, and NOT the root mean square of
    the change; measure that from the result.

    Raises:
      ValueError: there are no bounds, or ``rms`` is negative or not finite.
    """
    if bounds is None:
        raise ValueError("clipped_cauchy needs bounds; without them it has no variance")

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
"""Name -> noise."""


def _add(
    x: jax.Array, draw: Callable[[], jax.Array], rms: float, bounds: Bounds | None
) -> jax.Array:
    if not (math.isfinite(rms) and rms >= 0):
        raise ValueError(f"rms must be finite and not negative; got {rms}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating; got dtype {x.dtype}.  Scale images to [0, 1] first")
    if bounds is None:
        return x + rms * draw()
    box = Threat("linf", 0.0, bounds)  # which refuses what is no box
    looked_at = not isinstance(x, jax.core.Tracer) and x.size  # inside jit values cannot be
    if looked_at and not float(geometry.outside_box(x, box.bounds)) <= box.box_tolerance():
        smallest, largest = float(jnp.min(x)), float(jnp.max(x))
        raise ValueError(f"x must lie in {bounds}; got values in [{smallest}, {largest}]")
    return geometry.into_box(x + rms * draw(), box.bounds)
