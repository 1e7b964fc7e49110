"""Does a model's answer for one image depend on the other images of the batch?

A check that evaluates the same batch several times, as AutoAttack's does to find randomness, shows
no difference for such a model.  Here the images stay and the company changes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._inputs import check_key
from steinnorm.attacks._model import LogitsFn, as_argument, predict, traced_logits
from steinnorm.attacks._survivors import placed_like
from steinnorm.attacks.losses import per_example

ROUNDING = 1e-2
"""Relative change of logits that the place in a batch and its size may cause by rounding.

In bfloat16 0.4 % was seen; batch statistics move logits by tens of per cent.
"""


class Change(NamedTuple):
    """What another company does to the answers for the same images.

    Attributes:
      images: number of images with a changed prediction, be it at a single pixel.
      labels: share of the predictions that changed: of images, or of pixels in label maps.
      logit: the largest change of a logit over the largest spread of an image's logits.
    """

    images: int
    labels: float
    logit: float


class Dependence(NamedTuple):
    """How far a model's answers depend on the batch.

    Attributes:
      images: their number.
      alone: each image as a batch of one, against all in one batch.
      shuffled: the same batch in another order, in which no image keeps its place.
      companions: one half of the batch against other images, then the other half.
      gradient_shares: for some images i, the Euclidean norm of the gradient of the margin of i
        with respect to the other images over that with respect to all: what an attacker gains who
        owns the whole batch.  0 where the whole gradient is zero.
    """

    images: int
    alone: Change
    shuffled: Change
    companions: Change
    gradient_shares: tuple[float, ...]

    @property
    def found(self) -> bool:
        """Whether any of it is more than rounding."""
        changes = (self.alone, self.shuffled, self.companions)
        seen = [*(change.logit for change in changes), *self.gradient_shares]
        return not all(value <= ROUNDING for value in seen)  # NaN is no "no"


def batch_dependence(
    logits_fn: LogitsFn,
    x: jax.Array,
    *,
    key: jax.Array,
    others: jax.Array | None = None,
    gradients: int = 3,
) -> Dependence:
    """Asks a model about the same images in different company.

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K).
      x: the images (B, ...), B >= 2.
      key: randomness of the order and of the companions.
      others: images (n, ...) to draw other companions from; None means from the kept half of ``x``.
      gradients: for how many images the gradient is taken, one backward pass each.

    Returns:
      Numbers of changed predictions, sizes of the changes, and shares of gradients.

    Raises:
      ValueError: fewer than two images, others of another shape, or logits as in ``predict``.
    """
    check_key(key)
    x = jnp.asarray(x)
    count = len(x)
    if count < 2:
        raise ValueError(f"a batch of {count} has no companions; give at least two images")
    if others is not None and (len(others) == 0 or others.shape[1:] != x.shape[1:]):
        raise ValueError(f"others must be images (n, {x.shape[1:]}); got shape {others.shape}")
    rows = np.asarray(x)
    there = np.asarray(predict(logits_fn, x))
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    alone = np.concatenate([predict(logits_fn, jnp.asarray(row[None])) for row in rows])
    shuffled = np.empty_like(there)
    order = _order(generator, count)
    shuffled[order] = predict(logits_fn, placed_like(rows[order], x))
    kept, company = [], []
    for half in (np.arange((count + 1) // 2), np.arange(count // 2, count)):
        batch = _among_others(
            generator, rows, half, rows[half] if others is None else np.asarray(others)
        )
        kept.append(there[half])
        company.append(np.asarray(predict(logits_fn, placed_like(batch, x)))[half])
    # An image in the middle of an odd number was kept twice; the first time will do.
    merged = [np.concatenate([parts[0], parts[1][count % 2 :]]) for parts in (kept, company)]
    labels = jnp.asarray(np.argmax(there, axis=-1), jnp.int32)
    return Dependence(
        images=count,
        alone=_change(there, alone),
        shuffled=_change(there, shuffled),
        companions=_change(*merged),
        gradient_shares=_gradient_shares(logits_fn, x, labels, min(gradients, count)),
    )


def _order(generator: np.random.Generator, count: int) -> np.ndarray:
    """A random order in which nothing stays at its place: one cycle through all places."""
    cycle = generator.permutation(count)
    order = np.empty_like(cycle)
    order[cycle] = np.roll(cycle, 1)
    return order


def _among_others(
    generator: np.random.Generator, rows: np.ndarray, kept: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """The batch with all but the kept rows drawn from ``others``."""
    batch = others[generator.integers(len(others), size=len(rows))].astype(rows.dtype)
    batch[kept] = rows[kept]
    return batch


def _change(before: np.ndarray, after: np.ndarray) -> Change:
    other = np.argmax(before, axis=-1) != np.argmax(after, axis=-1)
    # A number that all logits share changes no prediction, however large it is.
    spread = (before.max(axis=-1) - before.min(axis=-1)).max()
    difference = np.abs(after - before).max()
    return Change(
        images=int(other.reshape(len(other), -1).any(axis=1).sum()),
        labels=float(other.mean()),
        logit=float(difference / spread) if spread > 0 else float(difference > 0),
    )


def _gradient_shares(
    logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, count: int
) -> tuple[float, ...]:
    shares = []
    for i in range(count):
        each = np.asarray(
            _gradient_norms(as_argument(logits_fn), x, labels, jnp.asarray(i, jnp.int32))
        )
        each = each.astype(np.float64) / (each.max() or 1.0)
        whole = np.linalg.norm(each)
        shares.append(float(np.linalg.norm(np.delete(each, i)) / whole) if whole else 0.0)
    return tuple(shares)


@jax.jit
def _gradient_norms(
    model: jax.tree_util.Partial, x: jax.Array, labels: jax.Array, i: jax.Array
) -> jax.Array:
    """Norms (B,) of the gradient of the margin of image ``i`` with respect to each image.

    The margin, because the gradient of the cross-entropy is zero where the model is very sure.
    """

    def of_one(images: jax.Array) -> jax.Array:
        losses = per_example("margin", traced_logits(model, images), Criterion(labels))
        return jnp.sum(jnp.where(jnp.arange(len(losses)) == i, losses, 0))

    return geometry.euclidean(jax.grad(of_one)(x))
