"""Checks of the arguments of ``run_checks``."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks.checks.settings import CheckSettings
from steinnorm.attacks.losses import LOSSES, check_loss
from steinnorm.attacks.threat import Threat


def check_arguments(
    logits_fn: Any, x: Any, y: Any, *, threat: Any, settings: Any, twin: Any
) -> None:
    """Refuses arguments of the wrong kind.

    Raises:
      ValueError: the message names the argument, what it must be and what was given.
    """
    if not callable(logits_fn):
        raise ValueError(f"logits_fn must be a function of a batch; got {_short_text(logits_fn)}")
    if twin is not None and not callable(twin):
        raise ValueError(f"twin must be a function of a batch, or None; got {_short_text(twin)}")
    _check_array("x", x, "an array of inputs (B, ...)")
    _check_array("y", y, "an array of integer labels (B,) or (B, H, W)")
    if not isinstance(threat, Threat):
        raise ValueError(
            f"threat must be a Threat; got {_short_text(threat)}: write Threat('linf', 8 / 255)"
        )
    if not np.any(np.asarray(threat.epsilon) > 0):
        raise ValueError(
            "the threat's epsilon must be above 0, because there is no attack at radius 0; got "
            f"{threat.epsilon}"
        )
    if not isinstance(settings, CheckSettings):
        raise ValueError(f"settings must be CheckSettings, or None; got {_short_text(settings)}")
    check_losses(settings.losses)


def check_losses(losses: Any) -> None:
    """Refuses a value of ``CheckSettings.losses`` that is no tuple of names of losses.

    Raises:
      ValueError: the message lists the names.
    """
    known = isinstance(losses, tuple | list) and all(
        isinstance(name, str) and name in LOSSES for name in losses
    )
    if not known:
        raise ValueError(
            f"CheckSettings.losses must be a tuple of some of {', '.join(LOSSES)}; got {losses!r}"
        )


def check_losses_fit(losses: Iterable[str], classes: int, label_axes: int) -> None:
    """Refuses losses that are not defined for these logits and labels.

    Args:
      losses: the value of ``CheckSettings.losses``.
      classes: number of classes, K.
      label_axes: 0 for class labels, 2 for label maps.

    Raises:
      ValueError: one of them is not; the message says what to use instead.
    """
    for loss in losses:
        try:
            check_loss(loss, classes, label_axes, targeted=False)
        except ValueError as error:
            raise ValueError(f"CheckSettings.losses: {error}") from error


def _check_array(name: str, given: Any, expected: str) -> None:
    try:
        dtype = given.dtype if isinstance(given, jax.Array) else np.asarray(given).dtype
    except ValueError:  # rows of unequal length
        dtype = np.dtype(object)
    # Of numbers of the wrong kind the attacks know the way out.
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_)):
        got = _short_text(given) if not hasattr(given, "dtype") else f"an array of dtype {dtype}"
        raise ValueError(f"{name} must be {expected}; got {got}")


def _short_text(value: Any) -> str:
    """Returns the value if its text is short, else its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return type(value).__name__
