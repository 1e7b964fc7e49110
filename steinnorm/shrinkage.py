"""Which estimate of the channel means and variances a layer normalises with.

A :class:`Shrinkage` is two rules, one for the means and one for the variances, and three facts
about them. The constructors below give the rules of the paper, its baselines and our own; a rule
of your own is one more :class:`Shrinkage`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.typing import ArrayLike

from steinnorm import _checks, rules
from steinnorm.statistics import BatchStatistics, Moments

__all__ = [
    "NAMES",
    "RunningStatistics",
    "Shrinkage",
    "by_name",
    "combine",
    "jsnorm",
    "lasso",
    "none",
    "resolve",
    "ridge",
    "stein",
    "stein_mean_only",
    "toward_running",
]

RunningStatistics = Moments
"""Moving averages of batch statistics: zeros and ones at first."""

Rule = Callable[[BatchStatistics, Moments], jax.Array]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Shrinkage:
    """A rule for the means and a rule for the variances.

    A rule takes the statistics of the batch (over all devices) and the running ones, of shape (C,)
    but for ``count`` and ``examples``, which are scalars where they are the same for all channels,
    and returns an estimate of shape (C,). Two with equal rules are equal, and jit does not compile
    the second again: those of the constructors here, made alike; but two lambdas are not, so make a
    rule of them once. Numbers inside the rules of :mod:`steinnorm.rules` may be traced.

    Attributes:
      name: what tables and plots call it.
      mean: rule for the means.
      variance: rule for the variances.
      needs_noise: the rules read ``mean_noise``, ``variance_noise`` or ``examples``.
      toward_running: the rules shrink towards the running statistics. Those then record the
        batch's own statistics: a target that recorded what was shrunk to it would chase itself.
      straight_through: in training, values are those of the shrunk statistics, gradients those of
        plain batch normalisation (as in Batch Renormalization, Ioffe 2017).

    Example:
      >>> from steinnorm import moderated_variance
      >>> moderated = Shrinkage(
      ...     name="moderated",
      ...     mean=lambda batch, running: batch.mean,
      ...     variance=lambda batch, running: moderated_variance(batch.variance, batch.count - 1),
      ... )
      >>> moderated.name
      'moderated'
    """

    name: str
    mean: Rule
    variance: Rule
    needs_noise: bool = False
    toward_running: bool = False
    straight_through: bool = False

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Splits it into rules that are pytrees, with their numbers, and all that is fixed."""
        both = (self.mean, self.variance)
        fixed = tuple(rule if jax.tree_util.all_leaves([rule]) else None for rule in both)
        trees = tuple(rule if f is None else None for rule, f in zip(both, fixed, strict=True))
        facts = (self.needs_noise, self.toward_running, self.straight_through)
        return trees, (self.name, fixed, facts)

    @classmethod
    def tree_unflatten(cls, fixed: tuple[Any, ...], trees: tuple[Any, ...]) -> Shrinkage:
        """Puts together what :meth:`tree_flatten` took apart."""
        name, functions, facts = fixed
        both = (t if f is None else f for t, f in zip(trees, functions, strict=True))
        return cls(name, *both, *facts)


def combine(mean: str | Shrinkage, variance: str | Shrinkage) -> Shrinkage:
    """Takes the means from one shrinkage and the variances from another.

    Args:
      mean: a shrinkage or its name.
      variance: a shrinkage or its name.

    Returns:
      The combination; it needs noise, shrinks towards the running statistics or passes gradients
      straight through if either of the two does.

    Example:
      >>> combine(mean="none", variance=stein(fraction=0.5)).name
      'mean: none, variance: stein(fraction=0.5)'
    """
    first, second = resolve(mean), resolve(variance)
    return Shrinkage(
        name=f"mean: {first.name}, variance: {second.name}",
        mean=first.mean,
        variance=second.variance,
        needs_noise=first.needs_noise or second.needs_noise,
        toward_running=first.toward_running or second.toward_running,
        straight_through=first.straight_through or second.straight_through,
    )


def none() -> Shrinkage:
    """The sample statistics as they are: Flax's BatchNorm."""
    return Shrinkage("none", rules.SampleMean(), rules.SampleVariance())


def stein(fraction: ArrayLike = 1.0) -> Shrinkage:
    """The paper's pair, :func:`~steinnorm.stein_mean` and :func:`~steinnorm.stein_variance`.

    Args:
      fraction: share of the variance rule's constant, a scalar in (0, 1].

    Raises:
      TypeError: ``fraction`` is no real number.
      ValueError: ``fraction`` is outside (0, 1], where its value is known, or not scalar.
    """
    share = _checks.fraction(fraction)
    name = _named("stein", "fraction", share, default=1.0)
    return Shrinkage(name, rules.SteinMean(), rules.SteinVariance(share))


def stein_mean_only() -> Shrinkage:
    """:func:`~steinnorm.stein_mean` for the means, sample variances."""
    return Shrinkage("stein_mean_only", rules.SteinMean(), rules.SampleVariance())


