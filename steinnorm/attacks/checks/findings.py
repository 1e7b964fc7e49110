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
      value: the number that decided; None where there is none.
      detail: what the number is, its limit, and on how much it was measured, in words.
    """

    name: str
    verdict: str
    value: float | None
    detail: str


def judged(name: str, passed: bool, value: float, detail: str) -> Finding:
    """A check that was made; a number that is not finite is no value (JSON has none such)."""
    verdict = PASS if passed else FAIL
    return Finding(name, verdict, float(value) if math.isfinite(value) else None, detail)


def not_applicable(name: str, reason: str) -> Finding:
    """A check that cannot be made."""
    return Finding(name, NOT_APPLICABLE, None, reason)


def at_most(value: float, limit: float) -> bool:
    """Whether a difference of shares is no larger than its limit."""
    return value <= limit + _ROUNDING


def below(value: float, limit: float) -> bool:
    """Whether a difference of shares is smaller than its limit."""
    return value < limit - _ROUNDING


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares in words."""
    return f"{100 * difference:+.1f} points"
