"""Seeded orders and sizes of parts, the same on every machine."""

import numpy as np

from experiments.errors import ConfigError

TRAIN, VALIDATION, TEST, CHOICE = 0, 1, 2, 3
"""Streams of random numbers: what one seed shuffles is shuffled independently in each."""


def shuffled_order(count: int, seed: int, stream: int = TRAIN) -> np.ndarray:
    """Returns a permutation of 0 .. count - 1: NumPy's PCG64, seeded with (seed, stream)."""
    return np.random.Generator(np.random.PCG64([seed, stream])).permutation(count)


def balanced_order(labels: np.ndarray, seed: int, stream: int = TRAIN) -> np.ndarray:
    """Returns a random order whose first n items hold all classes in about their shares.

    This is so for every n.

    Args:
      labels: (N,) class of each item.
      seed: of the order within a class.
      stream: of random numbers, for the same.

    Returns:
      (N,) positions.
    """
    order = shuffled_order(len(labels), seed, stream)
    labels = np.asarray(labels)[order]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = labels == label
        place[members] = (np.arange(members.sum()) + 0.5) / members.sum()
    return order[np.argsort(place, kind="stable")]


def count_of_share(count: int, share: float, name: str) -> int:
    """Returns how many of ``count`` items a share is, at least 1 unless the share is 0.

    Raises:
      ConfigError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"{name} must lie in [0, 1), not {share}")
    return max(1, round(share * count)) if share > 0 else 0


def first_of(order: np.ndarray, wanted: int | None, name: str, what: str) -> np.ndarray:
    """Returns the first ``wanted`` items of an order; all of it for None.

    Raises:
      ConfigError: there are not so many, or fewer than one is wanted.
    """
    if wanted is None:
        return order
    if not 1 <= wanted <= len(order):
        raise ConfigError(f"{name} = {wanted}, but there are {len(order)} {what}")
    return order[:wanted]
