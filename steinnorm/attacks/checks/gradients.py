"""Checks of the gradient: that it does not vanish, and that it is correct."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks.checks.box import box_limits
from steinnorm.attacks.checks.findings import Finding, at_most, finding_of, not_applicable, percent
from steinnorm.attacks.checks.precision import (
    full_precision_products,
    low_precision_dtype,
    precision_note,
)
from steinnorm.attacks.checks.runs import AttackRuns
from steinnorm.attacks.losses import per_example

AGREEMENT = 0.95
"""Smallest cosine between two gradients that should be parallel; below it they are rounding.

Undefended networks of 12 layers reach 0.99999 in float32 and 0.9996 in bfloat16.
"""

_CANCELLED = {
    "float32": 2e-6,
    "coarse": 0.06,
}  # 16 rounding errors of two large gradients that cancel


def zero_gradients(runs: AttackRuns) -> Finding:
    """Checks that the margin's gradient is neither zero nor rounding wherever the model is right.

    A gradient is linear in its loss: three times the margin must have a gradient of the same
    direction, and the gradients of the margin's positive and negative terms must add up to its own.
    After a softmax or the like, which saturates, 1 - p consists of rounding errors, and the
    gradients disagree. The margin itself does not saturate if the model is confident, so that a
    gradient can only vanish within the model.
    """
    name, limit = "zero_gradients", runs.settings.zero_gradient_share
    right = np.any(runs.clean_right.reshape(len(runs.x), -1), axis=1)
    if not right.any():
        return not_applicable(name, f"no label of the clean {runs.size} is predicted right")
    with full_precision_products():
        gradient, tripled, added, taken = (
            _gradient(runs, runs.problem.x, *factors).reshape(len(right), -1)[right]
            for factors in ((1, 1), (3, 3), (1, 0), (0, 1))
        )
    zero = ~gradient.any(axis=1)
    coarse = low_precision_dtype(runs.problem.model, runs.problem.x) is not None
    of_parts = _cosine(gradient, added + taken)
    of_parts[_cancelled(gradient, added, taken, _CANCELLED["coarse" if coarse else "float32"])] = 1
    parallel = np.minimum(_cosine(gradient, tripled), of_parts)
    noise = ~zero & ~(parallel >= AGREEMENT)  # NaN counts as noise
    share = float(np.mean(zero | noise))
    smallest_cosine = f"{parallel[~zero].min():.4f}" if not zero.all() else "none"
    detail = (
        f"the gradient of the margin is all zero in {percent(float(zero.mean()))} of the "
        f"{right.sum()} examples that are classified right, and rounding in "
        f"{percent(float(noise.mean()))} (cosine below {AGREEMENT} with that of three times the "
        f"margin or with the sum of its parts; smallest {smallest_cosine}), together at most "
        f"{percent(limit)} allowed; of the single values of these gradients "
        f"{percent(float(np.mean(gradient == 0)))} are zero{precision_note()}"
    )
    return finding_of(name, at_most(share, limit), share, detail)


def _cancelled(whole: np.ndarray, a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Returns where rounding of a and b explains the difference of a + b from the whole, (n,)."""
    missed, large, larger = (np.linalg.norm(v, axis=1) for v in (a + b - whole, a, b))
    return missed <= share * (large + larger)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosines (n,) between corresponding rows; 0 if one of them is zero."""
    # Scaled first, so that squares of tiny numbers do not underflow.
    a, b = (v / np.maximum(np.abs(v).max(axis=1, keepdims=True), 1e-300) for v in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1)


class _Agreement(NamedTuple):
    """Agreement of finite differences and gradient along directions of one kind.

    Attributes:
      error: median relative error, at the step size for which it is smallest.
      step: that step size, in widths of the box.
      pairs: number of pairs of an example and a direction.
    """

    error: float
    step: float
    pairs: int


def gradient_matches_finite_differences(runs: AttackRuns) -> Finding:
    """Checks the gradient against central finite differences of the margin.

    The margin is used because its gradient does not vanish if the model is confident. The inputs
    are perturbed a little, because inputs with equal values, such as a black background, may lie
    exactly at the kinks of ReLUs. The median tolerates some kinks.
    """
    name, limit = "gradient_matches_finite_differences", runs.settings.gradient_error
    dtype = low_precision_dtype(runs.problem.model, runs.problem.x)
    if dtype:
        return not_applicable(
            name, f"the model computes in {dtype}, which is too coarse for finite differences"
        )
    with full_precision_products():
        agreements = _agreements(runs)
    worst = float(np.max([agreement.error for agreement in agreements.values()]))  # NaN stays NaN
    kinds = ", ".join(
        f"{kind} {percent(a.error)} (n = {a.pairs}, step {a.step:g})"
        for kind, a in agreements.items()
    )
    whole = "the batch's summed margin" if runs.joint else "each example's margin"
    detail = (
        f"median relative error of the gradient of {whole} against central differences in float32, "
        f"by direction, each at the best of {len(runs.settings.difference_steps)} steps (in widths "
        f"of the box): {kinds}; at most {percent(limit)} allowed; {runs.size}{precision_note()}"
    )
    return finding_of(name, at_most(worst, limit), worst, detail)


def _agreements(runs: AttackRuns) -> dict[str, _Agreement]:
    """Returns the agreement for each kind of direction, in the order of ``_directions``."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(runs.key)).ravel())
    x, steps = runs.x, runs.settings.difference_steps
    low, high, width = box_limits(runs.problem.threat, x)
    distance = max(steps) * width
    noise = (distance * generator.uniform(-1, 1, x.shape)).astype(x.dtype)
    points = np.clip(x + noise, low + distance, high - distance).astype(x.dtype)
    gradient = _gradient(runs, _place(runs, points))
    errors: dict[str, list[list[np.ndarray]]] = {}
    for kind, direction in _directions(gradient, points, generator, runs):
        errors_of_kind = errors.setdefault(kind, [[] for _ in steps])
        for place, step in enumerate(steps):
            errors_of_kind[place].append(_error(runs, points, step * width * direction, gradient))
    agreements = {}
    for kind, errors_of_kind in errors.items():
        medians = [float(np.median(np.concatenate(values))) for values in errors_of_kind]
        best = int(np.argmin(medians))
        pairs = sum(len(values) for values in errors_of_kind[best])
        agreements[kind] = _Agreement(medians[best], steps[best], pairs)
    return agreements


