"""Inputs and labels of an evaluation, as batches from arrays or from an iterable."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from steinnorm.attacks._arguments import as_integer, check_floating
from steinnorm.attacks._criterion import VOID

_PAIRS = "an iterable of (x, y) batches"


class Batch(NamedTuple):
    """One batch as NumPy arrays.

    Attributes:
      number: number of the batch, from 0.
      x: inputs (B, ...), floating.
      y: labels (B,) or (B, H, W), integers.
    """

    number: int
    x: np.ndarray
    y: np.ndarray

    def with_label(self) -> np.ndarray:
        """Returns the positions of the examples that have a label."""
        labelled = self.y.reshape(len(self.y), -1) != VOID
        return np.flatnonzero(labelled.any(axis=1) | (self.y.ndim == 1))

    def digest(self) -> str:
        """Returns a hash of inputs and labels."""
        digest = hashlib.sha256()
        for values in (self.x, self.y):
            digest.update(f"{values.shape} {values.dtype}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def padded(self, size: int) -> "Batch":
        """Returns the batch padded to ``size`` with copies of its first examples.

        A constant size avoids further compilations. It must not be used for models whose logits
        depend on the batch.

        Args:
          size: number of examples; a larger batch is returned unchanged.
        """
        if len(self.x) >= size:
            return self
        index = np.arange(size) % len(self.x)
        return Batch(self.number, self.x[index], self.y[index])


class Data:
    """The evaluated inputs and labels; iterating over it yields batches.

    Args:
      x: inputs (N, ...), or an iterable of (x, y) batches if ``y`` is None.
      y: labels of all inputs, or None.
      batch_size: examples per batch if ``x`` is an array.

    Raises:
      ValueError: the arguments do not fit together, or there is nothing to evaluate.
    """

    def __init__(self, x: Any, y: Any, batch_size: int):
        self._size = as_integer("batch_size", batch_size, 1)
        self._y = None if y is None else np.asarray(y)
        if self._y is not None:
            # Slicing an array on several devices would need a sharding for the slice.
            on_several_devices = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
            self._x = x if hasattr(x, "shape") and not on_several_devices else np.asarray(x)
            _check_pair(self._x, self._y)
        elif hasattr(x, "shape") or not hasattr(x, "__iter__"):
            got = f"an array of shape {x.shape}" if hasattr(x, "shape") else type(x).__name__
            raise ValueError(f"without y, x must be {_PAIRS}; got {got}")
        else:
            self._x = x

    @property
    def batches(self) -> int | None:
        """The number of batches; None if it is unknown."""
        if self._y is not None:
            return -(-len(self._y) // self._size)
        return len(self._x) if hasattr(self._x, "__len__") else None

    @property
    def is_repeatable(self) -> bool:
        """Whether the batches can be iterated over again."""
        return self._y is not None or iter(self._x) is not self._x

    def __iter__(self) -> Iterator[Batch]:
        if self._y is None:
            yield from self._from_iterable()
            return
        for number, start in enumerate(range(0, len(self._y), self._size)):
            part = slice(start, start + self._size)
            # Only one batch at a time is copied from the devices.
            yield Batch(number, np.asarray(self._x[part]), self._y[part])

    def _from_iterable(self) -> Iterator[Batch]:
        number = -1
        for number, pair in enumerate(self._x):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(
                    f"x must be {_PAIRS}; item {number} is a {type(pair).__name__}"
                    + (f" of {len(pair)}" if isinstance(pair, tuple | list) else "")
                )
            x, y = np.asarray(pair[0]), np.asarray(pair[1])
            _check_pair(x, y, f" of batch {number}")
            yield Batch(number, x, y)
        if number < 0:
            raise ValueError(
                "x has no batch, so there is nothing to evaluate; if it is an iterator, it may be "
                "exhausted: pass a new one"
            )


def _check_pair(x: Any, y: np.ndarray, where: str = "") -> None:
    if x.ndim < 2 or not len(x):
        raise ValueError(f"x{where} must be a non-empty batch (B, ...); got shape {x.shape}")
    check_floating(f"x{where}", x.dtype)
    if y.ndim < 1 or len(y) != len(x):
        raise ValueError(
            f"y{where} must have a label for each of the {len(x)} inputs; got shape {y.shape}"
        )
    if y.dtype == bool:
        raise ValueError(f"y{where} must be integers; got booleans: use y.astype(int)")
