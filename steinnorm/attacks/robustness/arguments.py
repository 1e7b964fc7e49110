"""Checks of the arguments of ``evaluate_robustness``, before anything is measured."""

import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from steinnorm.attacks import catalogue
from steinnorm.attacks._arguments import as_integer
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.checks.arguments import check_losses
from steinnorm.attacks.robustness.evaluator import Attack, attack_name
from steinnorm.attacks.robustness.names import radius_name
from steinnorm.attacks.robustness.rows import NONE, WORST
from steinnorm.attacks.threat import Threat

_LONGEST_NAME = 100
_MINIMA = {"steps": 1, "restarts": 1, "square_queries": 0, "directions": 0}


class CheckRequest(NamedTuple):
    """The checks that the caller asks for.

    Attributes:
      settings: settings of the checks; None for no checks.
      examples: number of examples.
      twin: the same model without its defence; None if there is none.
    """

    settings: CheckSettings | None
    examples: int
    twin: LogitsFn | None


def parse_seed(given: Any) -> int:
    """Returns the argument ``seed``.

    Args:
      given: an integer of Python or NumPy.

    Raises:
      ValueError: it is not an integer of 64 bits.
    """
    seed = as_integer("seed", given)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must lie in [-2**63, 2**63); got {seed}")
    return seed


def parse_out(given: Any) -> Path | None:
    """Returns the argument ``out``.

    Args:
      given: a path, or None.

    Raises:
      ValueError: it is not a path, or there is a file where a folder is needed.
    """
    if given is None:
        return None
    if not isinstance(given, str | os.PathLike):
        raise ValueError(f"out must be the path of a folder, or None; got {given!r}")
    folder = Path(given)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"out must be a folder, or a path for a new one; {path} is a file")
    return folder


def parse_batch_dependent(given: Any) -> bool | None:
    """Returns the argument ``batch_dependent``.

    Args:
      given: a bool of Python or NumPy, or None.

    Raises:
      ValueError: it is something else.
    """
    if given is None or isinstance(given, bool | np.bool_):
        return None if given is None else bool(given)
    raise ValueError(f"batch_dependent must be True, False or None; got {given!r}")


def parse_checks(checks: Any, examples: Any, twin: Any, attacks: Iterable[Attack]) -> CheckRequest:
    """Returns the checks that the caller asks for.

    Args:
      checks: the argument ``checks``: a bool, None for no checks, or settings.
      examples: the argument ``check_examples``.
      twin: a model, or None.
      attacks: attacks of the evaluation, whose losses are added to those of the settings.

    Raises:
      ValueError: an argument is of the wrong kind or out of range.
    """
    count = as_integer("check_examples", examples, 1)
    if twin is not None and not callable(twin):
        raise ValueError(f"twin must be a function of a batch, or None; got {twin!r}")
    if checks is None or isinstance(checks, bool | np.bool_):
        settings = CheckSettings() if checks else None
    elif isinstance(checks, CheckSettings):
        settings = _parse_settings(checks)
    else:
        raise ValueError(f"checks must be True, False or CheckSettings; got {checks!r}")
    if settings is not None:
        settings = settings.with_losses(
            loss
            for attack in attacks
            if isinstance(attack, catalogue.AttackSettings)
            for loss in attack.gradient_losses
        )
    return CheckRequest(settings, count, twin)


def _parse_settings(given: CheckSettings) -> CheckSettings:
    """Returns the settings with Python numbers, which can be written as JSON."""
    parsed: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        name, value = f"CheckSettings.{field.name}", getattr(given, field.name)
        if field.name in _MINIMA:
            parsed[field.name] = as_integer(name, value, _MINIMA[field.name])
        elif field.name == "losses":
            check_losses(value)
            parsed[field.name] = tuple(value)
        elif field.name == "difference_steps":
            if np.ndim(value) != 1 or not len(value):
                raise ValueError(f"{name} must be a tuple of numbers; got {value!r}")
            parsed[field.name] = tuple(_number(name, step) for step in value)
            if not all(parsed[field.name]):
                raise ValueError(f"{name} must be above 0; got {value!r}")
        else:
            parsed[field.name] = _number(name, value)
    return dataclasses.replace(given, **parsed)


def _number(name: str, given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, not negative; got {given!r}")
    return value


def parse_attacks(given: str | Attack | Iterable[str | Attack]) -> list[Attack]:
    """Returns the argument ``attacks`` as a list of settings and functions.

    Args:
      given: one attack or an iterable: names, settings or functions.

    Raises:
      ValueError: an attack is unknown, or two have the same name.
    """
    single = isinstance(given, str | catalogue.AttackSettings) or callable(given)
    if not single and not isinstance(given, Iterable):
        raise ValueError(
            "attacks must be a name, AttackSettings, a function or an iterable of these; "
            f"got {given!r}"
        )
    requested = [given] if single else list(given)  # type: ignore[arg-type]
    parsed: list[Attack] = []
    for attack in requested:
        if isinstance(attack, str):
            parsed.append(catalogue.by_name(attack))
        elif isinstance(attack, catalogue.AttackSettings) or callable(attack):
            parsed.append(attack)
        else:
            raise ValueError(
                f"attacks must be names, AttackSettings or functions; got {type(attack).__name__}"
            )
    names = [attack_name(attack) for attack in parsed]
    if too_long := [name for name in names if len(name) > _LONGEST_NAME]:
        raise ValueError(
            f"names of attacks are those of files, of at most {_LONGEST_NAME} characters; got "
            f"{too_long[0][:30]}... of {len(too_long[0])}"
        )
    duplicates = sorted({name for name in names if names.count(name) > 1 or name in (NONE, WORST)})
    if duplicates:
        raise ValueError(
            f"every attack needs a name of its own, other than {NONE} and {WORST}; got {duplicates}"
        )
    return parsed


def parse_radii(given: Any, norm: str, bounds: Any) -> list[float]:
    """Returns the argument ``epsilons`` as a list without duplicates.

    Args:
      given: a number, an array without dimensions, or an iterable of these.
      norm: norm of the balls.
      bounds: bounds of the box.

    Raises:
      ValueError: one of them is not a valid radius, there is none, or two are as good as equal.
    """
    single = isinstance(given, int | float) or getattr(given, "ndim", None) == 0
    if not single and (isinstance(given, str) or not isinstance(given, Iterable)):
        raise ValueError(f"epsilons must be a number or an iterable of numbers; got {given!r}")
    requested = [given] if single else list(given)
    if not requested:
        raise ValueError("epsilons must contain at least one radius; got none")
    for epsilon in requested:
        if np.ndim(epsilon):
            raise ValueError(f"epsilons must be numbers; got one of shape {np.shape(epsilon)}")
        Threat(norm, epsilon, bounds)  # raises an error if radius, norm or bounds are invalid
    radii = list(dict.fromkeys(float(epsilon) for epsilon in requested))
    texts = [radius_name(radius) for radius in radii]
    alike = sorted({text for text in texts if texts.count(text) > 1})
    if alike:
        raise ValueError(
            f"epsilons must differ in their first nine digits, which name the files; {alike[0]} "
            "is there more than once"
        )
    return radii
