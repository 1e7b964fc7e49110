"""Attacks on random models: active dropout, randomised smoothing, random transformations."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from steinnorm.attacks._arguments import check_counts, check_key
from steinnorm.attacks._model import check_logits_shape, traced_logits

RandomLogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps a key and a batch (B, ...) to logits; a ``jax.tree_util.Partial`` is compiled once."""


def expected_over_randomness(
    logits_fn: RandomLogitsFn, key: jax.Array, samples: int = 16, *, by_example: bool = True
) -> jax.tree_util.Partial:
    """Returns a random model's mean prediction over fixed draws, as a deterministic model.

    An attack on it searches inputs that are wrong on average, not by the chance of one draw
    (expectation over transformation, Athalye et al. 2018). The draws are the same at every call and
    for every example, in whatever place of whatever batch, so that steps, restarts, examples that
    are left when others are broken, and the final evaluation use one function. Evaluate the
    attacked inputs by the mean over new draws as well, because they may be wrong for the fixed
    draws only.

    Args:
      logits_fn: maps a key and a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K).
      key: random key of the draws.
      samples: number of draws; a gradient costs as many passes, one after the other.
      by_example: whether ``logits_fn`` sees every example as a batch of its own, (1, ...), by
        ``vmap``: draws of the shape of its input are then the same for each. False gives it whole
        batches, for models whose logits depend on the companions as well; draws that differ from
        place to place make the attacks keep the batch whole. Attacks that test whether logits
        depend on the batch refuse True for such models.

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
    mean = _mean_by_example if by_example else _mean_prediction
    return jax.tree_util.Partial(mean, model, jax.random.split(key, samples))


def one_draw_for_batches(model: jax.tree_util.Partial) -> jax.tree_util.Partial | None:
    """Returns the first draw of a mean by example, as a function of whole batches.

    Args:
      model: any function from inputs to logits.

    Returns:
      A function from (B, ...) to logits; None if the model is no such mean.
    """
    if model.func is not _mean_by_example:
        return None
    logits_fn, keys = model.args
    return jax.tree_util.Partial(_mean_prediction, logits_fn, keys[:1])


def _mean_by_example(model: jax.tree_util.Partial, keys: jax.Array, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda example: _mean_prediction(model, keys, example[None])[0])(x)


def _mean_prediction(model: jax.tree_util.Partial, keys: jax.Array, x: jax.Array) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        logits = traced_logits(lambda inputs: model(key, inputs), x)
        check_logits_shape(logits.shape, x)
        return jax.nn.log_softmax(logits)

    # Neither vmap, which would multiply the memory by the number of draws, nor a scan, because
    # XLA's loops around convolutions are slow on CPUs.
    draws = [one(keys[i]) for i in range(len(keys))]
    return jax.nn.logsumexp(jnp.stack(draws), axis=0) - jnp.log(float(len(keys)))
