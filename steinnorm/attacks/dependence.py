"""A measurement of how far a model's logits for one image depend on the rest of the batch.

Evaluating the same batch several times, as AutoAttack does to find randomness, cannot show this.
Here the images stay the same and their companions change.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._arguments import as_array, check_inputs_form, check_key, refuse_traced
from steinnorm.attacks._competing import without_unreachable
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._measurements import check_finite_inputs
from steinnorm.attacks._model import LogitsFn, as_partial, predict, traced_logits
from steinnorm.attacks._survivors import place_like
from steinnorm.attacks._without_gradient import why_no_gradient
from steinnorm.attacks.losses import per_example

ROUNDING = 1e-2
"""Relative change of logits that rounding may cause when position or size of the batch change.

In bfloat16 0.4 % was measured; batch statistics change logits by tens of per cent.
"""


class Change(NamedTuple):
    """Changes of the answers for the same images when their companions change.

    Attributes:
      images: number of images with a changed prediction (in label maps, of at least one pixel).
      labels: share of changed predictions, among images, or among pixels of label maps.
      logit: largest change of a logit / largest spread of an image's logits.
    """

    images: int
    labels: float
    logit: float


class Dependence(NamedTuple):
    """How far a model's answers depend on the batch, compared with one evaluation of all images.

    Attributes:
      images: number of images.
      alone: changes if each image is a batch of its own.
      shuffled: changes if the batch is in another order, in which no image keeps its place.
      companions: changes if half of the batch is replaced by other images; then the other half.
      gradient_shares: for some images i, the Euclidean norm of the gradient of the margin of i with
        respect to the other images / its norm with respect to all images; it shows how much an
        attacker gains by changing the whole batch. 0 if the gradient is zero; none of a model that
        has no gradient.
    """

    images: int
    alone: Change
    shuffled: Change
    companions: Change
    gradient_shares: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest change of a logit or share of a gradient; NaN if any is."""
        changes = (self.alone, self.shuffled, self.companions)
        return float(np.max([*(change.logit for change in changes), *self.gradient_shares]))

    @property
    def found(self) -> bool:
        """Whether the logits depend on the batch: any change or share is larger than rounding."""
        return not self.largest <= ROUNDING  # NaN counts as dependence

    def __str__(self) -> str:
        """Returns the verdict with its number, and where predictions changed."""
        if not self.found:
            return (
                f"independent of the batch: changes of {self.largest:.2g} at most, of which "
                f"rounding explains {ROUNDING:g}; {self.images} images"
            )
        ways = {"alone": self.alone, "in another order": self.shuffled}
        ways["with other companions"] = self.companions
        changed = ", ".join(f"{change.images} {way}" for way, change in ways.items())
        return (
            f"DEPENDS ON THE BATCH: a largest change of {self.largest:.2g}, of which rounding "
            f"explains {ROUNDING:g}; predictions changed, of {self.images} images: {changed}"
        )


