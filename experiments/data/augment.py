"""Random mirroring and shifting of whole batches, the same for images, volumes and label maps."""

import dataclasses
from typing import NamedTuple

import numpy as np

from steinnorm.attacks import VOID


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
        moved = np.stack([_move(x, m, o, 0) for x, m, o in zip(inputs, *draw, strict=True)])
        if targets.ndim > 1:
            targets = np.stack(
                [_move(y, m, o, VOID) for y, m, o in zip(targets, *draw, strict=True)]
            )
        return moved, targets


NO_AUGMENTATION = Augmentation()


def _move(x: np.ndarray, mirror: bool, offset: np.ndarray, fill: int) -> np.ndarray:
    """Mirrors ``x`` (spatial..., and perhaps channels), then moves it by ``offset``."""
    # Left and right lie along the width of an image, and along the first axis of a volume, which
    # the loader has turned to right-left, posterior-anterior, inferior-superior.
    sideways = 0 if len(offset) == 3 else len(offset) - 1
    if mirror:
        x = np.flip(x, axis=sideways)
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
