"""Warnings of an evaluation, each given once and pointing to the caller's line."""

import contextlib
import warnings
from collections.abc import Iterator

from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import RadiusWarning

GivenWarnings = set[tuple[type[Warning], str]]
"""Category and text of the warnings that have been given."""


@contextlib.contextmanager
def warn_once(given_warnings: GivenWarnings) -> Iterator[None]:
    """Gives each warning of the block once, for any number of batches and attacks.

    ``RadiusWarning`` is ignored, because the evaluation gives it at the start.

    Args:
      given_warnings: warnings that have been given; those of the block are added.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            # The caller's filters stay active, so that warnings turned into errors are raised.
            warnings.simplefilter("ignore", RadiusWarning)
            yield
    finally:  # also after an error, whose reason the warnings may be
        for warning in caught:
            category_and_text = (warning.category, str(warning.message))
            if category_and_text not in given_warnings:
                given_warnings.add(category_and_text)
                warn(category_and_text[1], category_and_text[0])
