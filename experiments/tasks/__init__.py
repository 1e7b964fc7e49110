"""What a network answers: its loss, and how its answers are scored.

One object per kind of experiment; training and evaluation know tasks only through ``Task``.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tasks import metrics
from steinnorm.attacks import VOID
from steinnorm.attacks.intervals import Tally

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

    def losses(self, outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Losses in nats and their weights, of the same shape; the batch's loss is their mean."""

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Share of the labels that are right, a scalar: a quick look at a training batch."""

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """What of each example is needed for the scores."""

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """The scores of any number of examples together; NaN where one is not defined."""

    def share_wrong(self, summary: dict[str, np.ndarray]) -> np.ndarray:
        """Share of each example's labels that are wrong, (B,) float64 in [0, 1]."""


def mean_loss(task: Task, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The weighted mean of a batch's losses; 0 where all weights are."""
    losses, weights = task.losses(outputs, targets)
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)


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
        """Cross-entropies (B,) of logits (B, K) and labels (B,)."""
        losses = _cross_entropy(outputs, targets, self.label_smoothing)
        return losses, jnp.ones_like(losses)

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Accuracy of the batch."""
        return jnp.mean(jnp.argmax(outputs, axis=-1) == targets)

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """``loss`` (B,), ``prediction`` (B,) and ``right`` (B,)."""
        prediction = jnp.argmax(outputs, axis=-1)
        loss = _cross_entropy(outputs, targets, 0.0)
        return {"loss": loss, "prediction": prediction, "right": prediction == targets}

    def share_wrong(self, summary: dict[str, np.ndarray]) -> np.ndarray:
        """1 where the answer is wrong, else 0."""
        return 1.0 - summary["right"]

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """``accuracy`` and the mean ``loss``."""
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
        """Cross-entropies (B,) of logits (B, 1) and labels (B,)."""
        smooth = (1 - self.label_smoothing) * targets.astype(jnp.float32) + (
            0.5 * self.label_smoothing
        )
        losses = optax.sigmoid_binary_cross_entropy(outputs[:, 0], smooth)
        return losses, jnp.ones_like(losses)

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Accuracy of the batch at the threshold 1/2."""
        return jnp.mean((outputs[:, 0] > 0) == (targets > 0))

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """``loss`` (B,), ``logit`` (B,), ``right`` (B,) and ``target`` (B,)."""
        logit = outputs[:, 0]
        return {
            "loss": optax.sigmoid_binary_cross_entropy(logit, targets.astype(jnp.float32)),
            "logit": logit,
            "right": (logit > 0) == (targets > 0),
            "target": targets,
        }

    def share_wrong(self, summary: dict[str, np.ndarray]) -> np.ndarray:
        """1 where the answer is wrong, else 0."""
        return 1.0 - summary["right"]

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """``auc`` (NaN where only one class is present), ``accuracy`` and the mean ``loss``."""
        return {
            "auc": metrics.auc(summary["logit"], summary["target"]),
            "accuracy": Tally.of(summary["right"]).share,
            "loss": _mean(summary["loss"]),
        }


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
        """Cross-entropies (B, H, W) of logits (B, H, W, K) and labels; weight 0 where void."""
        known = targets != VOID
        losses = _cross_entropy(outputs, jnp.where(known, targets, 0), self.label_smoothing)
        return losses, known.astype(jnp.float32)

    def share_right(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Share of the pixels that are right, of those that are not void."""
        known = targets != VOID
        right = jnp.argmax(outputs, axis=-1) == targets.astype(jnp.int32)
        return jnp.sum(right & known) / jnp.maximum(jnp.sum(known), 1)

    def summary(self, outputs: jax.Array, targets: jax.Array) -> Summary:
        """Per image.

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
        """Of the pixels that are not void; 0 where all are."""
        right = np.trace(summary["confusion"], axis1=1, axis2=2).astype(np.float64)
        known = summary["confusion"].sum(axis=(1, 2))
        return np.where(known > 0, 1.0 - right / np.maximum(known, 1), 0.0)

    def scores(self, summary: dict[str, np.ndarray]) -> dict[str, float]:
        """``miou`` over the classes present, ``pixel_accuracy``, ``micro_jaccard``, ``loss``."""
        confusion = summary["confusion"].astype(np.int64)
        known = confusion.sum()
        return {
            "miou": metrics.mean_iou(confusion.sum(axis=0)),
            "pixel_accuracy": _ratio(np.trace(confusion.sum(axis=0)), known),
            "micro_jaccard": metrics.micro_jaccard(
                np.trace(confusion, axis1=1, axis2=2), summary["pixels"], self.jaccard_batch
            ),
            "loss": _ratio(summary["loss"].sum(), known),
        }


def create(name: str, classes: int, label_smoothing: float = 0.0) -> Task:
    """Returns the task that a configuration names.

    Args:
      name: ``classification``, ``binary`` or ``segmentation``.
      classes: of the data set.
      label_smoothing: of the training loss; scores never have it.

    Raises:
      ValueError: an unknown name.
    """
    if name == "classification":
        return Classification(classes, label_smoothing)
    if name == "binary":
        return Binary(label_smoothing=label_smoothing)
    if name == "segmentation":
        return Segmentation(classes, label_smoothing)
    raise ValueError(f"unknown task {name!r}; expected classification, binary or segmentation")


def _cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Of (..., K) logits and (...) labels, in nats."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))
    if not smoothing:
        return losses
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else math.nan


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else math.nan
