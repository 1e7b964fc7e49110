"""The width of the box of valid inputs, whose bounds may be numbers or one per channel."""

from typing import Any

import numpy as np

from steinnorm.attacks.threat import Threat

_ORDERS = {"linf": np.inf, "l2": 2}


def box_limits(threat: Threat, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the smallest and the largest valid value and the width, which broadcast to ``x``.

    Without bounds the values are infinite, and the width is the range of the data, or twice the
    largest radius if all values are equal.

    Args:
      threat: the threat; its bounds may be numbers, one per channel, or None.
      x: inputs (B, ...).
    """
    bounds: Any = threat.bounds
    if bounds is not None:
        low, high = (np.asarray(bound, np.float64) for bound in bounds)
        return low, high, high - low
    data_range = float(x.max()) - float(x.min())
    width = data_range if data_range > 0 else 2 * float(np.max(threat.epsilon))
    return np.asarray(-np.inf), np.asarray(np.inf), np.asarray(width)


def whole_box_factor(threat: Threat, shape: tuple[int, ...]) -> float | None:
    """Returns the factor of the radius at which the ball contains the whole box.

    Args:
      threat: ball and box.
      shape: shape of one input.

    Returns:
      The factor; None without bounds, because then no ball contains every input.
    """
    bounds: Any = threat.bounds
    if bounds is None:
        return None
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    width = np.broadcast_to(high - low, shape).ravel()
    radius = np.broadcast_to(np.asarray(threat.epsilon, np.float64), shape).ravel()
    # Channels of radius 0 do not change at any factor.
    factors = width[radius > 0] / radius[radius > 0]
    return float(np.linalg.norm(factors, _ORDERS[threat.norm]))