def batch_dependence(
    logits_fn: LogitsFn,
    x: ArrayLike,
    *,
    key: jax.Array,
    others: ArrayLike | None = None,
    gradients: int = 3,
) -> Dependence:
    """Measures how the logits of images change with the rest of the batch.

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K).
      x: the images (B, ...), B >= 2.
      key: random key of the order and of the companions.
      others: images (n, ...) to draw other companions from; None draws from the kept half of ``x``.
      gradients: number of images for which the gradient is computed, one backward pass each; none
        of a model without one, such as a ``jax.pure_callback``.

    Returns:
      Numbers of changed predictions, sizes of the changes, and shares of gradients.

    Raises:
      ValueError: there are fewer than two images, they are not floating or not finite, there is
        no key, ``others`` has another shape, or the logits are not as in ``predict``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from steinnorm.attacks import batch_dependence
      >>> x = jnp.array([[0.9, 0.1], [0.2, 0.4], [0.5, 0.6]])
      >>> print(batch_dependence(lambda x: 4 * x, x, key=jax.random.key(0)))
      independent of the batch: changes of 0 at most, of which rounding explains 0.01; 3 images
      >>> centred = lambda x: x - x.mean(axis=0, keepdims=True)
      >>> batch_dependence(centred, x, key=jax.random.key(0)).found
      True
    """
    check_key(key, required=True)
    refuse_traced(x=x, others=others, logits_fn=as_partial(logits_fn))
    x = as_array("x", x, "images (B, ...)")
    check_inputs_form(x)
    check_finite_inputs(x)
    count = len(x)
    if count < 2:
        raise ValueError(f"a batch of {count} has no companions; pass at least two images")
    images = np.asarray(x)
    others = None if others is None else np.asarray(as_array("others", others, "images"))
    if others is not None and (others.shape[1:] != x.shape[1:] or not others.size):
        expected = f"(n, {', '.join(map(str, x.shape[1:]))})"
        raise ValueError(f"others must be images {expected}, n >= 1; got shape {others.shape}")
    if others is not None and not np.isfinite(others).all():
        raise ValueError("others must be finite; got NaN or infinite values")
    logits = np.asarray(predict(logits_fn, x))
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    alone = np.concatenate([predict(logits_fn, jnp.asarray(image[None])) for image in images])
    shuffled = np.empty_like(logits)
    order = _order(generator, count)
    shuffled[order] = predict(logits_fn, place_like(images[order], x))
    logits_kept, logits_among_others = [], []
    for kept_half in (np.arange((count + 1) // 2), np.arange(count // 2, count)):
        batch = _among_others(
            generator,
            images,
            kept_half,
            images[kept_half] if others is None else others,
        )
        logits_kept.append(logits[kept_half])
        logits_among_others.append(np.asarray(predict(logits_fn, place_like(batch, x)))[kept_half])
    # With an odd number of images the one in the middle was kept twice; the first result is used.
    merged = [
        np.concatenate([parts[0], parts[1][count % 2 :]])
        for parts in (logits_kept, logits_among_others)
    ]
    labels = jnp.asarray(np.argmax(logits, axis=-1), jnp.int32)
    return Dependence(
        images=count,
        alone=_change(logits, alone),
        shuffled=_change(logits, shuffled),
        companions=_change(*merged),
        gradient_shares=_gradient_shares(logits_fn, x, labels, min(gradients, count)),
    )


def _order(generator: np.random.Generator, count: int) -> np.ndarray:
    """Returns a random order in which nothing keeps its place: one cycle through all places."""
    cycle = generator.permutation(count)
    order = np.empty_like(cycle)
    order[cycle] = np.roll(cycle, 1)
    return order


def _among_others(
    generator: np.random.Generator, images: np.ndarray, logits_kept: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Returns the batch with all but the kept images drawn from ``others``."""
    batch = others[generator.integers(len(others), size=len(images))].astype(images.dtype)
    batch[logits_kept] = images[logits_kept]
    return batch


def _change(before: np.ndarray, after: np.ndarray) -> Change:
    changed = np.argmax(before, axis=-1) != np.argmax(after, axis=-1)
    before, after = (without_unreachable(z, like=before) for z in (before, after))
    # The spread, because an offset that all logits share changes no prediction.
    spread = (before.max(axis=-1) - before.min(axis=-1)).max()
    difference = np.abs(after - before).max()
    return Change(
        images=int(changed.reshape(len(changed), -1).any(axis=1).sum()),
        labels=float(changed.mean()),
        logit=float(difference / spread) if spread > 0 else float(difference > 0),
    )


def _gradient_shares(
    logits_fn: LogitsFn, x: jax.Array, labels: jax.Array, count: int
) -> tuple[float, ...]:
    shares: list[float] = []
    if count and why_no_gradient(logits_fn, x):
        return ()
    for i in range(count):
        norms = np.asarray(
            _gradient_norms(as_partial(logits_fn), x, labels, jnp.asarray(i, jnp.int32))
        )
        norms = norms.astype(np.float64) / (norms.max() or 1.0)
        total = np.linalg.norm(norms)
        shares.append(float(np.linalg.norm(np.delete(norms, i)) / total) if total else 0.0)
    return tuple(shares)


@jax.jit
def _gradient_norms(
    model: jax.tree_util.Partial, x: jax.Array, labels: jax.Array, i: jax.Array
) -> jax.Array:
    """Returns the norms (B,) of the gradient of image ``i``'s margin with respect to each image.

    The margin is used because the gradient of the cross-entropy vanishes if the model is confident.
    """

    def margin_of_image(images: jax.Array) -> jax.Array:
        losses = per_example("margin", traced_logits(model, images), Criterion(labels))
        return jnp.sum(jnp.where(jnp.arange(len(losses)) == i, losses, 0))

    return geometry.euclidean(jax.grad(margin_of_image)(x))
