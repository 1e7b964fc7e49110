"""What the one call is given, checked before anything is measured."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from steinnorm.attacks import catalogue
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.robustness.measure import Attack, name_of
from steinnorm.attacks.robustness.rows import NONE, WORST
from steinnorm.attacks.threat import Threat

_LEAST = {"steps": 1, "restarts": 1, "square_queries": 0, "directions": 0}


class Wanted(NamedTuple):
    """Which checks are made.

    Attributes:
      settings: theirs; None where there are to be none.
      examples: on how many.
      twin: the same model without its defence.
    """

    settings: CheckSettings | None
    examples: int
    twin: LogitsFn | None


def whole(name: str, given: Any, least: int | None = None) -> int:
    """Returns an integer.

    Args:
      name: of the argument.
      given: Python's or NumPy's.
      least: the smallest one that will do.

    Raises:
      ValueError: it is no integer, or too small.
    """
    value = given.item() if np.ndim(given) == 0 and hasattr(given, "item") else given
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer; got {given!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}")
    return value


def checked_dependence(given: Any) -> bool | None:
    """Returns what the caller says of batch dependence.

    Args:
      given: a bool, Python's or NumPy's, or None.

    Raises:
      ValueError: it is something else.
    """
    if given is None or isinstance(given, bool | np.bool_):
        return None if given is None else bool(given)
    raise ValueError(f"batch_dependent must be True, False or None; got {given!r}")


def checked_wanted(checks: Any, examples: Any, twin: Any) -> Wanted:
    """Returns which checks are made.

    Args:
      checks: a bool, None for none, or their settings.
      examples: on how many.
      twin: a model, or None.

    Raises:
      ValueError: one of them is of the wrong kind or out of range.
    """
    count = whole("check_examples", examples, 1)
    if twin is not None and not callable(twin):
        raise ValueError(f"twin must be a function of a batch, or None; got {twin!r}")
    if checks is None or isinstance(checks, bool | np.bool_):
        return Wanted(CheckSettings() if checks else None, count, twin)
    if not isinstance(checks, CheckSettings):
        raise ValueError(f"checks must be True, False or CheckSettings; got {checks!r}")
    return Wanted(_checked_settings(checks), count, twin)


def _checked_settings(given: CheckSettings) -> CheckSettings:
    """The settings with Python's numbers, which JSON has."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        name, value = f"CheckSettings.{field.name}", getattr(given, field.name)
        if field.name in _LEAST:
            found[field.name] = whole(name, value, _LEAST[field.name])
        elif field.name == "difference_steps":
            if np.ndim(value) != 1 or not len(value):
                raise ValueError(f"{name} must be a tuple of numbers; got {value!r}")
            found[field.name] = tuple(_number(name, step) for step in value)
            if not all(found[field.name]):
                raise ValueError(f"{name} must be above 0; got {value!r}")
        else:
            found[field.name] = _number(name, value)
    return dataclasses.replace(given, **found)


def _number(name: str, given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number, not negative; got {given!r}")
    return value


def checked_attacks(given: str | Attack | Iterable[str | Attack]) -> list[Attack]:
    """Returns the attacks that are asked for.

    Args:
      given: one, or several.

    Raises:
      ValueError: there is no such attack, or two have the same name.
    """
    single = isinstance(given, str | catalogue.AttackSettings) or callable(given)
    wanted = [given] if single else list(given)  # type: ignore[arg-type]
    found: list[Attack] = []
    for attack in wanted:
        if isinstance(attack, str):
            found.append(catalogue.by_name(attack))
        elif isinstance(attack, catalogue.AttackSettings) or callable(attack):
            found.append(attack)
        else:
            raise ValueError(
                f"an attack is a name, an AttackSettings or a function; got {type(attack).__name__}"
            )
    names = [name_of(attack) for attack in found]
    doubled = sorted({name for name in names if names.count(name) > 1 or name in (NONE, WORST)})
    if doubled:
        raise ValueError(
            f"every attack needs a name of its own, other than {NONE} and {WORST}; got {doubled}"
        )
    return found


def checked_radii(given: Any, norm: str, bounds: Any) -> list[float]:
    """Returns the radii that are asked for, each once.

    Args:
      given: a number, Python's or an array of no dimension, or an iterable of such.
      norm: of the balls.
      bounds: the box.

    Raises:
      ValueError: one of them is no radius, or there is none.
    """
    single = isinstance(given, int | float) or getattr(given, "ndim", None) == 0
    if not single and (isinstance(given, str) or not isinstance(given, Iterable)):
        raise ValueError(f"epsilons must be a radius or several; got {given!r}")
    wanted = [given] if single else list(given)
    if not wanted:
        raise ValueError("epsilons must name at least one radius")
    for epsilon in wanted:
        if np.ndim(epsilon):
            raise ValueError(f"epsilons must be numbers; got one of shape {np.shape(epsilon)}")
        Threat(norm, epsilon, bounds)  # refuses what is no radius, norm or box
    return list(dict.fromkeys(float(epsilon) for epsilon in wanted))
