"""The rule of ``test_statistics="calibrated"``: a batch's statistics against those of clean inputs.

A *calibration* says, for each channel, what the layer's clean inputs look like and how much the
mean and the variance of a single example scatter. So the noise of a test batch is known before the
batch is seen, and a batch of one example can be judged. Everything is a pure function of
per-channel values; what measures a calibration is in ``linen.calibrate`` and ``nnx.calibrate``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from steinnorm._numerics import safe_divide
from steinnorm._sharding import select
from steinnorm.statistics import BatchStatistics, Moments

__all__ = ["Calibrated", "Calibration", "calibrated"]


class Calibration(NamedTuple):
    """What a layer's inputs look like where nothing is wrong with them; all of shape (C,).

    Attributes:
      mean: population mean m0.
      variance: population variance v0, biased; 0 for a channel that was constant.
      mean_spread: variance over examples of an example's mean, over ``variance``: the intraclass
        correlation rho, 1 where an example is one value.
      variance_spread: variance over examples of an example's mean squared distance from ``mean``,
        over ``variance`` squared: kappa.
    """

    mean: jax.Array
    variance: jax.Array
    mean_spread: jax.Array
    variance_spread: jax.Array


class Calibrated(NamedTuple):
    """What :func:`calibrated` returns.

    Attributes:
      used: the mean and variance to normalise with, shape (C,). Alignment is in them, so that they
        estimate no moments; ``used.variance + epsilon`` is positive, ``used.variance`` need not be.
      mean_factor: a, how much of the means' shift is taken as real, a scalar in [0, 1].
      variance_factor: b, how much of the variances' change is, likewise.
    """

    used: Moments
    mean_factor: jax.Array
    variance_factor: jax.Array


def calibrated(
    batch: BatchStatistics,
    calibration: Calibration,
    running: Moments,
    epsilon: ArrayLike = 0.0,
    *,
    streams: bool = False,
) -> Calibrated:
    r"""Estimates a test batch's moments from its calibration, aligned with the running statistics.

    With B examples, the batch's mean m and biased variance v, and k = 1 + 1.5 / B:

    .. math::
        v' &= v / (1 - \rho / B), \quad z = (m - m_0) / \sqrt{v'}, \quad L = \log(v' / v_0) \\
        a &= \Big(1 - \frac{k (C-2) \bar\rho / B}{\sum z^2}\Big)_+, \quad
        b = \Big(1 - \frac{k (C-2) \bar\kappa / B}{\sum L^2}\Big)_+ \\
        \hat m &= m_0 + a (m - m_0), \quad \hat v = v_0 (v' / v_0)^b \\
        x' &= (x - \hat m) \sqrt{v_0 / \hat v} + m_0

    and x' is normalised with the running statistics. To v' and v_0 epsilon is added first, as to
    every variance of the layer, so that no channel is magnified by more than
    sqrt((v_0 + epsilon) / epsilon). With a = b = 0 this is inference with running statistics.

    What the formulas leave open:

    - C - 2 is at least 1. One or two channels would be believed whatever their noise; so they
      need a change that exceeds it. C counts the channels that take part.
    - A channel without a value, or that was constant when the layer was calibrated, takes no part:
      it is normalised with the running statistics.
    - A channel that is constant in the batch, or of which a batch of one value an example shows no
      variance, keeps its scale (its v' is v_0). Its mean takes part.

    Args:
      batch: with ``examples``; with ``streams`` also with the two noises.
      calibration: of this layer.
      running: the layer's running statistics.
      epsilon: the layer's, scalar or in the shape of the features.
      streams: whether a batch may hold examples that are more alike than those of the calibration
        (video, sorted folders). What the batch does not show of the examples' natural spread is
        then taken for noise that they have in common: 1 / B becomes max(1 - r, 1 / B) with r the
        sum of the batch's own spreads over the sum of the calibration's.
    """
    dtype = batch.mean.dtype
    calibration, running = jax.tree.map(lambda a: a.astype(dtype), (calibration, running))
    epsilon = jnp.asarray(epsilon, dtype)
    m0, v0 = calibration.mean, calibration.variance
    examples = batch.examples
    assert examples is not None
    each = 1 / jnp.maximum(examples, 1)  # 1 / B, a scalar or one a channel
    judged = (v0 > 0) & (batch.count > 0)
    varies = judged & (batch.variance > 0)
    of_mean, of_variance = (
        _unseen_shares(batch, calibration, varies, each) if streams else (each, each)
    )
    seen = 1 - jnp.minimum(calibration.mean_spread, 1) * of_mean
    varies &= seen > 0
    v = select(varies, batch.variance, select(judged, v0, 1)) / select(varies, seen, 1)

    factor = 1 + 1.5 * each
    shift = select(judged, batch.mean - m0)
    change = select(varies, jnp.log(v + epsilon) - jnp.log(select(varies, v0, 1) + epsilon))
    z_squared = jnp.square(shift) / (v + epsilon)
    of_m0 = _share_of_noise(z_squared, factor * calibration.mean_spread * of_mean, judged)
    of_v0 = _share_of_noise(
        jnp.square(change), factor * calibration.variance_spread * of_variance, varies
    )
    a, b = 1 - of_m0, 1 - of_v0

    scale = jnp.exp(0.5 * b * change)  # sqrt(v^ / v0)
    # x' - mu = (x - m^) / scale + m0 - mu = (x - (m^ - scale (m0 - mu))) / scale, where m^ is a
    # weighted average: added to an m0 that is far off, the batch's mean lost its digits.
    mean = a * batch.mean + of_m0 * m0 + scale * (running.mean - m0)
    squared = jnp.square(scale)
    variance = squared * running.variance + (squared - 1) * epsilon
    used = Moments(select(judged, mean, running.mean), select(judged, variance, running.variance))
    return Calibrated(used, a, b)


def _share_of_noise(squares: jax.Array, noise: jax.Array, known: jax.Array) -> jax.Array:
    """Returns 1 less the positive-part James-Stein factor over the known channels.

    1 where nothing moved.

    Args:
      squares: of the distances from the calibration, (C,); 0 where not known.
      noise: their variances where only chance moves them, (C,).
      known: the channels that count, (C,).
    """
    channels = jnp.sum(known, dtype=squares.dtype)
    average = jnp.sum(select(known, noise)) / jnp.maximum(channels, 1)
    total_noise = jnp.maximum(channels - 2, 1) * average
    # The positive part, in a form whose gradient is finite where next to nothing moved.
    largest = jnp.maximum(jnp.sum(squares), total_noise)
    return safe_divide(total_noise, largest, otherwise=1.0)


def _unseen_shares(
    batch: BatchStatistics, calibration: Calibration, varies: jax.Array, each: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns what stands for 1 / B where the examples of a batch may be alike.

    By the law of total variance the natural spread between examples is what the batch shows of it
    and what is common to all of its examples.
    """
    assert batch.examples is not None
    assert batch.mean_noise is not None
    assert batch.relative_variance_noise is not None
    examples, variance = batch.examples, select(varies, batch.variance, 1)

    def share(noise: jax.Array, natural: jax.Array) -> jax.Array:
        own = jnp.sum(select(varies, examples * noise))
        r = safe_divide(own, jnp.sum(select(varies, natural)), otherwise=0.0)
        return jnp.maximum(1 - r, each)

    return (
        share(batch.mean_noise / variance, calibration.mean_spread),
        share(batch.relative_variance_noise, calibration.variance_spread),
    )
