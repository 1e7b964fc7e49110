"""Makes batches, a pure function of the seed and the step, in threads beside the training.

No iterator holds any state, so a run resumes at any batch by its number alone.
"""

import functools
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from experiments.data.augment import NO_AUGMENTATION, Augmentation
from experiments.data.examples import Examples
from experiments.errors import ConfigError

_AHEAD = 4  # batches that wait for the step; more only costs memory


class Batch(NamedTuple):
    """The examples of one step.

    Attributes:
      inputs: (B, ..., C), dtype as in ``Examples``.
      targets: (B,) or (B, H, W).
      real: (B,) bool; False for copies that only fill up the last batch of an evaluation.

    NumPy arrays as they are made, ``jax.Array`` once they are on the devices.
    """

    inputs: Any
    targets: Any
    real: Any


class TrainBatches:
    """The batches of a training: ``batches[step]`` for each ``step`` from 0 up.

    Every epoch takes the examples in a new order and drops what does not fill a batch.

    Args:
      examples: the training part.
      batch_size: over all processes.
      seed: of order and augmentation.
      augmentation: what is done to the examples.
      process: (number of this process, how many there are): each gets its rows of every batch.

    Raises:
      ConfigError: there are fewer examples than fill a batch, or the processes cannot share it.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        seed: int,
        augmentation: Augmentation = NO_AUGMENTATION,
        process: tuple[int, int] = (0, 1),
    ):
        check_fills(examples, batch_size)
        index, count = process
        if batch_size % count:
            raise ConfigError(f"a batch of {batch_size} cannot be shared by {count} processes")
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._augmentation = augmentation
        share = batch_size // count
        self._rows = slice(index * share, (index + 1) * share)
        self.per_epoch = len(examples) // batch_size
        self.input_rank = examples.inputs.ndim
        # Each instance has its own small cache: neighbouring steps share an epoch.
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(int(step), self.per_epoch)
        start = place * self._batch_size
        chosen = self._order(epoch)[start : start + self._batch_size]
        batch = self._examples.take(chosen[self._rows])
        generator = np.random.default_rng((self._seed, 1, int(step)))
        drawn = self._augmentation.draw(generator, self._batch_size, batch.inputs.ndim - 2)
        mine = type(drawn)(*(values[self._rows] for values in drawn))
        inputs, targets = self._augmentation.apply(batch.inputs, batch.targets, mine)
        return Batch(inputs, targets, np.ones(len(targets), bool))

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, 0, epoch)).permutation(len(self._examples))


def check_fills(examples: Examples, batch_size: int) -> None:
    """Checks that a training part fills at least one batch.

    Raises:
      ConfigError: it does not.
    """
    if batch_size < 1 or len(examples) < batch_size:
        raise ConfigError(
            f"{len(examples)} training examples do not fill a single batch of {batch_size}; "
            "choose a smaller train.batch_size or more training examples"
        )


class Batches(Protocol):
    """Batches by their numbers."""

    def __getitem__(self, step: int, /) -> Batch:
        """Returns the batch of a step."""


class _Steps:
    """The batches of some steps as a source for Grain."""

    def __init__(self, batches: Batches, steps: range):
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Batch:
        return self._batches[self._steps[index]]


def ahead(batches: Batches, steps: range, *, threads: int | None = None) -> Iterator[Batch]:
    """Yields the batches of the given steps, in order, made in threads before they are asked for.

    An error in a thread is raised where the batch is asked for.

    Args:
      batches: by their numbers.
      steps: whose batches are wanted.
      threads: how many; by default one for each core, at most 8.
    """
    threads = threads or min(os.cpu_count() or 1, 8)
    if not len(steps):
        return iter(())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(_AHEAD, threads))
    return iter(grain.MapDataset.source(_Steps(batches, steps)).to_iter_dataset(options))


class InOrder:
    """The batches of an evaluation: every example once, in order.

    Args:
      examples: the part to go through.
      batch_size: of all batches but perhaps the last.
      fill: fill the last batch with copies that are not ``real``, so that all batches have one
        shape.  Under statistics of the test batch copies would count: there it must be False, and
        the last batch is smaller.
    """

    def __init__(self, examples: Examples, batch_size: int, *, fill: bool = True):
        self._examples, self._batch_size, self._fill = examples, batch_size, fill

    def __len__(self) -> int:
        return math.ceil(len(self._examples) / self._batch_size)

    def __getitem__(self, place: int) -> Batch:
        start = place * self._batch_size
        chosen = np.arange(start, min(start + self._batch_size, len(self._examples)))
        if not len(chosen):
            raise IndexError(f"batch {place} of {len(self)}")
        real = np.ones(len(chosen), bool)
        if self._fill:
            missing = (0, self._batch_size - len(chosen))
            chosen, real = np.pad(chosen, missing, mode="edge"), np.pad(real, missing)
        taken = self._examples.take(chosen)
        return Batch(taken.inputs, taken.targets, real)
