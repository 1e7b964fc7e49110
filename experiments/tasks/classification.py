"""One label per example: of K classes, or of two with a single logit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tasks import metrics
from experiments.tasks.task import Summary, cross_entropy
from steinnorm.attacks.intervals import Tally


@dataclasses.dataclass(frozen=True)
class Classification:
    """K classes, K logits.

    Attributes:
      outputs: K.
      label_smoothing: share of each label that is spread over all classes.
      score: ``accuracy``.
    """

    outputs: int
    label_smoothing: float = 0.0
    score: str = "accuracy"

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropies (B,) of logits (B, K) and labels (B,)."""
        losses = cross_entropy(outputs, targets, self.label_smoothing)
        return losses, jnp.ones_like(losses)

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the accuracy of the batch."""
        return jnp.mean(jnp.argmax(outputs, axis=-1) == targets)

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """Returns ``loss`` (B,), ``prediction`` (B,) and ``right`` (B,)."""
        prediction = jnp.argmax(outputs, axis=-1)
        loss = cross_entropy(outputs, targets, 0.0)
        return {"loss": loss, "prediction": prediction, "right": prediction == targets}

    def share_wrong(self, summary: dict[str, np.ndarray]) -> np.ndarray:
        """Returns 1 where the answer is wrong, else 0."""
        return 1.0 - summary["right"]

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns ``accuracy`` and the mean ``loss``."""
        return {
            "accuracy": Tally.of(summary["right"]).share,
            "loss": _mean(summary["loss"]),
        }


@dataclasses.dataclass(frozen=True)
class Binary:
    """Two classes, one logit: that of class 1.

    Attributes:
      outputs: 1.
      label_smoothing: share of each label that is spread over both classes.
      score: ``auc``.
    """

    outputs: int = 1
    label_smoothing: float = 0.0
    score: str = "auc"

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropies (B,) of logits (B, 1) and labels (B,)."""
        smooth = (1 - self.label_smoothing) * targets.astype(jnp.float32) + (
            0.5 * self.label_smoothing
        )
        losses = optax.sigmoid_binary_cross_entropy(outputs[:, 0], smooth)
        return losses, jnp.ones_like(losses)

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the accuracy of the batch at the threshold 1/2."""
        return jnp.mean((outputs[:, 0] > 0) == (targets > 0))

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """Returns ``loss`` (B,), ``logit`` (B,), ``right`` (B,) and ``target`` (B,)."""
        logit = outputs[:, 0]
        return {
            "loss": optax.sigmoid_binary_cross_entropy(logit, targets.astype(jnp.float32)),
            "logit": logit,
            "right": (logit > 0) == (targets > 0),
            "target": targets,
        }

    def share_wrong(self, summary: dict[str, np.ndarray]) -> np.ndarray:
        """Returns 1 where the answer is wrong, else 0."""
        return 1.0 - summary["right"]

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns ``auc`` (NaN where only one class is present), ``accuracy``, mean ``loss``."""
        return {
            "auc": metrics.auc(summary["logit"], summary["target"]),
            "accuracy": Tally.of(summary["right"]).share,
            "loss": _mean(summary["loss"]),
        }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else math.nan
