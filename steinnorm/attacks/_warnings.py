"""Warnings that point to the caller's line."""

from __future__ import annotations

import sys
import warnings

_OURS = ("steinnorm.attacks", "contextlib", "functools")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning that points to the line that called the library.

    Args:
      message: what is wrong, and what to do.
      category: class of the warning.
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
