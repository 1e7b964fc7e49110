"""Local Lipschitz constants: the largest singular value of a Jacobian, by power iteration.

In the Euclidean norm, at given images.  With running statistics each image has a constant of its
own.  With batch statistics the function takes the whole batch, because every image moves the
statistics of all; there is one constant for it, that of an attacker who owns the batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from experiments.evaluation.attack_batch import as_logits_fn
from experiments.evaluation.risk.monte_carlo import Progress, Row
from experiments.evaluation.risk.networks import Networks, perturbed
from experiments.models.norms import in_evaluation
from experiments.models.recording import norm_layers
from steinnorm import stein_batch_norm
from steinnorm.nnx import SteinBatchNorm, convert, revert

SEEDS = (0, 1, 2)
_TOLERANCE, _STEPS = 1e-3, 100
_IMAGES, _SMOKE_IMAGES = 128, 8
_LAYER_RULES = ("none", "stein", "stein_mean_only")


class Constant(NamedTuple):
    """A local Lipschitz constant, approached from below.

    Attributes:
      value: () or, one for each example, (B,).
      change: the relative change of the last step, the largest over the examples.
      steps: of the iteration.
    """

    value: np.ndarray
    change: float
    steps: int


def spectral_norm(
    function: Partial, x: jax.Array, key: jax.Array, *, per_example: bool, steps: int = _STEPS
) -> Constant:
    """Returns the largest singular value of a function's Jacobian at x, by power iteration.

    Args:
      function: from (B, ...) to (B, ...).
      x: where.
      key: of the first direction.
      per_example: examples do not influence each other, and each has its own value.
      steps: at most; fewer where the values change by less than a thousandth.
    """
    axes = tuple(range(1 if per_example else 0, x.ndim))
    v = jax.random.normal(key, x.shape, x.dtype)
    value, change, done = np.zeros(1), np.inf, 0
    while done < steps and change >= _TOLERANCE:
        done += 1
        found, v = _step(function, x, v, axes)
        before, value = value, np.asarray(found)
        change = float(np.max(np.abs(value - before) / np.maximum(value, 1e-30)))
    return Constant(value, change, done)


@functools.partial(jax.jit, static_argnums=3)
def _step(
    function: Partial, x: jax.Array, v: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns |J v| for v of length 1, and the next v: J' J v."""
    v = v / jnp.maximum(_length(v, axes, keepdims=True), 1e-30)
    out, pushed = jax.jvp(function, (x,), (v,))
    _, back = jax.vjp(function, x)
    kept = tuple(a for a in axes if a == 0) + tuple(range(1, out.ndim))
    return _length(pushed, kept), back(pushed)[0]


def _length(v: jax.Array, axes: tuple[int, ...], keepdims: bool = False) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(v), axes, keepdims=keepdims))


def measure(networks: Networks, seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``lipschitz``: whole networks and their norm layers, clean and attacked.

    Networks are trained with batch norm and with Stein norm, and batch norm's is measured with
    Stein's rule put in its place too (``swapped``), which changes nothing but the rule.
    """
    seeds = (seed,) if smoke else tuple(seed + s for s in SEEDS)
    count = _SMOKE_IMAGES if smoke else _IMAGES
    images, labels = networks.test_images[:count], networks.test_labels[:count]
    norms = ("batch",) if smoke else ("batch", "stein")
    rows, done, total = [], 0, len(norms) * len(seeds)
    for each in seeds:
        for norm in norms:
            progress(done, total, f"Lipschitz constants of {norm}, seed {each}")
            done += 1
            model = networks.trained(norm, each)
            for condition in ("clean",) if smoke else ("clean", "pgd"):
                where = perturbed(condition, model, images, labels, each)
                setting = {"trained": norm, "seed": each, "images": condition}
                rows += _networks(model, norm, where, labels, setting)
                rules = _LAYER_RULES if norm == "batch" else ("stein",)
                rows += _layers(model, rules[:2] if smoke else rules, where, setting)
    return rows


def _networks(
    model: nnx.Module, norm: str, images: np.ndarray, labels: np.ndarray, setting: dict[str, Any]
) -> list[Row]:
    rule = {"batch": "none", "stein": "stein"}[norm]
    cases = [("running", rule, model), ("batch", rule, model)]
    if norm == "batch":
        cases.append(("batch", "stein", convert(revert(model), "stein")))
    rows = []
    for statistics, name, network in cases:
        function = as_logits_fn(in_evaluation(network, statistics))  # type: ignore[arg-type]
        alone = statistics == "running"
        found = spectral_norm(function, jnp.asarray(images), jax.random.key(0), per_example=alone)
        margin = margins(np.asarray(function(jnp.asarray(images))), labels)
        rows.append(
            {
                **setting,
                "scope": "network",
                "statistics": statistics,
                "rule": name,
                "constant": float(np.exp(np.mean(np.log(found.value)))),
                "highest": float(found.value.max()),
                "margin": float(np.median(margin)),
                "accuracy": float(np.mean(margin > 0)),
                "change": found.change,
                "steps": found.steps,
                "n": len(images),
            }
        )
    return rows


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the lead of the right class over the likeliest other, (B,)."""
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
    return own - others.max(axis=1)


def _layers(
    model: nnx.Module, rules: Sequence[str], images: np.ndarray, setting: dict[str, Any]
) -> list[Row]:
    """Returns the constants of each norm layer at its own inputs, gamma included, by rule."""
    layers = {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, SteinBatchNorm)
    }
    rows = []
    for recorded in norm_layers(model, images):
        layer = layers[recorded.name]
        assert layer.scale is not None
        scale, x = layer.scale[...], jnp.asarray(recorded.inputs)
        running = jnp.max(jnp.abs(scale) / jnp.sqrt(recorded.running.variance + layer.epsilon))
        found = {("running", "none"): float(running)}
        for rule in rules:
            function = Partial(_NORMALISE[rule], scale)
            constant = spectral_norm(function, x, jax.random.key(0), per_example=False)
            found["batch", rule] = float(constant.value)
        rows += [
            {**setting, "scope": recorded.name, "statistics": s, "rule": r, "constant": value}
            for (s, r), value in found.items()
        ]
    return rows


def _normaliser(rule: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def normalise(scale: jax.Array, x: jax.Array) -> jax.Array:
        return stein_batch_norm(x, scale, shrinkage=rule).y

    return normalise


# One function for each rule, made once: a Partial of another function is compiled again.
_NORMALISE = {rule: _normaliser(rule) for rule in _LAYER_RULES}
