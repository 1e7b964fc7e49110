"""The result of a check."""

import math
from typing import NamedTuple

PASS = "PASS"
FAIL = "FAIL"
NOT_APPLICABLE = "not applicable"

_ROUNDING = 1e-9  # tolerance for rounding in differences of shares


class Finding(NamedTuple):
    """The verdict of one check.

    Attributes:
      name: name of the check.
      verdict: ``PASS``, ``FAIL`` or ``not applicable``.
      value: the measured value; None if there is none or it is not finite.
      detail: the meaning of the value, its interval and limit, and the number of examples.
    """

    name: str
    verdict: str
    value: float | None
    detail: str

    def __str__(self) -> str:
        """Returns one line: verdict, name and detail."""
        return f"{self.verdict:{len(NOT_APPLICABLE)}}  {self.name}: {self.detail}"


def finding_of(name: str, passed: bool, value: float, detail: str) -> Finding:
    """Returns the finding of a check that was made.

    A value that is not finite becomes None, because JSON has no such numbers.
    """
    verdict = PASS if passed else FAIL
    return Finding(name, verdict, float(value) if math.isfinite(value) else None, detail)


def not_applicable(name: str, reason: str) -> Finding:
    """Returns the finding of a check that cannot be made."""
    return Finding(name, NOT_APPLICABLE, None, reason)


def at_most(value: float, limit: float) -> bool:
    """Returns whether a difference of shares is at most its limit, up to rounding."""
    return value <= limit + _ROUNDING


def percent(share: float) -> str:
    """Returns a share as text, in per cent."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Returns a difference of two shares as text, in percentage points."""
    return f"{100 * difference:+.1f} points"
