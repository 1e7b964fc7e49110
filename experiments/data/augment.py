"""Random mirroring and shifting of whole batches, the same for images, volumes and label maps."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from steinnorm.attacks import VOID

_FEW_PIXELS = 4096  # of images that are moved all at once


class Draw(NamedTuple):
    """What was drawn for each example of a batch.

    Attributes:
      mirror: (B,) bool.
      offset: (B, spatial dimensions) whole pixels, in [-shift, shift].
    """

    mirror: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Mirrors left to right with probability 1/2 and shifts by whole pixels.

    Drawing and applying are separate steps: a process that holds only a part of a batch draws for
    all of it and applies its own rows, so that the batch does not depend on how many processes
    share it.

    Attributes:
      mirror: left to right: the last spatial axis of images, the first of volumes.
      shift: largest shift in pixels along each spatial axis; pixels from outside the image are 0
        in inputs and ``VOID`` in label maps.
    """

    mirror: bool = False
    shift: int = 0

    def draw(self, generator: np.random.Generator, examples: int, dimensions: int) -> Draw:
        """Draws for a number of examples with a number of spatial dimensions."""
        # Always the same draws in the same order: switching one off leaves the other alone.
        mirror = generator.random(examples) < 0.5
        offset = generator.integers(-self.shift, self.shift + 1, size=(examples, dimensions))
        return Draw(mirror & self.mirror, offset)

    def apply(
        self, inputs: np.ndarray, targets: np.ndarray, draw: Draw
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moves a batch as it was drawn; label maps move along with their images.

        Args:
          inputs: (B, spatial..., C).
          targets: (B,) labels, or (B, spatial...) label maps.
          draw: of the same B examples.
        """
        if not self.mirror and not self.shift:
            return inputs, targets
        moved = _move_all(inputs, draw, 0)
        return moved, _move_all(targets, draw, VOID) if targets.ndim > 1 else targets


NO_AUGMENTATION = Augmentation()


def _move_all(batch: np.ndarray, draw: Draw, fill: int) -> np.ndarray:
    """Mirrors and moves the examples of a batch (B, spatial..., and perhaps channels)."""
    dimensions = draw.offset.shape[1]
    if math.prod(batch.shape[1 : 1 + dimensions]) <= _FEW_PIXELS:
        return _gather(batch, draw, fill)
    return np.stack([_move(x, m, o, fill) for x, m, o in zip(batch, *draw, strict=True)])


def _gather(batch: np.ndarray, draw: Draw, fill: int) -> np.ndarray:
    """Takes all pixels of a batch at once: of small images, Python's loop would cost more."""
    spatial = batch.shape[1 : 1 + draw.offset.shape[1]]
    pixels = math.prod(spatial)
    first = np.arange(len(batch)) * pixels
    place, inside = _wide(first[:, None], 0, len(spatial)), np.array(True)
    stride = pixels
    for axis, size in enumerate(spatial):
        stride //= size
        source = np.arange(size) - draw.offset[:, axis, None]
        inside = inside & _wide((source >= 0) & (source < size), axis, len(spatial))
        if axis == _sideways(len(spatial)):
            source = np.where(draw.mirror[:, None], size - 1 - source, source)
        place = place + _wide(source * stride, axis, len(spatial))
    place[~inside] = len(batch) * pixels  # behind the last example lies the pixel that fills
    values = batch.reshape(len(batch) * pixels, -1)
    values = np.concatenate([values, np.full_like(values, fill, shape=(1, values.shape[1]))])
    # A pixel is one item, however many channels it has.
    items = values.view(np.dtype((np.void, values.itemsize * values.shape[1])))[:, 0]
    return np.take(items, place, mode="clip").view(batch.dtype).reshape(batch.shape)


def _wide(by_example: np.ndarray, axis: int, dimensions: int) -> np.ndarray:
    """Lays (B, n) along one of the spatial axes: (B, 1, ..., n, ..., 1)."""
    shape = [1] * dimensions
    shape[axis] = by_example.shape[1]
    return by_example.reshape(len(by_example), *shape)


def _sideways(dimensions: int) -> int:
    """Returns the spatial axis along which left and right lie.

    The width of an image, and the first axis of a volume, which the loader has turned to
    right-left, posterior-anterior, inferior-superior.
    """
    return 0 if dimensions == 3 else dimensions - 1


def _move(x: np.ndarray, mirror: bool, offset: np.ndarray, fill: int) -> np.ndarray:
    """Mirrors ``x`` (spatial..., and perhaps channels), then moves it by ``offset``."""
    if mirror:
        x = np.flip(x, axis=_sideways(len(offset)))
    if not offset.any():
        return x
    moved = np.full_like(x, fill)
    to, source = [], []
    for size, wanted in zip(x.shape, offset, strict=False):
        step = int(np.clip(wanted, -size, size))
        to.append(slice(max(step, 0), size + min(step, 0)))
        source.append(slice(max(-step, 0), size + min(-step, 0)))
    moved[tuple(to)] = x[tuple(source)]
    return moved
