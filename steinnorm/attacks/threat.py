"""The threat model: norm, radius and valid inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from steinnorm.attacks import _geometry
from steinnorm.attacks._arguments import as_number, check_broadcasts
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import ShortReachWarning

NORMS = ("linf", "l2")

Number = Any
"""A float, or an array that broadcasts to an example, such as one number per channel."""

_LARGEST = float(np.finfo(np.float32).max)  # larger numbers would be infinite in the attacks
_LARGEST_RADIUS = {"linf": _LARGEST, "l2": math.sqrt(_LARGEST)}  # in L2 attacks square it


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Threat:
    """A ball around each input, intersected with the box of valid inputs.

    It is a pytree. As an argument of a compiled function its radius and bounds are traced, so that
    a curve over many radii is compiled once; the norm is static.

    Attributes:
      norm: ``"linf"`` (largest absolute change of a value) or ``"l2"`` (Euclidean length of the
        change of an example, over all its values).
      epsilon: radius of the ball, in the units of the inputs; with ``"linf"`` also an array that
        broadcasts to an example, such as one radius per channel. 0 means no change.
      bounds: smallest and largest valid value of an input, as numbers or as arrays that broadcast
        to an example; None if every value is valid.

    Raises:
      ValueError: the norm is unknown, epsilon is negative or not finite in float32 (in L2 its
        square), or the bounds are not (low, high) with low < high, both finite in float32.

    Example:
      >>> Threat("linf", 8 / 255).bounds
      (0.0, 1.0)
    """

    norm: str
    epsilon: Number
    bounds: tuple[Number, Number] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {self.norm!r}")
        set_field = object.__setattr__  # the dataclass is frozen
        set_field(self, "epsilon", as_number("epsilon", self.epsilon))
        _check_epsilon(self.norm, self.epsilon)
        if self.bounds is None:
            return
        if not isinstance(self.bounds, Sequence | np.ndarray) or len(self.bounds) != 2:
            raise ValueError(f"bounds must be (low, high) or None; got {self.bounds!r}")
        low, high = (as_number("bounds", bound) for bound in self.bounds)
        set_field(self, "bounds", (low, high))
        if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
            return
        if not (_is_finite(low) and _is_finite(high) and np.all(low < high)):
            raise ValueError(
                "bounds must be finite in float32, (low, high) with low < high, or None if every "
                f"value is valid; got {self.bounds}"
            )

    def tree_flatten(self) -> tuple[tuple[Any, Any], str]:
        """Returns the traced numbers and the static norm."""
        return (self.epsilon, self.bounds), self.norm

    @classmethod
    def tree_unflatten(cls, norm: str, numbers: tuple[Any, Any]) -> Threat:
        """Returns the threat that :meth:`tree_flatten` split, without checking the numbers."""
        threat = object.__new__(cls)
        for name, value in zip(("norm", "epsilon", "bounds"), (norm, *numbers), strict=True):
            object.__setattr__(threat, name, value)
        return threat

    def scaled(self, factor: float) -> Threat:
        """Returns the threat with the radius multiplied by ``factor``."""
        return dataclasses.replace(self, epsilon=factor * self.epsilon)

    @property
    def per_channel(self) -> bool:
        """Whether the radius is an array; distances are then in multiples of the radius."""
        return np.ndim(self.epsilon) > 0

    @property
    def radius(self) -> float:
        """The largest allowed distance, in the units of ``distance``."""
        return 1.0 if self.per_channel else float(self.epsilon)

    def distance(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Returns the distance of each example (B, ...) from its original, (B,).

        With a radius per channel, the distance is in multiples of the radius.
        """
        return _geometry.distance(x_adv, x, self.norm, self.epsilon if self.per_channel else None)

    def project(self, x_adv: jax.Array, x: jax.Array) -> jax.Array:
        """Moves ``x_adv`` into the ball around ``x`` and into the box; both are (B, ...)."""
        return _geometry.project(x_adv, x, self.norm, self.epsilon, self.bounds)

    def step(self, x_adv: jax.Array, x: jax.Array, direction: jax.Array, size: Any) -> jax.Array:
        """Takes a step of length ``size`` in the steepest direction and projects the result.

        Args:
          x_adv: points before the step, (B, ...).
          x: centres of the balls, (B, ...).
          direction: gradient of the loss, (B, ...); it is scaled to unit size in the norm.
          size: length of the step, in the units of the inputs; broadcasts to (B, ...).
        """
        return self.project(x_adv + size * _geometry.steepest_direction(direction, self.norm), x)

    def random_start(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Returns uniform draws from the balls around ``x`` (B, ...), moved into the box."""
        noise = _geometry.random_in_ball(key, x, self.norm, self.epsilon)
        return self.project(x + noise, x)

    def random_on_surface(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """Returns draws from the balls' surfaces around ``x`` (B, ...), moved into the box."""
        noise = _geometry.random_on_sphere(key, x, self.norm, self.epsilon)
        return self.project(x + noise, x)

    def ball_tolerance(self, largest: float, values: int) -> float:
        """Returns by how much rounding may at most change ``distance`` where all lies in the ball.

        With a radius per channel it is that of the channel where rounding counts most.

        Args:
          largest: largest magnitude of a value.
          values: number of values in an example.
        """
        rounding = 4 * _spacing(largest + float(np.max(self.epsilon)))
        if self.norm == "l2":
            rounding *= max(
                1.0, math.sqrt(values) / 4
            )  # each value is off by half a spacing at most
        if self.per_channel:
            positive = np.asarray(self.epsilon)[np.asarray(self.epsilon) > 0]
            return rounding / float(positive.min()) if positive.size else 0.0
        return rounding

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses radius and bounds that do not broadcast to an example.

        Args:
          shape: shape of a batch, (B, ...).

        Raises:
          ValueError: one of them does not; the message names it.
        """
        numbers = {"epsilon": self.epsilon}
        if self.bounds is not None:
            numbers |= {"the lower bound": self.bounds[0], "the upper bound": self.bounds[1]}
        for name, value in numbers.items():
            check_broadcasts(name, value, shape[1:], "an example")

    def holds_box(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the ball around any valid input contains the whole box.

        Args:
          shape: shape of a batch, (B, ...).
        """
        if self.bounds is None:
            return False
        width = np.broadcast_to(np.asarray(self.bounds[1]) - self.bounds[0], shape[1:])
        if self.norm == "l2":
            return bool(np.all(self.epsilon >= np.sqrt(np.sum(np.square(width, dtype=np.float64)))))
        return bool(np.all(np.asarray(self.epsilon) >= width))


def check_threat(threat: Any) -> None:
    """Refuses anything but a ``Threat``.

    Raises:
      ValueError: ``threat`` is something else; for a number the message shows the correct call.
    """
    if not isinstance(threat, Threat):
        hint = f": write Threat('linf', {threat!r})" if isinstance(threat, int | float) else ""
        raise ValueError(f"threat must be a Threat; got {type(threat).__name__}{hint}")


def warn_of_short_reach(sizes: Sequence[Any], threat: Threat) -> None:
    """Warns if the sum of the step sizes is smaller than the radius, unless one is traced.

    Args:
      sizes: size of each step, in the threat's units; empty if the sizes are the default ones,
        which always suffice.
      threat: the threat whose radius is to be reached.

    Warns:
      ShortReachWarning: the sum is smaller.
    """
    if not sizes or any(isinstance(v, jax.core.Tracer) for v in (*sizes, threat.epsilon)):
        return
    reach = np.sum(np.stack([np.asarray(size, np.float64) for size in sizes]), axis=0)
    if np.any(reach < np.asarray(threat.epsilon) * (1 - 1e-6)):
        warn(
            f"{len(sizes)} steps of {float(np.min(reach)) / len(sizes):g} cannot reach the "
            f"edge of a ball of radius {float(np.max(threat.epsilon)):g}: use more or "
            "larger steps, or the attack is weaker than its radius suggests",
            ShortReachWarning,
        )


def radius_text(threat: Threat) -> str:
    """Returns the message of ``RadiusWarning`` for a threat whose ball contains the whole box."""
    return (
        f"a radius of {float(np.max(threat.epsilon)):g} lets any input of the box {threat.bounds} "
        "become any other. Radius and bounds are in the units of x: 8/255 for images in [0, 1], 8 "
        "for images in [0, 255] with bounds=(0, 255)"
    )


def _check_epsilon(norm: str, epsilon: Any) -> None:
    if isinstance(epsilon, jax.core.Tracer):
        return
    largest = _LARGEST_RADIUS[norm]
    if not (_is_finite(epsilon, largest) and np.all(np.asarray(epsilon) >= 0)):
        raise ValueError(
            f"epsilon must be finite and not negative, at most {largest:.3g} in {norm}, because "
            f"attacks compute in float32; got {epsilon}"
        )
    if np.ndim(epsilon) and norm != "linf":
        raise ValueError(
            f"a radius per channel needs the norm linf; {norm} has one length for the whole example"
        )


def _is_finite(value: Any, largest: float = _LARGEST) -> bool:
    return bool(np.all(np.abs(value) <= largest))


def _spacing(*values: Any) -> float:
    """Returns the spacing of float32 numbers at the largest magnitude among the values."""
    largest = max(float(np.max(np.abs(np.asarray(value)))) for value in values)
    return float(np.spacing(np.float32(largest)))
