"""What every task can do: its loss, what is kept of each example, and how that is scored."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

Summary = dict[str, jax.Array]
"""What is kept of each example of a batch; every array begins with the batch's dimension."""


class Task(Protocol):
    """Loss and scores of one kind of experiment.

    Attributes:
      outputs: how many numbers the network gives (per pixel, for segmentation).
      score: name of the score that chooses the best weights; larger is better.
    """

    @property
    def outputs(self) -> int:
        """How many numbers."""

    @property
    def score(self) -> str:
        """Its name."""

    def __hash__(self) -> int:
        """Equal tasks share compiled programs."""

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns losses in nats and their weights; the batch's loss is their weighted mean."""

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the share of the labels that are right, a scalar, for the training log."""

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """Returns what of each example is needed for the scores."""

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the scores of any number of examples together; NaN where one is not defined."""

    def share_wrong(self, summary: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the share of each example's labels that are wrong, (B,) float64 in [0, 1]."""


def answered(outputs: jax.Array) -> jax.Array:
    """Returns of which examples (B, ...) all outputs are finite, (B,) bool.

    Of NaN ``argmax`` makes a class, so that scores of it say nothing.
    """
    return jnp.all(jnp.isfinite(outputs), axis=tuple(range(1, outputs.ndim)))


def mean_loss(task: Task, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the weighted mean of a batch's losses; 0 where all weights are 0."""
    losses, weights = task.losses(outputs, targets)
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Returns the losses (...) of (..., K) logits and (...) labels, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
    if not smoothing:
        return losses
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform
