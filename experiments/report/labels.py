"""Names the lines and columns of tables."""

import math
from typing import NamedTuple

from experiments.results import CLEAN

REFERENCE = "batch"
"""The norm that all others are compared with."""

SOURCE_NAMES = {
    "running": "running",
    "batch": "test batch",
    "shrunk": "shrunk",
    "calibrated": "calibrated",
    "calibrated_streams": "calibrated (streams)",
    "none": "none",
}
THREAT_MODELS = ("", "joint", "independent", "companion")


class Source(NamedTuple):
    """Whose statistics the norm used and, where examples share them, who attacked whom.

    Attributes:
      statistics: one of ``SOURCE_NAMES``.
      threat_model: as in ``Row``.
    """

    statistics: str
    threat_model: str = ""

    @property
    def name(self) -> str:
        """As tables call it."""
        base = SOURCE_NAMES[self.statistics]
        return f"{base} ({self.threat_model})" if self.threat_model else base

    @property
    def is_shared(self) -> bool:
        """Whether the examples of a batch share statistics, so that they fall together."""
        return self.statistics not in ("running", "none")

    @property
    def place(self) -> tuple[int, int]:
        """Sorts sources in their usual order."""
        return (
            list(SOURCE_NAMES).index(self.statistics),
            THREAT_MODELS.index(self.threat_model),
        )


class Column(NamedTuple):
    """What was done to the examples.

    Attributes:
      attack: ``clean`` or a name.
      epsilon: its strength in units of the image range.
      norm_order: of its ball; empty where there is none.
    """

    attack: str
    epsilon: float = 0.0
    norm_order: str = ""

    @property
    def name(self) -> str:
        """As tables call it."""
        if self.attack == CLEAN:
            return CLEAN
        is_plain = self.norm_order in ("", "linf") or self.attack.endswith(f"-{self.norm_order}")
        attack = self.attack if is_plain else f"{self.attack}-{self.norm_order}"
        return f"{attack} {strength(self.epsilon)}"


def strength(epsilon: float) -> str:
    """Returns an attack's strength as people write it: 0.12, or 8/255.

    With all the digits that tell it from others: columns and pictures are named after it.
    """
    short = f"{epsilon:.3g}"
    if float(short) == epsilon:
        return short
    steps = epsilon * 255
    if math.isclose(steps, round(steps), rel_tol=1e-9):
        return f"{round(steps)}/255"
    return f"{epsilon:.9g}"
