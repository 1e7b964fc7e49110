"""Chooses the radius at which the checks of an evaluation can tell most."""

from collections.abc import Mapping


def radius_with_room(left: Mapping[float, float], clean: float) -> float:
    """Returns the radius at which an attack has taken nearest to half of the clean accuracy.

    Most checks ask whether another attack finds more.  Where nothing is left, none can, and they
    pass whatever the attacks of smaller radii are worth; where nothing is taken, the attacks have
    nothing to show.  Of two radii that are equally near it is the larger.

    Args:
      left: radius -> accuracy under the strongest attack; at least one.
      clean: accuracy without attack.
    """
    return min(left, key=lambda radius: (abs(left[radius] - clean / 2), -radius))