def _directions(
    gradient: np.ndarray, points: np.ndarray, generator: np.random.Generator, runs: AttackRuns
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields kinds and directions (B, ...), each example's largest value being 1.

    Changes of brightness or contrast common to all examples change the statistics of the batch,
    which random changes barely do. So they detect a gradient that ignores these statistics.
    """
    yield "gradient", _with_peak_one(gradient, joint=runs.joint)
    for _ in range(runs.settings.directions):
        yield "random signs", generator.choice([-1.0, 1.0], points.shape)
    yield "brightness", np.ones(points.shape)
    yield "contrast", _with_peak_one(points - points.mean(dtype=np.float64), joint=True)


def _with_peak_one(values: np.ndarray, *, joint: bool) -> np.ndarray:
    axes = None if joint else tuple(range(1, values.ndim))
    peak = np.abs(values).max(axis=axes, keepdims=True)
    return values / np.where(peak > 0, peak, 1)


def _error(
    runs: AttackRuns, points: np.ndarray, move: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """Returns relative errors, one per example, or one in all if examples depend on each other.

    They are relative to the largest of the observed change, the predicted one and that of a random
    step of the same size, because a correct gradient may predict no change along some directions.
    """
    ahead, behind = ((points + sign * move).astype(points.dtype) for sign in (1, -1))
    observed = _losses(runs, ahead) - _losses(runs, behind)
    moved = ahead.astype(np.float64) - behind  # after rounding
    predicted = _sum_per_example(gradient * moved)
    typical = _sum_per_example(gradient**2) * np.abs(moved).max() ** 2
    if runs.joint:
        observed, predicted, typical = (
            v.sum(keepdims=True) for v in (observed, predicted, typical)
        )
    scale = np.maximum(np.maximum(np.abs(observed), np.abs(predicted)), np.sqrt(typical))
    return np.abs(observed - predicted) / np.where(scale > 0, scale, 1)


def _sum_per_example(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).sum(axis=1)


def _place(runs: AttackRuns, x: np.ndarray) -> jax.Array:
    """Places inputs on the devices of the batch."""
    return jax.device_put(x, runs.problem.x.sharding)


def _losses(runs: AttackRuns, x: np.ndarray) -> np.ndarray:
    """Returns margins (B,), computed in float32, as float64."""
    margins = _margins(runs.problem.model, _place(runs, x), runs.problem.criterion)
    return np.asarray(margins).astype(np.float64)


def _gradient(
    runs: AttackRuns, x: jax.Array, positive_factor: float = 1, negative_factor: float = 1
) -> np.ndarray:
    """Returns the gradient (B, ...) of the batch's summed margin, as float64.

    Args:
      runs: the attacks on the batch.
      x: points (B, ...).
      positive_factor: factor of the logits with a positive sign in the margin.
      negative_factor: factor of the logits with a negative sign.
    """
    gradient = _weighted_gradient(
        runs.problem.model,
        x,
        runs.problem.criterion,
        jnp.float32(positive_factor),
        jnp.float32(negative_factor),
    )
    return np.asarray(gradient).astype(np.float64)


@jax.jit
def _margins(model: jax.tree_util.Partial, x: jax.Array, criterion: Criterion) -> jax.Array:
    return per_example("margin", traced_logits(model, x), criterion)


@jax.jit
def _weighted_gradient(
    model: jax.tree_util.Partial,
    x: jax.Array,
    criterion: Criterion,
    positive_factor: jax.Array,
    negative_factor: jax.Array,
) -> jax.Array:
    logits, backward = jax.vjp(lambda images: traced_logits(model, images), x)
    weights = jax.grad(lambda z: jnp.sum(per_example("margin", z, criterion)))(logits)
    positive_factor, negative_factor = (
        positive_factor.astype(weights.dtype),
        negative_factor.astype(weights.dtype),
    )
    return backward(
        positive_factor * jnp.maximum(weights, 0) + negative_factor * jnp.minimum(weights, 0)
    )[0]
