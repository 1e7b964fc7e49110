"""Warnings at the line of the caller who has to know."""

from __future__ import annotations

import sys
import warnings

_OURS = ("steinnorm.attacks", "contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line that called the library.

    Args:
      message: what is wrong, and what to do.
      category: of the warning.
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
