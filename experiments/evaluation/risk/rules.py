"""The estimators whose risk is measured, by name: the library's own functions, many draws at once.

Beside the rules that a layer can have stand two that need the covariance S of the channel means:
James & Stein's with the constant tr S - 2 lmax (lmax: the largest eigenvalue) for C - 2, with S
known, and with S estimated from the means of the batch's examples.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm import estimators
from steinnorm import shrinkage as rules
from steinnorm.shrinkage import RunningStatistics
from steinnorm.statistics import BatchStatistics

Target = Literal["mean", "variance"]
Array = TypeVar("Array", np.ndarray, jax.Array)

SAMPLE = "sample"
"""The name of the sample statistics, the reference of all ratios."""
RUNNING = "running"
"""The name of the stored statistics, which ignore the batch: measured on feature maps only."""


class Draws(NamedTuple):
    """Statistics of R batches, arrays of R rows; noise is that of the means.

    Attributes:
      mean: (R, C) sample means.
      variance: (R, C) biased sample variances.
      mean_noise: (R, C) sampling variance of the means, measured between the examples.
      variance_noise: (R, C) that of the variances.
      dimension: (R,) tr S / lmax, S measured between the examples.
      values: N, values per channel.
      examples: B.
      known_noise: (C,) true sampling variance of the means.
      known_dimension: tr S / lmax of the true S.
    """

    mean: np.ndarray
    variance: np.ndarray
    mean_noise: np.ndarray
    variance_noise: np.ndarray
    dimension: np.ndarray
    values: float
    examples: float
    known_noise: np.ndarray
    known_dimension: float


class _Draw(NamedTuple):
    """One row of ``Draws`` as the rules take it."""

    batch: BatchStatistics
    dimension: jax.Array
    known_noise: jax.Array
    known_dimension: jax.Array


Rule = Callable[[_Draw, RunningStatistics], jax.Array]


def _of_layer(rule: rules.Rule) -> Rule:
    return lambda draw, running: rule(draw.batch, running)


def with_dimension(
    mean: jax.Array, noise: jax.Array, dimension: jax.Array, target: ArrayLike = 0.0
) -> jax.Array:
    """Returns James & Stein's estimate with the constant tr S - 2 lmax for C - 2.

    Args:
      mean: (C,).
      noise: (C,) sampling variances, the diagonal of S.
      dimension: tr S / lmax.
      target: what it shrinks to.
    """
    return estimators.james_stein(mean, noise, target=target, effective_dimension=dimension)


MEANS: dict[str, Rule] = {
    SAMPLE: _of_layer(rules.none().mean),
    "james_stein, known noise": lambda d, _: estimators.james_stein(d.batch.mean, d.known_noise),
    "james_stein": lambda d, _: estimators.james_stein(
        d.batch.mean, jnp.asarray(d.batch.mean_noise)
    ),
    "known tr S - 2 lmax": lambda d, _: with_dimension(
        d.batch.mean, d.known_noise, d.known_dimension
    ),
    "tr S - 2 lmax": lambda d, _: with_dimension(
        d.batch.mean, jnp.asarray(d.batch.mean_noise), d.dimension
    ),
    "stein": _of_layer(rules.stein().mean),
    "jsnorm": _of_layer(rules.jsnorm().mean),
    "ridge": _of_layer(rules.ridge().mean),
    "lasso": _of_layer(rules.lasso().mean),
    "toward_running": _of_layer(rules.toward_running().mean),
    "to running, tr S - 2 lmax": lambda d, running: with_dimension(
        d.batch.mean, jnp.asarray(d.batch.mean_noise), d.dimension, running.mean
    ),
    RUNNING: lambda _, running: running.mean,
}
VARIANCES: dict[str, Rule] = {
    SAMPLE: _of_layer(rules.none().variance),
    "N/(N+1) v": lambda d, _: d.batch.variance * d.batch.count / (d.batch.count + 1),
    "stein": _of_layer(rules.stein().variance),
    "stein, fraction 0.5": _of_layer(rules.stein(fraction=0.5).variance),
    "jsnorm": _of_layer(rules.jsnorm().variance),
    "moderated": lambda d, _: estimators.moderated_variance(d.batch.variance, d.batch.count - 1),
    "ridge": _of_layer(rules.ridge().variance),
    "lasso": _of_layer(rules.lasso().variance),
    "toward_running": _of_layer(rules.toward_running().variance),
    RUNNING: lambda _, running: running.variance,
}


def estimates(
    target: Target,
    draws: Draws,
    running: tuple[np.ndarray, np.ndarray],
    names: tuple[str, ...] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the estimate (R, C) of each rule.

    Args:
      target: what is estimated.
      draws: the statistics of R batches.
      running: means and variances (C,) that ``toward_running`` shrinks to.
      names: of the rules; all but ``RUNNING`` by default.
    """
    table = MEANS if target == "mean" else VARIANCES
    chosen = names or tuple(name for name in table if name != RUNNING)
    as_float32 = jax.tree.map(lambda a: np.asarray(a, np.float32), (draws, tuple(running)))
    found = _estimates(target, chosen, *as_float32)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _estimates(
    target: Target, names: tuple[str, ...], draws: Draws, running: tuple[jax.Array, jax.Array]
) -> dict[str, jax.Array]:
    table = MEANS if target == "mean" else VARIANCES

    def one(mean, variance, mean_noise, variance_noise, dimension):
        batch = BatchStatistics(
            mean,
            variance,
            jnp.asarray(draws.values),
            mean_noise,
            variance_noise,
            jnp.asarray(draws.examples),
        )
        draw = _Draw(
            batch, dimension, jnp.asarray(draws.known_noise), jnp.asarray(draws.known_dimension)
        )
        return {name: table[name](draw, RunningStatistics(*running)) for name in names}

    return jax.vmap(one)(*draws[:5])
