"""Whether the gradient is there, and whether it is the gradient."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks.checks.box import limits
from steinnorm.attacks.checks.findings import Finding, at_most, judged, not_applicable, percent
from steinnorm.attacks.checks.precision import coarse_dtype, exact_products
from steinnorm.attacks.checks.runs import Runs
from steinnorm.attacks.losses import per_example

AGREEMENT = 0.95
"""Smallest cosine between two gradients that must be parallel, below which they are rounding.

Honest networks of 12 layers reach 0.99999 in float32, and 0.9996 in bfloat16.
"""

_CANCELLED = {"float32": 2e-6, "coarse": 0.06}  # 16 roundings of what two large gradients leave


def zero_gradients(runs: Runs) -> Finding:
    """Checks that the margin has a gradient wherever the model is right, and no mere rounding.

    A gradient is linear in its loss: the margin three times over must have a gradient of the same
    direction, and the gradients of the logits that it adds and of those that it takes away must add
    up to its own.  Where a softmax or the like has cut off what tells one input from another,
    1 - p is rounding of either sign, and they do not.  The margin, because its own gradient does
    not vanish where the model is sure: whatever is missing is missing in the model.
    """
    name, limit = "zero_gradients", runs.settings.zero_gradient_share
    right = np.any(runs.clean_right.reshape(len(runs.x), -1), axis=1)
    if not right.any():
        return not_applicable(name, f"no label of the clean {runs.size} is found")
    with exact_products():
        gradient, thrice, added, taken = (
            _gradient(runs, runs.problem.x, *factors).reshape(len(right), -1)[right]
            for factors in ((1, 1), (3, 3), (1, 0), (0, 1))
        )
    zero = ~gradient.any(axis=1)
    coarse = coarse_dtype(runs.problem.model, runs.problem.x) is not None
    in_parts = _cosine(gradient, added + taken)
    in_parts[_cancelled(gradient, added, taken, _CANCELLED["coarse" if coarse else "float32"])] = 1
    parallel = np.minimum(_cosine(gradient, thrice), in_parts)
    noise = ~zero & ~(parallel >= AGREEMENT)  # NaN is noise
    share = float(np.mean(zero | noise))
    there = f"{parallel[~zero].min():.4f}" if not zero.all() else "none"
    detail = (
        f"the gradient of the margin is all zero in {percent(float(zero.mean()))} of the "
        f"{right.sum()} examples that are classified right, and rounding in "
        f"{percent(float(noise.mean()))} (cosine below {AGREEMENT} with that of three times the "
        f"margin or with the sum of its parts; smallest {there}), together at most "
        f"{percent(limit)} allowed; of the single values of these gradients "
        f"{percent(float(np.mean(gradient == 0)))} are zero"
    )
    return judged(name, at_most(share, limit), share, detail)


def _cancelled(whole: np.ndarray, a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Returns where a + b misses the whole by no more than rounding of a and b explains, (n,)."""
    missed, large, larger = (np.linalg.norm(v, axis=1) for v in (a + b - whole, a, b))
    return missed <= share * (large + larger)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosines (n,) between rows; 0 where one is zero."""
    # Scaled first, so that the squares of the smallest float32 numbers stay numbers.
    a, b = (v / np.maximum(np.abs(v).max(axis=1, keepdims=True), 1e-300) for v in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1)


class _Agreement(NamedTuple):
    """How well differences and gradient agree along directions of one kind.

    Attributes:
      error: the median relative error, at the step where it is smallest.
      step: that step, in widths of the box.
      pairs: how many, of an example and a direction.
    """

    error: float
    step: float
    pairs: int


def gradient_matches_finite_differences(runs: Runs) -> Finding:
    """Checks that steps along the gradient change the loss by what the gradient says.

    The loss is the margin, whose gradient does not vanish where the model is sure.  The point is
    a little beside each input, because inputs with equal values, such as a black background, may
    lie at a kink of every ReLU.  The median leaves room for kinks.
    """
    name, limit = "gradient_matches_finite_differences", runs.settings.gradient_error
    dtype = coarse_dtype(runs.problem.model, runs.problem.x)
    if dtype:
        return not_applicable(name, f"the model computes in {dtype}, too coarse for differences")
    with exact_products():
        found = _agreements(runs)
    worst = float(np.max([agreement.error for agreement in found.values()]))  # NaN stays NaN
    kinds = ", ".join(
        f"{kind} {percent(a.error)} (n = {a.pairs}, step {a.step:g})" for kind, a in found.items()
    )
    whole = "the batch's summed margin" if runs.joint else "each example's margin"
    detail = (
        f"median relative error of the gradient of {whole} against central differences in float32, "
        f"by direction, each at the best of {len(runs.settings.difference_steps)} steps (in widths "
        f"of the box): {kinds}; at most {percent(limit)} allowed; {runs.size}"
    )
    return judged(name, at_most(worst, limit), worst, detail)


def _agreements(runs: Runs) -> dict[str, _Agreement]:
    """For each kind of direction, in the order of ``_directions``."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(runs.key)).ravel())
    x, steps = runs.x, runs.settings.difference_steps
    low, high, width = limits(runs.problem.threat, x)
    beside = max(steps) * width
    noise = (beside * generator.uniform(-1, 1, x.shape)).astype(x.dtype)
    at = np.clip(x + noise, low + beside, high - beside).astype(x.dtype)
    gradient = _gradient(runs, _placed(runs, at))
    errors: dict[str, list[list[np.ndarray]]] = {}
    for kind, direction in _directions(gradient, at, generator, runs):
        each = errors.setdefault(kind, [[] for _ in steps])
        for place, step in enumerate(steps):
            each[place].append(_error(runs, at, step * width * direction, gradient))
    found = {}
    for kind, each in errors.items():
        medians = [float(np.median(np.concatenate(values))) for values in each]
        best = int(np.argmin(medians))
        pairs = sum(len(values) for values in each[best])
        found[kind] = _Agreement(medians[best], steps[best], pairs)
    return found


