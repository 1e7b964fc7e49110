"""The kinds of numbers that settings are, with their ranges; pydantic checks them.

All are strict: ``true`` and ``"3"`` are no numbers, and no setting is infinite or not a number.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, Strict

Count = Annotated[int, Strict(), Ge(1)]
"""A number of things of which there must be some."""

CountOrZero = Annotated[int, Strict(), Ge(0)]
"""A number of things of which there may be none; also a seed."""

Positive = Annotated[float, Strict(), AllowInfNan(False), Gt(0)]
"""A size that cannot be zero."""

NotNegative = Annotated[float, Strict(), AllowInfNan(False), Ge(0)]
"""A size that may be zero."""

Share = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(1)]
"""A part of a whole, up to all of it; also a radius in units of the range of images."""

ShareButNotAll = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1)]
"""A part of a whole that leaves some."""
