"""Plans what is measured: conditions, batch sizes, rules, mixed and sorted batches."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.corruptions import SEVERITIES, fitting
from experiments.errors import ConfigError
from experiments.evaluation.shift.rules import BATCH, FIXED, MIXED, RULES, mixed_name

TUNE = (
    "gaussian_noise",
    "shot_noise",
    "gaussian_blur",
    "contrast",
    "brightness",
    "fog",
    "pixelate",
    "jpeg",
)
"""Kinds that settings were chosen on: n of ``N/(N+n)`` here, the calibrated rule before."""

MIDDLE = SEVERITIES[1]


class Condition(NamedTuple):
    """What is done to the test examples.

    Attributes:
      corruption: one of ``experiments.data.corruptions``, or ``clean``.
      severity: 1 to 3; 0 where they are clean.
    """

    corruption: str
    severity: int


CLEAN = Condition("clean", 0)


class Cell(NamedTuple):
    """One measurement of one condition.

    Attributes:
      rule: its name.
      batch_size: 0 where the answers do not depend on the batch.
      sorted: batches of neighbours (one class, or neighbouring frames) instead of mixed ones.
    """

    rule: str
    batch_size: int
    sorted: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured of each network.

    Attributes:
      corruptions: kinds.
      severities: of each kind.
      batch_sizes: ascending; each divides the next.
      strengths: the list that n of ``N/(N+n)`` is chosen from.
      test_examples: at most so many of the first test examples.
      seed: of the corruptions and of the bootstrap.
    """

    corruptions: tuple[str, ...]
    severities: tuple[int, ...] = SEVERITIES
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    strengths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    test_examples: int = 1024
    seed: int = 0

    @property
    def conditions(self) -> list[Condition]:
        """All conditions, clean first."""
        return [CLEAN, *(Condition(c, s) for c in self.corruptions for s in self.severities)]

    @property
    def tuning(self) -> list[Condition]:
        """The conditions on which n is chosen: clean, and the TUNE kinds at one severity."""
        return [CLEAN, *(Condition(c, self.middle) for c in self.corruptions if c in TUNE)]

    @property
    def middle(self) -> int:
        """The severity at which n is chosen and sorted batches are measured."""
        return MIDDLE if MIDDLE in self.severities else self.severities[0]

    @property
    def rules(self) -> list[str]:
        """The rules whose answers depend on the batch, with ``N/(N+n)`` for any n."""
        return [BATCH, MIXED, *(name for name in RULES if name not in (*FIXED, BATCH))]

    def for_examples(self, test: int) -> "Plan":
        """Returns the plan for a test part of so many examples, all of whose batches are full.

        Raises:
          ConfigError: there are too few examples.
        """
        count = min(test, self.test_examples)
        sizes = tuple(size for size in self.batch_sizes if size <= count)
        if not sizes or sizes[-1] < 2:
            raise ConfigError(f"{count} test examples are too few; at least 2 are needed")
        return dataclasses.replace(
            self, batch_sizes=sizes, test_examples=count // sizes[-1] * sizes[-1]
        )

    def tuning_cells(self) -> list[Cell]:
        """Returns what is measured to choose n."""
        names = [mixed_name(n) for n in self.strengths]
        return [Cell(name, size) for name in names for size in self.batch_sizes]

    def cells(self, condition: Condition, n: int, sorted_sizes: Sequence[int]) -> Iterator[Cell]:
        """Yields what is measured of a condition once n is chosen.

        Args:
          condition: which.
          n: of ``N/(N+n)``.
          sorted_sizes: sizes of sorted batches.
        """
        names = [mixed_name(n) if rule == MIXED else rule for rule in self.rules]
        yield from (Cell(rule, 0) for rule in FIXED)
        yield from (Cell(name, size) for name in names for size in self.batch_sizes)
        if self.has_sorted(condition):
            yield from (Cell(name, size, True) for name in names for size in sorted_sizes)

    def has_sorted(self, condition: Condition) -> bool:
        """Returns whether sorted batches of a condition are measured."""
        return condition.severity in (0, self.middle)


def by_class(targets: np.ndarray, batch_sizes: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Returns an order in which every batch holds one class, and the sizes it is good for.

    Args:
      targets: (N,) labels.
      batch_sizes: ascending, each dividing the next.

    Returns:
      Positions (M,), M <= N: of each class as many as fill the largest batches, which are those
      that at least half of the classes can fill; and the sizes from 2 up to that one.
    """
    counts = np.unique(targets, return_counts=True)[1]
    sizes = [size for size in batch_sizes if 1 < size <= np.median(counts)]
    if not sizes:
        return np.zeros(0, np.int64), []
    parts = []
    for label in np.unique(targets):
        places = np.flatnonzero(targets == label)
        parts.append(places[: len(places) // sizes[-1] * sizes[-1]])
    return np.concatenate(parts), sizes


def all_fitting(shape: Sequence[int], *, pixel_labels: bool) -> tuple[str, ...]:
    """Returns the kinds that can be done to these examples: those of TUNE first."""
    names = fitting(shape, pixel_labels=pixel_labels)
    return tuple(sorted(names, key=lambda name: name not in TUNE))