def _directions(
    gradient: np.ndarray, at: np.ndarray, generator: np.random.Generator, runs: Runs
) -> Iterator[tuple[str, np.ndarray]]:
    """Kinds and directions (B, ...) whose largest value is 1, in each example.

    A change of brightness or contrast that all examples share moves the statistics of the batch,
    which random changes leave nearly alone: it finds a gradient that does not go through them.
    """
    yield "gradient", _with_peak_one(gradient, joint=runs.joint)
    for _ in range(runs.settings.directions):
        yield "random signs", generator.choice([-1.0, 1.0], at.shape)
    yield "brightness", np.ones(at.shape)
    yield "contrast", _with_peak_one(at - at.mean(dtype=np.float64), joint=True)


def _with_peak_one(values: np.ndarray, *, joint: bool) -> np.ndarray:
    axes = None if joint else tuple(range(1, values.ndim))
    peak = np.abs(values).max(axis=axes, keepdims=True)
    return values / np.where(peak > 0, peak, 1)


def _error(runs: Runs, at: np.ndarray, move: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Relative errors: one for each example, or a single one where they depend on each other.

    Relative to the larger of the two changes and of what a random change of the same size does to
    the loss: along some directions a right gradient says that nothing happens.
    """
    ahead, behind = ((at + sign * move).astype(at.dtype) for sign in (1, -1))
    seen = _losses(runs, ahead) - _losses(runs, behind)
    moved = ahead.astype(np.float64) - behind  # as it was rounded
    said = _sum_per_example(gradient * moved)
    usual = _sum_per_example(gradient**2) * np.abs(moved).max() ** 2
    if runs.joint:
        seen, said, usual = (v.sum(keepdims=True) for v in (seen, said, usual))
    scale = np.maximum(np.maximum(np.abs(seen), np.abs(said)), np.sqrt(usual))
    return np.abs(seen - said) / np.where(scale > 0, scale, 1)


def _sum_per_example(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).sum(axis=1)


def _placed(runs: Runs, x: np.ndarray) -> jax.Array:
    """Returns inputs on the devices on which the batch is."""
    return jax.device_put(x, runs.problem.x.sharding)


def _losses(runs: Runs, x: np.ndarray) -> np.ndarray:
    """Returns margins (B,) in float64; they are computed in float32."""
    found = _margins(runs.problem.model, _placed(runs, x), runs.problem.criterion)
    return np.asarray(found).astype(np.float64)


def _gradient(runs: Runs, x: jax.Array, added: float = 1, taken: float = 1) -> np.ndarray:
    """Returns the gradient (B, ...) of the batch's summed margin, as float64.

    Args:
      runs: the batch.
      x: where.
      added: factor of the logits that the margin adds.
      taken: factor of the logits that it takes away.
    """
    found = _pulled(
        runs.problem.model, x, runs.problem.criterion, jnp.float32(added), jnp.float32(taken)
    )
    return np.asarray(found).astype(np.float64)


@jax.jit
def _margins(model: jax.tree_util.Partial, x: jax.Array, criterion: Criterion) -> jax.Array:
    return per_example("margin", traced_logits(model, x), criterion)


@jax.jit
def _pulled(
    model: jax.tree_util.Partial,
    x: jax.Array,
    criterion: Criterion,
    added: jax.Array,
    taken: jax.Array,
) -> jax.Array:
    logits, pull = jax.vjp(lambda images: traced_logits(model, images), x)
    weights = jax.grad(lambda z: jnp.sum(per_example("margin", z, criterion)))(logits)
    added, taken = added.astype(weights.dtype), taken.astype(weights.dtype)
    return pull(added * jnp.maximum(weights, 0) + taken * jnp.minimum(weights, 0))[0]