def jsnorm() -> Shrinkage:
    """JSNorm (arXiv 2312.00313): one rule for the means and for the variances."""
    return Shrinkage("jsnorm", rules.JSNormMean(), rules.JSNormVariance())


def ridge(strength: ArrayLike = 1e-3) -> Shrinkage:
    """The ridge baseline of the paper's code.

    Args:
      strength: a scalar, at least 0; may be traced.

    Raises:
      TypeError: ``strength`` is no real number.
      ValueError: ``strength`` is negative, where its value is known, or not scalar.
    """
    s = _checks.strength(strength)
    name = _named("ridge", "strength", s, default=1e-3)
    return Shrinkage(name, rules.RidgeMean(s), rules.RidgeVariance(s))


def lasso(strength: ArrayLike = 1e-3) -> Shrinkage:
    """The lasso baseline of the paper's code.

    Args:
      strength: a scalar, at least 0; may be traced.

    Raises:
      TypeError: ``strength`` is no real number.
      ValueError: ``strength`` is negative, where its value is known, or not scalar.
    """
    s = _checks.strength(strength)
    name = _named("lasso", "strength", s, default=1e-3)
    return Shrinkage(name, rules.LassoMean(s), rules.LassoVariance(s))


def toward_running(single_example: rules.SingleExample = "batch") -> Shrinkage:
    """Shrinks batch statistics towards the running ones, by their measured sampling noise.

    James-Stein (positive part) on the means in units of the channels' standard deviations, and
    on the logarithms of the variances, with the noise estimated from the spread between examples.
    A batch that tells much (many examples, or far from the running statistics) is kept; a small
    one close to them is mostly replaced. There is nothing to tune. In training, gradients are those
    of batch normalisation. While the running statistics are still at their initial values the
    batch's own are used.

    What is proved: with independent channels, normal noise and known variances the means have a
    lower risk than the batch's own, wherever the running means are. In a network channels are
    correlated, and the proof needs a covariance of the channel means whose trace is about four
    times its largest eigenvalue (more in small batches). Where it is not, the means may lose: by
    up to 1.4 times the batch's risk with correlations of 0.9, in the worst case. What the rule
    gains in practice is that batches are mostly close to the past: a prior that is right, not
    dominance. For the variances nothing is proved. See ``docs/theory.md``.

    Args:
      single_example: what a channel uses whose noise is unknown (a batch of one example, a constant
        channel): ``"batch"`` as in training batch norm, ``"running"`` for inference.

    Raises:
      ValueError: an unknown ``single_example``.
    """
    _checks.one_of("single_example", single_example, ["batch", "running"])
    return Shrinkage(
        "toward_running",
        rules.TowardRunningMean(single_example),
        rules.TowardRunningVariance(single_example),
        needs_noise=True,
        toward_running=True,
        straight_through=True,
    )


def _named(name: str, setting: str, value: Any, *, default: float) -> str:
    """Names a shrinkage after what was chosen; a traced number has no value to be named."""
    if isinstance(value, jax.core.Tracer):
        return f"{name}({setting}=traced)"
    return name if value == default else f"{name}({setting}={value})"


_CONSTRUCTORS: dict[str, Callable[..., Shrinkage]] = {
    "none": none,
    "stein": stein,
    "stein_mean_only": stein_mean_only,
    "jsnorm": jsnorm,
    "ridge": ridge,
    "lasso": lasso,
    "toward_running": toward_running,
}
NAMES: tuple[str, ...] = tuple(_CONSTRUCTORS)
"""The names that :func:`by_name` knows."""


def by_name(name: str, **options: Any) -> Shrinkage:
    """Returns a shrinkage by its name, for configs.

    Args:
      name: one of :data:`NAMES`.
      **options: arguments of the constructor of that name.

    Raises:
      TypeError: an option that the constructor does not have (the message lists those that it has),
        or that is of another kind.
      ValueError: an unknown name; the message lists the names. An option out of its range.

    Example:
      >>> by_name("ridge", strength=0.1).name
      'ridge(strength=0.1)'
    """
    _checks.one_of("shrinkage", name, NAMES)
    constructor = _CONSTRUCTORS[name]
    known = tuple(inspect.signature(constructor).parameters)
    unknown = [option for option in options if option not in known]
    if unknown:
        takes = ", ".join(known) or "no options"
        raise TypeError(f"shrinkage {name!r} takes {takes}; got {', '.join(unknown)}.")
    return constructor(**options)


def resolve(shrinkage: str | Shrinkage) -> Shrinkage:
    """Returns a shrinkage given by itself or by its name.

    Raises:
      TypeError: neither a name nor a :class:`Shrinkage`.
      ValueError: an unknown name.
    """
    if isinstance(shrinkage, Shrinkage):
        return shrinkage
    if isinstance(shrinkage, str):
        return by_name(shrinkage)
    hint = f" Did you mean {shrinkage.__name__}()?" if callable(shrinkage) else ""
    raise TypeError(
        f"shrinkage must be a Shrinkage or one of the names {', '.join(NAMES)}; "
        f"got {type(shrinkage).__name__}.{hint}"
    )
