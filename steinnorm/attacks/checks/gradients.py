"""Whether the gradient is there, and whether it is the gradient."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks.checks.findings import Finding, at_most, judged, not_applicable, percent
from steinnorm.attacks.checks.precision import coarse_dtype, exact_products
from steinnorm.attacks.checks.runs import Runs, clean_right
from steinnorm.attacks.losses import per_example


def zero_gradients(runs: Runs) -> Finding:
    """The cross-entropy has a gradient wherever the model is right: gradients are not masked."""
    name, problem, limit = "zero_gradients", runs.problem, runs.config.zero_gradient_share
    right = np.any(np.asarray(clean_right(problem)).reshape(len(problem.x), -1), axis=1)
    if not right.any():
        return not_applicable(name, f"no label of the clean {runs.size} is found")
    gradient = _gradient(runs, problem.x, "cross_entropy").reshape(len(right), -1)[right]
    share = float(np.mean(~gradient.any(axis=1)))
    detail = (
        f"the gradient of the cross-entropy is all zero in {percent(share)} of the {right.sum()} "
        f"examples that are classified right, at most {percent(limit)} allowed; of the single "
        f"values of these gradients {percent(float(np.mean(gradient == 0)))} are zero"
    )
    return judged(name, at_most(share, limit), share, detail)


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
    """Steps along the gradient change the loss by what the gradient says.

    The loss is the margin, whose gradient does not vanish where the model is sure.  The point is
    a little beside each input, because inputs with equal values, such as a black background, may
    lie at a kink of every ReLU.  The median leaves room for kinks.
    """
    name, limit = "gradient_matches_finite_differences", runs.config.gradient_error
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
        f"by direction, each at the best of {len(runs.config.difference_steps)} steps (in widths "
        f"of the box): {kinds}; at most {percent(limit)} allowed; {runs.size}"
    )
    return judged(name, at_most(worst, limit), worst, detail)


def _agreements(runs: Runs) -> dict[str, _Agreement]:
    """For each kind of direction, in the order of ``_directions``."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(runs.key)).ravel())
    low, high = runs.problem.threat.bounds
    width, steps = high - low, runs.config.difference_steps
    beside = max(steps) * width
    x = np.asarray(runs.problem.x)
    noise = generator.uniform(-beside, beside, x.shape).astype(x.dtype)
    at = np.clip(x + noise, low + beside, high - beside)
    gradient = _gradient(runs, jnp.asarray(at), "margin")
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
    for _ in range(runs.config.directions):
        yield "random signs", generator.choice([-1.0, 1.0], at.shape)
    yield "brightness", np.ones(at.shape)
    yield "contrast", _with_peak_one(at - at.mean(dtype=np.float64), joint=True)


def _with_peak_one(values: np.ndarray, *, joint: bool) -> np.ndarray:
    axes = None if joint else tuple(range(1, values.ndim))
    peak = np.abs(values).max(axis=axes, keepdims=True)
    return values / np.where(peak > 0, peak, 1)


def _error(runs: Runs, at: np.ndarray, move: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Relative errors: one for each example, or a single one where they hang together.

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


def _losses(runs: Runs, x: np.ndarray) -> np.ndarray:
    """Margins (B,) in float64; they are computed in float32."""
    found = _losses_of(runs.problem.model, jnp.asarray(x), runs.problem.criterion, loss="margin")
    return np.asarray(found).astype(np.float64)


def _gradient(runs: Runs, x: jax.Array, loss: str) -> np.ndarray:
    """Gradient (B, ...) of the batch's summed loss, as float64."""
    found = _gradient_of(runs.problem.model, x, runs.problem.criterion, loss=loss)
    return np.asarray(found).astype(np.float64)


@functools.partial(jax.jit, static_argnames="loss")
def _losses_of(
    model: jax.tree_util.Partial, x: jax.Array, criterion: Criterion, *, loss: str
) -> jax.Array:
    return per_example(loss, traced_logits(model, x), criterion)


@functools.partial(jax.jit, static_argnames="loss")
def _gradient_of(
    model: jax.tree_util.Partial, x: jax.Array, criterion: Criterion, *, loss: str
) -> jax.Array:
    return jax.grad(lambda x: jnp.sum(_losses_of(model, x, criterion, loss=loss)))(x)
