"""How wide the box of valid inputs is, of numbers or of one number for each channel."""

from typing import Any

import numpy as np

from steinnorm.attacks.threat import Threat

_ORDERS = {"linf": np.inf, "l2": 2}


def limits(threat: Threat, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the smallest and largest valid value and the width, each to broadcast against x.

    Without bounds nothing is cut off, and the width is the range of the data, or twice the largest
    radius where all values are the same.

    Args:
      threat: its bounds may be numbers, one for each channel, or None.
      x: inputs (B, ...).
    """
    bounds: Any = threat.bounds
    if bounds is not None:
        low, high = (np.asarray(bound, np.float64) for bound in bounds)
        return low, high, high - low
    found = float(x.max()) - float(x.min())
    width = found if found > 0 else 2 * float(np.max(threat.epsilon))
    return np.asarray(-np.inf), np.asarray(np.inf), np.asarray(width)


def factor_of_the_whole_box(threat: Threat, shape: tuple[int, ...]) -> float | None:
    """Returns how many times its radius a ball needs to hold the whole box.

    Args:
      threat: the ball and the box.
      shape: of one input.

    Returns:
      The factor; None where there are no bounds, so that no ball holds everything.
    """
    bounds: Any = threat.bounds
    if bounds is None:
        return None
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    width = np.broadcast_to(high - low, shape).ravel()
    radius = np.broadcast_to(np.asarray(threat.epsilon, np.float64), shape).ravel()
    # A channel of radius 0 cannot be changed by any multiple of it.
    radii = width[radius > 0] / radius[radius > 0]
    return float(np.linalg.norm(radii, _ORDERS[threat.norm]))
