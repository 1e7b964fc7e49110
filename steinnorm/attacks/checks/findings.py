"""What a check says."""

import math
from typing import NamedTuple

PASS = "PASS"
FAIL = "FAIL"
NOT_APPLICABLE = "not applicable"

_ROUNDING = 1e-9  # of differences between shares, so that one point is one point


class Finding(NamedTuple):
    """The verdict of one check.

    Attributes:
      name: of the check.
      verdict: ``PASS``, ``FAIL`` or ``not applicable``.
      value: the number that was looked at; None where there is none.
      detail: what the number is, its interval and limit, and on how much it was measured.
    """

    name: str
    verdict: str
    value: float | None
    detail: str

    def __str__(self) -> str:
        """Returns one line: verdict, name and detail."""
        return f"{self.verdict:{len(NOT_APPLICABLE)}}  {self.name}: {self.detail}"


def judged(name: str, passed: bool, value: float, detail: str) -> Finding:
    """Returns the finding of a check that was made.

    A number that is not finite is no value, because JSON has none such.
    """
    verdict = PASS if passed else FAIL
    return Finding(name, verdict, float(value) if math.isfinite(value) else None, detail)


def not_applicable(name: str, reason: str) -> Finding:
    """Returns the finding of a check that cannot be made."""
    return Finding(name, NOT_APPLICABLE, None, reason)


def at_most(value: float, limit: float) -> bool:
    """Returns whether a difference of shares is no larger than its limit."""
    return value <= limit + _ROUNDING


def percent(share: float) -> str:
    """Returns a share in words."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Returns a difference of two shares in words."""
    return f"{100 * difference:+.1f} points"
