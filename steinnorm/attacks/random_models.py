"""Attacks on models that are random: dropout left on, random smoothing, random transformations."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from steinnorm.attacks._inputs import check_key
from steinnorm.attacks._model import traced_logits

RandomLogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps a key and a batch (B, ...) to logits; best a ``jax.tree_util.Partial`` over the state."""


def expected_over_randomness(
    logits_fn: RandomLogitsFn, key: jax.Array, samples: int = 16
) -> jax.tree_util.Partial:
    """Returns a random model's mean prediction over some draws, as a model that is not random.

    An attack on it looks for inputs that are wrong on average, not for one draw that was lucky
    (expectation over transformation, Athalye et al. 2018). The draws are the same at every call, so
    that steps, restarts and the final judgement speak of one function. Judge the attacked inputs by
    the mean over fresh draws as well: what an attack found for these draws may not hold for others.

    Args:
      logits_fn: maps a key and a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K).
      key: of the draws.
      samples: how many draws; a gradient costs as many passes, one after the other.

    Returns:
      A function from (B, ...) to (B, ..., K), K >= 2: the logarithm of the mean of the softmax
      probabilities, which serves as logits for any attack.

    Raises:
      ValueError: fewer than one draw, or no key.

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
    check_key(key)
    if key is None or samples < 1:
        raise ValueError(f"a key and at least one draw are needed; got {key} and {samples}")
    partial = isinstance(logits_fn, jax.tree_util.Partial)
    model = logits_fn if partial else jax.tree_util.Partial(logits_fn)
    return jax.tree_util.Partial(_mean_prediction, model, jax.random.split(key, samples))


def _mean_prediction(model: jax.tree_util.Partial, keys: jax.Array, x: jax.Array) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(traced_logits(lambda inputs: model(key, inputs), x))

    # Not vmap: a batch of draws would take as many times the memory. Not a scan: XLA's loops around
    # convolutions are slow on CPUs.
    draws = [one(keys[i]) for i in range(len(keys))]
    return jax.nn.logsumexp(jnp.stack(draws), axis=0) - jnp.log(float(len(keys)))
