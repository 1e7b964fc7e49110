"""Attacks on random models: active dropout, randomised smoothing, random transformations."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from steinnorm.attacks._arguments import check_counts, check_key
from steinnorm.attacks._model import traced_logits

RandomLogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps a key and a batch (B, ...) to logits; a ``jax.tree_util.Partial`` is compiled once."""


def expected_over_randomness(
    logits_fn: RandomLogitsFn, key: jax.Array, samples: int = 16
) -> jax.tree_util.Partial:
    """Returns a random model's mean prediction over fixed draws, as a deterministic model.

    An attack on it searches inputs that are wrong on average, not by the chance of one draw
    (expectation over transformation, Athalye et al. 2018). The draws are the same at every call, so
    that steps, restarts and the final evaluation use one function. Evaluate the attacked inputs by
    the mean over new draws as well, because they may be wrong for the fixed draws only.

    Args:
      logits_fn: maps a key and a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K).
      key: random key of the draws.
      samples: number of draws; a gradient costs as many passes, one after the other.

    Returns:
      A function from (B, ...) to logits (B, ..., K), K >= 2: the logarithm of the mean of the
      softmax probabilities.

    Raises:
      ValueError: there is less than one draw, or no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, expected_over_randomness, pgd
      >>> def noisy(key, x):
      ...     return x + 0.1 * jax.random.normal(key, x.shape)
      >>> model = expected_over_randomness(noisy, jax.random.key(0), samples=8)
      >>> x, y = jnp.array([[0.9, 0.1]]), jnp.array([0])
      >>> bool(pgd(model, x, y, threat=Threat("linf", 0.5), steps=5).success[0])
      True
    """
    check_key(key, required=True, traced=True)
    check_counts(samples=samples)
    partial = isinstance(logits_fn, jax.tree_util.Partial)
    model = logits_fn if partial else jax.tree_util.Partial(logits_fn)
    return jax.tree_util.Partial(_mean_prediction, model, jax.random.split(key, samples))


def _mean_prediction(model: jax.tree_util.Partial, keys: jax.Array, x: jax.Array) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(traced_logits(lambda inputs: model(key, inputs), x))

    # Neither vmap, which would multiply the memory by the number of draws, nor a scan, because
    # XLA's loops around convolutions are slow on CPUs.
    draws = [one(keys[i]) for i in range(len(keys))]
    return jax.nn.logsumexp(jnp.stack(draws), axis=0) - jnp.log(float(len(keys)))
