"""A label per pixel."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import metrics
from experiments.tasks.task import Summary, cross_entropy
from steinnorm.attacks import VOID


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """K classes and K logits for each pixel; void pixels count neither in the loss nor in mIoU.

    Attributes:
      outputs: K.
      label_smoothing: share of each label that is spread over all classes.
      jaccard_batch: images per batch of ``micro_jaccard``, a mean over batches; the paper's
        code has 16.
      score: ``miou``.
    """

    outputs: int
    label_smoothing: float = 0.0
    jaccard_batch: int = 16
    score: str = "miou"

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropies (B, H, W) of logits (B, H, W, K), and weights: 0 where void."""
        known = targets != VOID
        losses = cross_entropy(outputs, jnp.where(known, targets, 0), self.label_smoothing)
        return losses, known.astype(jnp.float32)

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the share of the pixels that are right, of those that are not void."""
        known = targets != VOID
        right = jnp.argmax(outputs, axis=-1) == targets.astype(jnp.int32)
        return jnp.sum(right & known) / jnp.maximum(jnp.sum(known), 1)

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """Returns what is kept of each image.

        ``confusion`` (B, K, K) of pixels, rows the truth and columns the prediction, without void;
        ``pixels`` (B,), void included; ``loss`` (B,), the sum over the pixels that are not void.
        """
        losses, weights = Segmentation(self.outputs).losses(outputs, targets)
        count = self.outputs
        prediction = jnp.argmax(outputs, axis=-1).astype(jnp.int32)
        # Void pixels go to a place behind the table, which is cut off.
        place = jnp.where(weights > 0, targets.astype(jnp.int32) * count + prediction, count**2)
        flat = place.reshape(len(place), math.prod(place.shape[1:]))
        table = jax.vmap(lambda p: jnp.bincount(p, length=count**2 + 1))(flat)
        pixels = jnp.full(len(place), flat.shape[1], jnp.int32)
        return {
            "confusion": table[:, :-1].reshape(-1, count, count),
            "pixels": pixels,
            "loss": jnp.sum(losses * weights, axis=(1, 2)),
        }

    def share_wrong(self, summary: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the share of the pixels that are not void; 0 where all are void."""
        right = np.trace(summary["confusion"], axis1=1, axis2=2).astype(np.float64)
        known = summary["confusion"].sum(axis=(1, 2))
        return np.where(known > 0, 1.0 - right / np.maximum(known, 1), 0.0)

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns ``miou`` (classes present), ``pixel_accuracy``, ``micro_jaccard``, ``loss``."""
        confusion = summary["confusion"].astype(np.int64)
        known = float(confusion.sum())
        return {
            "miou": metrics.mean_iou(confusion.sum(axis=0)),
            "pixel_accuracy": _ratio(float(np.trace(confusion.sum(axis=0))), known),
            "micro_jaccard": metrics.micro_jaccard(
                np.trace(confusion, axis1=1, axis2=2), summary["pixels"], self.jaccard_batch
            ),
            "loss": _ratio(float(summary["loss"].sum()), known),
        }


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan
