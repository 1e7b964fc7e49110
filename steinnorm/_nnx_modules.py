"""Puts other modules in the place of those that an NNX model holds, however it holds them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

__all__ = ["at_path", "map_modules"]


def map_modules(
    visit: Callable[[str, Any], Any],
    value: Any,
    path: str = "",
    done: dict[int, tuple[Any, Any]] | None = None,
) -> Any:
    """Puts ``visit(path, module)`` in the place of every module, wherever it is held.

    Modules may be shared, held by tuples, lists, dictionaries and all that JAX takes for a pytree,
    and hold each other in a circle, which is more than ``nnx.recursive_map`` takes.

    Args:
      visit: called once for every module.
      value: what to look into; modules are changed in place, what else holds them is copied.
      path: where it is held, names and indices with slashes between them.
      done: what has been looked into: by identity the value, so that it is kept alive, and what
        has come in its place.

    Returns:
      ``value``, or what has come in its place.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, nnx.Pytree):
        new = visit(path, value)
        done[id(value)] = (value, new)
        if new is value:
            _map_attributes(visit, value, path, done)
        return new
    parts, put_together = _taken_apart(value)
    new = [map_modules(visit, v, f"{path}/{name}".lstrip("/"), done) for name, v in parts]
    return value if all(a is b for a, (_, b) in zip(new, parts, strict=True)) else put_together(new)


def at_path(value: Any, path: str) -> Any:
    """Returns what is held at a path, as :func:`map_modules` makes them; None if nothing is."""
    for name in filter(None, path.split("/")):
        parts = vars(value).items() if isinstance(value, nnx.Pytree) else _taken_apart(value)[0]
        value = next((held for key, held in parts if str(key) == name), None)
    return value


def _taken_apart(value: Any) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
    """Returns what something that is no module holds, by name, and what puts others in its place.

    Of tuples, lists and dictionaries all classes, and of what JAX has been told of one level.
    """
    if isinstance(value, dict):

        def with_values(new: list[Any]) -> Any:
            changed = copy.copy(value)  # which keeps what else a class of dictionaries holds
            changed.update(zip(value, new, strict=True))
            return changed

        return list(value.items()), with_values
    if isinstance(value, tuple | list):
        kind: Any = type(value)
        put_together = (lambda new: kind(*new)) if hasattr(value, "_fields") else kind
        return list(enumerate(value)), put_together
    parts, structure = jax.tree_util.tree_flatten_with_path(value, lambda v: v is not value)
    if isinstance(value, nnx.Variable | nnx.State) or jax.tree_util.treedef_is_leaf(structure):
        return [], lambda new: value
    named = [(_name(*keys), v) for keys, v in parts]
    return named, functools.partial(jax.tree.unflatten, structure)


def _name(key: Any) -> str:
    """Returns what a pytree calls something that it holds: an index, a key or an attribute."""
    kinds = ("idx", "key", "name")
    return str(next((getattr(key, kind) for kind in kinds if hasattr(key, kind)), key))


def _map_attributes(
    visit: Callable[[str, Any], Any],
    module: nnx.Pytree,
    path: str,
    done: dict[int, tuple[Any, Any]],
) -> None:
    for name, held in list(vars(module).items()):
        if name.startswith("_pytree__"):
            continue
        new = map_modules(visit, held, f"{path}/{name}".lstrip("/"), done)
        if new is held:
            continue
        if isinstance(module, nnx.List):
            module[int(name)] = new
        else:
            setattr(module, name, nnx.data(new))
