"""What the annotations of the settings say: type and range, in words and for ``--help``."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import annotated_types

OUT_OF_RANGE = (
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "finite_number",
)
"""Pydantic's names for errors of numbers of the right type."""


class Annotation(NamedTuple):
    """An annotation, taken apart.

    Attributes:
      kind: without ``Annotated`` and ``None``: a type, a union, a ``Literal``, a ``tuple[...]``.
      optional: whether None is allowed.
      metadata: of ``Annotated``.
    """

    kind: Any
    optional: bool
    metadata: tuple[Any, ...]


def take_apart(annotation: Any) -> Annotation:
    """Returns type, optionality and metadata of an annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind, optional, metadata = take_apart(arguments[0])
        return Annotation(kind, optional, (*metadata, *arguments[1:]))
    if origin in (typing.Union, types.UnionType) and types.NoneType in arguments:
        # Subscribing with a tuple of one member gives that member.
        rest: Any = typing.Union[tuple(a for a in arguments if a is not types.NoneType)]  # noqa: UP007
        kind, _, metadata = take_apart(rest)
        return Annotation(kind, True, metadata)
    return Annotation(annotation, False, ())


def fields_of(group: Any) -> dict[str, Any]:
    """Returns the annotations of a dataclass by name."""
    hints = typing.get_type_hints(group, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def range_of(annotation: Any) -> str:
    """Returns the range of a number in words, as ``in [0, 1)`` or ``at least 1``; "" for none."""
    low = high = ""
    for limit in take_apart(annotation).metadata:
        match limit:
            case annotated_types.Ge():
                low = f"[{limit.ge:g}"
            case annotated_types.Gt():
                low = f"({limit.gt:g}"
            case annotated_types.Le():
                high = f"{limit.le:g}]"
            case annotated_types.Lt():
                high = f"{limit.lt:g})"
    if low and high:
        return f"in {low}, {high}"
    if low:
        return f"{'at least' if low[0] == '[' else 'above'} {low[1:]}"
    return high and f"{'at most' if high[-1] == ']' else 'below'} {high[:-1]}"


def type_of(annotation: Any) -> str:
    """Returns the type of a setting as ``--help`` shows it: ``INT``, ``FLOAT...``, ``{a,b}``."""
    kind, optional, _ = take_apart(annotation)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        text = "{" + ",".join(map(str, arguments)) + "}"
    elif is_tuple_of_values(kind):
        repeated = arguments[-1] is Ellipsis
        text = " ".join(map(type_of, arguments[:1] if repeated else arguments))
        text += " ..." if repeated else ""
    elif isinstance(kind, type) and kind in (int, float, str, bool):
        text = "TEXT" if kind is str else kind.__name__.upper()
    else:
        text = "JSON"
    return f"{text}|null" if optional else text


def is_tuple_of_values(annotation: Any) -> bool:
    """Returns whether a setting is a tuple, and not one of groups of settings."""
    kind = take_apart(annotation).kind
    members = typing.get_args(kind)
    return typing.get_origin(kind) is tuple and not any(map(dataclasses.is_dataclass, members))


def member_range(annotation: Any) -> str:
    """Returns the range of a number, or of the numbers in a tuple; "" for none."""
    if is_tuple_of_values(annotation):
        return range_of(typing.get_args(take_apart(annotation).kind)[0])
    return range_of(annotation)


def locate(group: Any, location: Sequence[str | int]) -> tuple[tuple[str | int, ...], Any]:
    """Finds the setting that an error of pydantic is about.

    Args:
      group: the dataclass that was validated.
      location: ``loc`` of the error; it has the tags of unions too.

    Returns:
      The names of the setting from the outside in, and its annotation; None for that where the
      location is of no setting.
    """
    names: list[str | int] = []
    annotation: Any = group
    for part in location:
        kind = take_apart(annotation).kind
        if dataclasses.is_dataclass(kind):
            names.append(part)
            annotation = fields_of(kind).get(str(part))
        elif typing.get_origin(kind) is tuple:
            names.append(part)
            annotation = typing.get_args(kind)[0]
        elif typing.get_args(kind):  # a union: the part is its member's tag
            annotation = next(m for m in typing.get_args(kind) if m.kind == part)
        else:
            names.append(part)
            annotation = None
    return tuple(names), annotation
