"""Norms for training on batches of a few examples, which keep more than running moments.

In inference both are plain batch norm, or what ``test_statistics`` says.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from steinnorm import functional
from steinnorm.nnx import SteinBatchNorm
from steinnorm.rules import TowardRunningMean, TowardRunningVariance
from steinnorm.shrinkage import Shrinkage
from steinnorm.statistics import BatchStatistics, Moments

PLAIN_UNTIL, SHIFT_FULL_AT, SCALE_FULL_AT = 5 / 160, 25 / 160, 40 / 160
"""Shares of the training at which Batch Renormalization's limits begin to widen and are full.

Ioffe widened them between steps 5,000 and 25,000 (the shift) and 40,000 (the scale), in trainings
of about 160,000 steps.
"""

LARGEST_SCALE, LARGEST_SHIFT = 3.0, 5.0


class _RemembersMore(nnx.Module):
    """A batch norm whose rule of training depends on a memory of its own.

    The layer stands inside, so that in inference all that works on it works here.
    """

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **settings: Any):
        self.norm = SteinBatchNorm(num_features, rngs=rngs, **settings)

    def rule(self) -> Shrinkage:
        """Returns the rule for this step of the training."""
        raise NotImplementedError

    def remember(self, batch: BatchStatistics) -> None:
        """Updates the memory, after a step of the training."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises ``x``, any rank, features last."""
        norm = self.norm
        if norm.use_running_average:
            return norm(x)
        scale, bias = (None if p is None else p[...] for p in (norm.scale, norm.bias))
        result = functional.stein_batch_norm(
            x,
            scale,
            bias,
            Moments(norm.mean[...], norm.var[...]),
            shrinkage=self.rule(),
            momentum=norm.momentum,
            epsilon=norm.epsilon,
            dtype=norm.dtype,
        )
        assert result.running is not None
        assert result.batch is not None
        running, batch = jax.lax.stop_gradient((result.running, result.batch))
        norm.mean[...], norm.var[...] = running
        self.remember(batch)
        return result.y


class BatchRenorm(_RemembersMore):
    """Batch Renormalization (Ioffe 2017, arXiv 1702.03275).

    Training normalises as inference will: y = r (x - m) / sd + d with the batch's own mean and
    deviation, and r and d, of which no gradient is taken, such that the running ones result. Both
    are held within limits that begin as batch norm's (r = 1, d = 0) and widen.

    Args:
      num_features: C.
      total_steps: of the training, in whose shares the limits widen.
      rngs: of the parameters.
      settings: of ``SteinBatchNorm``.
    """

    def __init__(self, num_features: int, *, total_steps: int, rngs: nnx.Rngs, **settings: Any):
        super().__init__(num_features, rngs=rngs, shrinkage="none", **settings)
        self.total_steps = total_steps
        self.steps = nnx.BatchStat(jnp.zeros((), jnp.float32))

    def rule(self) -> Shrinkage:
        """Returns the rule with the limits of this step."""
        done = self.steps[...] / self.total_steps

        def widened(full_at: float, first: float, last: float) -> jax.Array:
            return jnp.interp(
                done, jnp.array([PLAIN_UNTIL, full_at]), jnp.array([first, last], jnp.float32)
            )

        return renormalised(
            widened(SCALE_FULL_AT, 1.0, LARGEST_SCALE),
            widened(SHIFT_FULL_AT, 0.0, LARGEST_SHIFT),
            jnp.asarray(self.norm.epsilon),
        )

    def remember(self, batch: BatchStatistics) -> None:
        """Counts the step."""
        self.steps[...] += 1


