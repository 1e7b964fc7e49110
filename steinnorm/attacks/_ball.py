"""The numbers of a threat, as the traced argument of a compiled step."""

from typing import NamedTuple, Self

from steinnorm.attacks.threat import Threat


class Ball(NamedTuple):
    """Python floats, whose weak type leaves the dtype of the inputs alone.

    Attributes:
      epsilon: the radius.
      bounds: the box.
      momentum: share of the last direction that a step keeps.
    """

    epsilon: float
    bounds: tuple[float, float]
    momentum: float = 0.0

    @classmethod
    def of(cls, threat: Threat, momentum: float = 0.0) -> Self:
        """That of a threat."""
        low, high = threat.bounds
        return cls(float(threat.epsilon), (float(low), float(high)), float(momentum))
