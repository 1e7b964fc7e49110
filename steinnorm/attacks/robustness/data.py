"""Inputs and labels of an evaluation, batch after batch, as arrays or as an iterable of batches."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import VOID

_PAIRS = "an iterable of (x, y) batches"


class Batch(NamedTuple):
    """One batch on the host.

    Attributes:
      place: its number, from 0.
      x: inputs (B, ...), floating.
      y: labels (B,) or (B, H, W), integers.
    """

    place: int
    x: np.ndarray
    y: np.ndarray

    def with_label(self) -> np.ndarray:
        """Returns the positions of the examples that have a known label."""
        there = self.y.reshape(len(self.y), -1) != VOID
        return np.flatnonzero(there.any(axis=1) | (self.y.ndim == 1))

    def digest(self) -> str:
        """Returns a hash of inputs and labels."""
        found = hashlib.sha256()
        for values in (self.x, self.y):
            found.update(f"{values.shape} {values.dtype}".encode())
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()

    def filled(self, size: int) -> "Batch":
        """Returns the batch with copies of its first examples behind it, up to ``size``.

        One size is one compilation.  Only for models whose logits do not depend on the batch.

        Args:
          size: examples that the batch shall have; a larger batch stays as it is.
        """
        if len(self.x) >= size:
            return self
        index = np.arange(size) % len(self.x)
        return Batch(self.place, self.x[index], self.y[index])


class Data:
    """What is evaluated; iterate over it for its batches.

    Args:
      x: inputs (N, ...), or an iterable of (x, y) batches where ``y`` is None.
      y: labels of all inputs.
      batch_size: of arrays; an iterable's batches are taken as they are.

    Raises:
      ValueError: the arguments do not fit together, or there is nothing to evaluate.
    """

    def __init__(self, x: Any, y: Any, batch_size: int):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
            raise ValueError(f"batch_size must be an integer; got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self._size = int(batch_size)
        self._y = None if y is None else np.asarray(y)
        if self._y is not None:
            # On several devices a part of it could not be taken without saying where it goes.
            many = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
            self._x = x if hasattr(x, "shape") and not many else np.asarray(x)
            _check_pair(self._x, self._y)
        elif hasattr(x, "shape") or not hasattr(x, "__iter__"):
            got = f"an array of shape {x.shape}" if hasattr(x, "shape") else type(x).__name__
            raise ValueError(f"without y, x must be {_PAIRS}; got {got}")
        else:
            self._x = x

    @property
    def batches(self) -> int | None:
        """How many there are; None where nobody knows."""
        if self._y is not None:
            return -(-len(self._y) // self._size)
        return len(self._x) if hasattr(self._x, "__len__") else None

    @property
    def is_repeatable(self) -> bool:
        """Whether the batches may be gone through again."""
        return self._y is not None or iter(self._x) is not self._x

    def __iter__(self) -> Iterator[Batch]:
        if self._y is None:
            yield from self._given()
            return
        for place, start in enumerate(range(0, len(self._y), self._size)):
            part = slice(start, start + self._size)
            # One batch at a time on the host, wherever the arrays lie.
            yield Batch(place, np.asarray(self._x[part]), self._y[part])

    def _given(self) -> Iterator[Batch]:
        place = -1
        for place, pair in enumerate(self._x):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(
                    f"x must be {_PAIRS}; item {place} is a {type(pair).__name__}"
                    + (f" of {len(pair)}" if isinstance(pair, tuple | list) else "")
                )
            x, y = np.asarray(pair[0]), np.asarray(pair[1])
            _check_pair(x, y, f" of batch {place}")
            yield Batch(place, x, y)
        if place < 0:
            raise ValueError(
                "x has no batch: there is nothing to evaluate.  An iterator can be gone through "
                "only once"
            )


def _check_pair(x: Any, y: np.ndarray, where: str = "") -> None:
    if x.ndim < 2 or not len(x):
        raise ValueError(f"x{where} must be a non-empty batch (B, ...); got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x{where} must be floating; got dtype {x.dtype}.  Scale images to [0, 1] first"
        )
    if y.ndim < 1 or len(y) != len(x):
        raise ValueError(
            f"y{where} must have a label for each of the {len(x)} inputs; got shape {y.shape}"
        )
    if y.dtype == bool:
        raise ValueError(f"y{where} must be integers; got booleans: use y.astype(int)")
