"""Every setting of a configuration as a flag, ``--train.learning-rate 0.05``, by tyro.

Tyro takes names, help, types, ranges and defaults from the dataclasses of the configuration; what
was given is only read here, and checked where ``--set`` is checked too
(``experiments.configs.overrides``).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import docstring_parser
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from experiments.configs import annotations
from experiments.configs.overrides import check_path, read_value
from experiments.configs.schema import GROUPS, ExperimentConfig


def registry() -> ConstructorRegistry:
    """Returns tyro's rules for an ``ExperimentConfig``; it is read as nested dictionaries."""
    rules = ConstructorRegistry()
    rules.struct_rule(_group)
    return rules


def check_names(config: ExperimentConfig, arguments: Sequence[str]) -> None:
    """Checks that every flag with a dot in its name is a setting.

    Args:
      config: the configuration that was chosen.
      arguments: of the command line.

    Raises:
      ConfigError: there is no such setting; the message lists those there are.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and "." in name:
            # Of a bool there is --train.no-augment too.
            *groups, last = name[2:].replace("-", "_").split(".")
            check_path(config, ".".join([*groups, last.removeprefix("no_")]))


def changed(config: ExperimentConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that were given as flags, by path.

    Args:
      config: whose settings were tyro's defaults.
      given: what tyro read.
    """
    return dict(_changes(config, given, ""))


def _changes(group: Any, given: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        before = getattr(group, name)
        if _is_group(before, name):
            yield from _changes(before, value, f"{where}{name}.")
        elif value is not before:  # True is 1 and would pass for it
            yield f"{where}{name}", value


def _is_group(value: Any, name: str) -> bool:
    # The adversary may be absent, so it is given as a whole.
    return dataclasses.is_dataclass(value) and name != "adversary"


def _group(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The rule for a dataclass of settings: a dictionary of its fields."""
    group = info.default
    if not dataclasses.is_dataclass(group) or not type(group).__module__.startswith(__package__):
        return None
    helps = _helps(type(group))
    fields = []
    for name, annotation in annotations.fields_of(type(group)).items():
        value = getattr(group, name)
        if name == "kind" or (isinstance(group, ExperimentConfig) and name not in GROUPS):
            continue
        kind = type(value) if _is_group(value, name) else _leaf(annotation)
        extent = annotations.member_range(annotation)
        text = helps.get(name, "").rstrip(".") + (extent and f"; must be {extent}")
        fields.append(StructFieldSpec(name, kind, value, helptext=text))
    return StructConstructorSpec(dict, tuple(fields))


def _leaf(annotation: Any) -> Any:
    """The type of one flag: tyro only reads it."""
    kind = annotations.take_apart(annotation).kind
    if kind is bool:
        return bool  # --flag and --no-flag
    many = annotations.is_tuple_of_values(annotation)
    spec: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
        nargs="*" if many else 1,
        metavar=annotations.type_of(annotation),
        instance_from_str=functools.partial(_read, many),
        is_instance=lambda value: True,
        str_from_instance=_shown,
    )
    return Annotated[object, spec]


def _read(many: bool, texts: list[str]) -> Any:
    """The value of a flag; a tuple is words (``64 64 32``) or JSON (``[64,64,32]``)."""
    values = tuple(map(read_value, texts))
    alone = len(values) == 1 and (not many or values[0] is None or isinstance(values[0], list))
    value = values[0] if alone else values
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> list[str]:
    """A default as ``--help`` shows it; of attacks their names."""
    if isinstance(value, tuple):
        return [text for member in value for text in _shown(member)] or ["[]"]
    if dataclasses.is_dataclass(value):
        return [str(getattr(value, "name", value))]
    return ["null" if value is None else str(value)]


def _helps(group: type) -> dict[str, str]:
    """What the docstring of a dataclass says of its fields."""
    found = docstring_parser.parse(group.__doc__ or "").params
    return {
        entry.arg_name: " ".join((entry.description or "").replace("``", "`").split())
        for entry in found
    }
