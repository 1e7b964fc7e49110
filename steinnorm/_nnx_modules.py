"""Puts other modules in the place of those that an NNX model holds, however it holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

__all__ = ["map_modules"]


def map_modules(
    visit: Callable[[str, Any], Any],
    value: Any,
    path: str = "",
    done: dict[int, tuple[Any, Any]] | None = None,
) -> Any:
    """Puts ``visit(path, module)`` in the place of every module, wherever it is held.

    Modules may be shared, held by tuples, lists and dictionaries, and hold each other in a circle,
    which is more than ``nnx.recursive_map`` takes.

    Args:
      visit: called once for every module.
      value: what to look into; changed in place, but for tuples, lists and dictionaries.
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
    if isinstance(value, tuple | list):
        items = [
            map_modules(visit, v, f"{path}/{i}".lstrip("/"), done) for i, v in enumerate(value)
        ]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        entries = {
            k: map_modules(visit, v, f"{path}/{k}".lstrip("/"), done) for k, v in value.items()
        }
        return value if all(entries[k] is value[k] for k in value) else type(value)(entries)
    return value


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
