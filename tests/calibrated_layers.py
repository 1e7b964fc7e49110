"""What the tests of calibrated inference share: a calibration, the layer, its inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm import Calibration, RunningStatistics, stein_batch_norm
from tests import calibrations, reference

CHANNELS, SIZE, EPSILON = 8, (4, 2, 8), 1e-5
KINDS = ("calibrated", "calibrated_streams")


def population(seed=0, examples=300, size=SIZE):
    return calibrations.population(seed, examples, size)


KNOWN = reference.calibration(population())
RUNNING = (KNOWN.mean + 0.2, KNOWN.variance * np.linspace(0.6, 1.5, CHANNELS))


def library(known=KNOWN, running=RUNNING, dtype=jnp.float32):
    """The same values as the library takes them."""
    return {
        "calibration": Calibration(*(jnp.asarray(a, dtype) for a in known)),
        "running": RunningStatistics(*(jnp.asarray(a, dtype) for a in running)),
    }


@functools.cache
def compiled(kind, **options):
    call = functools.partial(
        stein_batch_norm,
        use_running_average=True,
        test_statistics=kind,
        epsilon=EPSILON,
        **options,
    )
    return jax.jit(lambda x, mask, values: call(x, mask=mask, **values))


def layer(x, kind="calibrated", mask=None, values=None, **options):
    return compiled(kind, **options)(x, mask, library() if values is None else values)


def assert_is_reference(x, kind="calibrated", mask=None, known=KNOWN, tolerance=3e-5, **options):
    got = layer(x, kind, mask, library(known), **options)
    y, a, b = reference.calibrated(
        x, known, *RUNNING, epsilon=EPSILON, streams=kind == KINDS[1], mask=mask, **options
    )
    np.testing.assert_allclose(got.factors, (a, b), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.y, y, rtol=tolerance, atol=tolerance)
    return got


def shifted(examples, gain=1.6, offset=1.0, seed=1):
    return (population(seed, examples) * gain + offset).astype(np.float32)
