"""What is kept of each example: enough for its task's score of any resample of the examples."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import Task, answered
from steinnorm.attacks import NotFiniteError

# What one call takes, unless a single batch has more.
_GROUPED_EXAMPLES, _GROUPED_VALUES = 64, 1 << 20


def score_name(task: Task) -> str:
    """Returns the score that is reported: ``miou`` of label maps, ``accuracy`` of labels."""
    return task.score if task.score == "miou" else "accuracy"


@functools.partial(jax.jit, static_argnames="task")
def _grouped(
    logits_fn: Callable[[jax.Array], jax.Array], x: jax.Array, y: jax.Array, *, task: Task
) -> tuple[jax.Array, jax.Array]:
    outputs = jax.vmap(logits_fn)(x)
    outputs, y = (a.reshape(-1, *a.shape[2:]) for a in (outputs, y))
    return _of(task, outputs, y), jnp.all(answered(outputs))


def _of(task: Task, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    summary = task.summary(outputs, targets)
    if "confusion" not in summary:
        return summary["right"][:, None]
    table = summary["confusion"]
    right = jnp.diagonal(table, axis1=1, axis2=2)
    return jnp.concatenate([right, table.sum(axis=2), table.sum(axis=1)], axis=1)


def measure(
    logits_fn: Callable[[jax.Array], jax.Array],
    inputs: np.ndarray,
    targets: np.ndarray,
    batch_size: int,
    task: Task,
) -> np.ndarray:
    """Returns what is kept of each example, as the network answers batch after batch.

    Several batches go through the network in one call (``jax.vmap``), each with statistics of its
    own, so that small ones take no longer than large ones.

    Args:
      logits_fn: a pure function of one batch.
      inputs: (N, ..., C) float32 in [0, 1]; N is a multiple of the batch size.
      targets: (N,) labels or (N, H, W) label maps.
      batch_size: consecutive examples that share a batch.
      task: how answers are judged.

    Returns:
      (N, 1) bool, whether an answer is right; or, of label maps with K classes, (N, 3K) int32: for
      each class the pixels that are right, that have it and that were given it.

    Raises:
      ValueError: the examples do not fill their batches; its subclass ``NotFiniteError`` if an
        answer is NaN or infinite, of which ``argmax`` would make a class.
    """
    if len(inputs) % batch_size:
        raise ValueError(f"{len(inputs)} examples do not fill batches of {batch_size}")
    batches = len(inputs) // batch_size
    fitting = min(_GROUPED_EXAMPLES, _GROUPED_VALUES // inputs[0].size)
    groups = max(1, fitting // batch_size)
    x, y = (a.reshape(batches, batch_size, *a.shape[1:]) for a in (inputs, targets))
    parts = []
    for start in range(0, batches, groups):
        # All calls have one shape, whatever is measured: the last one is filled up with copies.
        chosen = np.minimum(np.arange(start, start + groups), batches - 1)
        kept, all_answered = _grouped(
            logits_fn, jnp.asarray(x[chosen]), jnp.asarray(y[chosen]), task=task
        )
        if not bool(all_answered):
            raise NotFiniteError(
                f"the network answers NaN or infinity for some of the examples {start * batch_size}"
                f" to {min(start + groups, batches) * batch_size - 1}: no score can be told from "
                "that"
            )
        parts.append(np.asarray(kept)[: (batches - start) * batch_size])
    return np.concatenate(parts)


def scores(evidence: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the scores of resamples of the examples.

    Args:
      evidence: (N, 1) or (N, 3K), as ``measure`` returns it.
      weights: (R, N) how often each example is in each resample.

    Returns:
      (R,) float64: accuracies, or mean intersections over union of the classes that occur in the
      resample's truth.
    """
    sums = weights @ evidence.astype(np.float64)
    if evidence.shape[1] == 1:
        return sums[:, 0] / weights.sum(axis=1)
    right, truth, given = np.split(sums, 3, axis=1)
    present = truth > 0
    union = np.where(present, truth + given - right, 1.0)
    return np.sum(np.where(present, right / union, 0.0), axis=1) / present.sum(axis=1)
