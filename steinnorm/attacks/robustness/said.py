"""Warnings of an evaluation: each once, and at the caller's line."""

import contextlib
import warnings
from collections.abc import Iterator

from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import RadiusWarning

Said = set[tuple[type[Warning], str]]
"""Warnings that were given already: kind and text."""


@contextlib.contextmanager
def said_once(said: Said) -> Iterator[None]:
    """Gives each warning of the block once, however many batches and attacks give it.

    A radius that is too large is left out: the evaluation has said so before.

    Args:
      said: warnings that were given already; those of the block are added.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            # The caller's filters stay as they are: what is an error for them is one here.
            warnings.simplefilter("ignore", RadiusWarning)
            yield
    finally:  # what an attack warned of may be why it failed
        for warning in caught:
            known_as = (warning.category, str(warning.message))
            if known_as not in said:
                said.add(known_as)
                warn(known_as[1], known_as[0])