def renormalised(
    largest_scale: jax.Array | float, largest_shift: jax.Array | float, epsilon: jax.Array | float
) -> Shrinkage:
    """Returns Batch Renormalization as a shrinkage.

    r (x - m) / sd + d is (x - m') / sd' with sd' = sd / r and m' = m - d sd / r.

    Args:
      largest_scale: r is held within [1 / largest_scale, largest_scale].
      largest_shift: d is held within [-largest_shift, largest_shift].
      epsilon: the layer's.
    """
    limits = (largest_scale, largest_shift, epsilon)
    return Shrinkage(
        "batch_renorm", _RenormMean(*limits), _RenormVariance(*limits), toward_running=True
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Renorm:
    largest_scale: jax.Array | float
    largest_shift: jax.Array | float
    epsilon: jax.Array | float

    def scale(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns r."""
        ratio = jnp.sqrt((batch.variance + self.epsilon) / (running.variance + self.epsilon))
        limited = jnp.clip(ratio, 1 / self.largest_scale, self.largest_scale)
        return jax.lax.stop_gradient(limited)

    def shift(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        """Returns d."""
        distance = (batch.mean - running.mean) / jnp.sqrt(running.variance + self.epsilon)
        limited = jnp.clip(distance, -self.largest_shift, self.largest_shift)
        return jax.lax.stop_gradient(limited)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _RenormMean(_Renorm):
    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        deviation = jnp.sqrt(batch.variance + self.epsilon)
        shift = self.shift(batch, running) * deviation / self.scale(batch, running)
        return batch.mean - shift


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _RenormVariance(_Renorm):
    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        # The layer adds epsilon once more.  Only a channel that hardly varies is cut off at 0.
        scaled = (batch.variance + self.epsilon) / jnp.square(self.scale(batch, running))
        return jnp.maximum(scaled - self.epsilon, 0)


class LearntNoise(_RemembersMore):
    """``toward_running`` with the sampling noise remembered from earlier batches.

    ``toward_running`` estimates the noise of a batch's means and variances from the few examples of
    the same batch. Here it is a moving average over batches of that estimate, in units of the
    channels' variances and averaged over channels: what the rule needs, and known far better.

    Args:
      num_features: C.
      rngs: of the parameters.
      settings: of ``SteinBatchNorm``.
    """

    def __init__(self, num_features: int, *, rngs: nnx.Rngs, **settings: Any):
        super().__init__(num_features, rngs=rngs, shrinkage="toward_running", **settings)
        # Noise of one example's mean and variance; the weight corrects for the zeros it began with.
        self.mean_noise = nnx.BatchStat(jnp.zeros((), jnp.float32))
        self.variance_noise = nnx.BatchStat(jnp.zeros((), jnp.float32))
        self.weight = nnx.BatchStat(jnp.zeros((), jnp.float32))

    def rule(self) -> Shrinkage:
        """Returns the rule with the noise that is remembered."""
        weight = self.weight[...]
        known = (self.mean_noise[...] / weight, self.variance_noise[...] / weight, weight > 0)
        return Shrinkage(
            "learnt_noise",
            _WithNoise(TowardRunningMean(), *known),
            _WithNoise(TowardRunningVariance(), *known),
            needs_noise=True,
            toward_running=True,
            straight_through=True,
        )

    def remember(self, batch: BatchStatistics) -> None:
        """Adds the batch's own estimate of the noise to the memory."""
        assert batch.mean_noise is not None
        assert batch.variance_noise is not None
        assert batch.examples is not None
        examples = batch.examples.astype(batch.mean.dtype)
        known = (batch.variance > 0) & (examples > 1)
        own = jnp.where(known, batch.variance, 1)

        def average(noise: jax.Array) -> jax.Array:
            channels = jnp.maximum(jnp.sum(known, dtype=noise.dtype), 1)
            return jnp.sum(jnp.where(known, noise, 0)) / channels

        found = (
            average(examples * batch.mean_noise / own),
            average(examples * batch.variance_noise / jnp.square(own)),
            jnp.ones(()),
        )
        share = jnp.where(jnp.any(known), 1 - self.norm.momentum, 0)
        for memory, new in zip(
            (self.mean_noise, self.variance_noise, self.weight), found, strict=True
        ):
            memory[...] += share * (new - memory[...])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _WithNoise:
    """A rule that is given noise which is known, where it is, instead of the batch's estimate."""

    rule: TowardRunningMean | TowardRunningVariance
    mean_noise: jax.Array
    variance_noise: jax.Array
    known: jax.Array

    def __call__(self, batch: BatchStatistics, running: Moments) -> jax.Array:
        assert batch.mean_noise is not None
        assert batch.variance_noise is not None
        assert batch.examples is not None
        examples = jnp.maximum(batch.examples, 1).astype(batch.mean.dtype)
        relative = (self.mean_noise / examples, self.variance_noise / examples)
        units = (batch.variance, jnp.square(batch.variance))
        mean_noise, variance_noise = (
            jnp.where(self.known, noise * unit, own)
            for noise, unit, own in zip(
                relative, units, (batch.mean_noise, batch.variance_noise), strict=True
            )
        )
        return self.rule(
            batch._replace(mean_noise=mean_noise, variance_noise=variance_noise), running
        )
