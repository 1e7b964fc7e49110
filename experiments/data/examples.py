"""Decoded examples: what every loader returns, and what training and evaluation work on."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Examples:
    """One part of a data set, in arrays (or memory maps) of the same length.

    Attributes:
      inputs: (N, ..., C): uint8, standing for value / 255, or float32 in [0, 1].
      targets: (N,) int32 class labels; or (N, H, W) uint8 labels of pixels, 255 (void) where
        there is none.
    """

    inputs: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs, {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: np.ndarray) -> "Examples":
        """Returns the examples at the given positions, in that order."""
        return Examples(self.inputs[index], self.targets[index])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Attributes:
      train: for the optimiser.
      validation: for the choice of weights; may be empty where nothing is chosen.
      test: for the numbers that are reported, in an order without meaning: with test-batch
        statistics, batches sorted by class would be another experiment.
      classes: number of classes; labels lie in [0, classes).
      class_names: their names, in order.
      notes: lines for the user about what was loaded, such as how many subjects each part has.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: int
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def as_inputs(x: "jax.Array") -> "jax.Array":
    """Returns inputs in [0, 1]; bytes are sent to the device as they are and divided there."""
    return x.astype(np.float32) / 255.0 if x.dtype == np.uint8 else x
