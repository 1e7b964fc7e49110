"""Descriptions that identify a function: its code and all values that it reads."""

import builtins
import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Members of these are identified by name and version; this package's code is hashed elsewhere.
_LIBRARIES = ("jax", "jaxlib", "numpy", "scipy", "flax", "optax", "chex", "ml_dtypes")
_OURS = "steinnorm.attacks"
_INTROSPECTION = (
    "eval",
    "exec",
    "globals",
    "locals",
    "vars",
    "__import__",
)  # read names that cannot be found in the code
_LITERALS = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
_JITTED = type(jax.jit(abs))


def describe(value: Any) -> str | None:
    """Returns a text that identifies a value, and changes with it; None if that is impossible.

    For a function it covers the code, the defaults, the closure, and every global that it or an
    inner function reads; functions among these are described in the same way. Members of JAX, NumPy
    and other libraries are identified by name and version, other modules by the attributes that are
    read.

    Args:
      value: a function, or anything that functions read.
    """
    try:
        return _Describer().of(value)
    except (_UnknownError, RecursionError):
        return None


def arrays_digest(model: Any) -> str:
    """Returns a hash of the arrays and numbers of a pytree, with their paths; empty without any."""
    digest, has_arrays = hashlib.sha256(), False
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)  # noqa: PLW2901
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            values, has_arrays = np.asarray(leaf), True
            digest.update(f"{jax.tree_util.keystr(path)} {values.shape} {values.dtype}".encode())
            digest.update(values.tobytes())
    return digest.hexdigest() if has_arrays else ""


class _UnknownError(Exception):
    """The value cannot be identified."""


class _Describer:
    """Makes one description; functions that occur again are replaced by their number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def of(self, value: Any) -> str:
        kind = type(value)
        if kind in _LITERALS or isinstance(value, np.dtype | np.generic):
            return f"{kind.__name__} {value!r}"
        if isinstance(value, jax.Array | np.ndarray):
            return _array(value)
        by_name = _by_name(value)
        return self._of_parts(value) if by_name is None else by_name

    def _of_parts(self, value: Any) -> str:
        kind, name = type(value), type(value).__name__
        text = None
        if kind in (tuple, list):
            text = self._joined(name, *value)
        elif kind in (set, frozenset):
            text = _hashed([name, *sorted(self.of(part) for part in value)])
        elif kind is dict:
            text = self._joined("dict", *(part for item in value.items() for part in item))
        elif kind in (functools.partial, jax.tree_util.Partial):
            text = self._joined("partial", value.func, value.args, value.keywords)
        elif isinstance(value, types.CodeType):
            text = self._code(value)
        elif isinstance(value, _JITTED):
            text = self._joined("jit", inspect.unwrap(value, stop=inspect.isfunction))
        elif inspect.isfunction(value):
            text = self._function(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type) and _by_name(kind):
            fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
            text = self._joined("dataclass", kind, *fields)
        if text is None:
            raise _UnknownError
        return text

    def _joined(self, kind: str, *parts: Any) -> str:
        return _hashed([kind, *map(self.of, parts)])

    def _code(self, code: types.CodeType) -> str:
        names = (code.co_names, code.co_varnames, code.co_freevars)
        counts = (code.co_argcount, code.co_kwonlyargcount, code.co_flags)
        table = code.co_exceptiontable
        return self._joined("code", code.co_code, code.co_consts, table, *names, *counts)

    def _function(self, function: types.FunctionType) -> str:
        if id(function) in self._numbers:
            return f"function {self._numbers[id(function)]}"
        self._numbers[id(function)] = len(self._numbers)
        cells = [_content(cell) for cell in function.__closure__ or ()]
        defaults_and_attributes = (function.__defaults__, function.__kwdefaults__, vars(function))
        parts: list[Any] = [
            function.__qualname__,
            function.__code__,
            [list(cell) for cell in cells],
            *defaults_and_attributes,
        ]
        global_values = function.__globals__
        if (
            _version(global_values.get("__name__", "")) is None
        ):  # a library's globals are identified by its version
            globals_read = _globals(function.__code__, global_values)
            parts.append([[name, *values] for name, values in globals_read])
        return self._joined("function", *parts)


def _hashed(text: list[str]) -> str:
    # Hashed, because nested texts would grow exponentially.
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def _content(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # an empty cell
        return ()


def _array(value: Any) -> str:
    if value.dtype == object:
        raise _UnknownError
    return f"{type(value).__name__} {arrays_digest(value)}"


def _globals(
    code: types.CodeType, global_values: dict[str, Any]
) -> Iterator[tuple[str, list[Any]]]:
    """Yields the globals that code reads, including inner functions and classes, by name."""
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.opname == "IMPORT_NAME" and _version(step.argval) is None:
            raise _UnknownError  # the attributes read from that module are unknown
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            continue
        name = step.argval
        if name in global_values:
            yield _resolved(name, global_values[name], steps[place + 1 :])
        elif name in _INTROSPECTION:
            raise _UnknownError
        elif hasattr(builtins, name):
            yield name, []
        elif step.opname == "LOAD_GLOBAL":
            raise _UnknownError  # defined later, if ever
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant, global_values)


def _resolved(name: str, value: Any, following: list[dis.Instruction]) -> tuple[str, list[Any]]:
    """Returns name and value of a global; for modules of no library, those of the attribute."""
    for step in following:
        if not inspect.ismodule(value) or _by_name(value) is not None:
            break
        if step.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not hasattr(value, step.argval):
            raise _UnknownError
        name, value = f"{name}.{step.argval}", getattr(value, step.argval)
    return name, [value]


def _by_name(value: Any) -> str | None:
    """Returns the text for a library's module, function or class; None for all other values."""
    if inspect.ismodule(value):
        version = _version(value.__name__)
        return None if version is None else f"module {value.__name__} {version}"
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    version = _version(module)
    # The lookup must find the value itself, because decorators copy names of other functions.
    resolved: Any = sys.modules.get(module)
    for part in getattr(value, "__qualname__", name).split("."):
        resolved = getattr(resolved, part, None)
    return f"{module}.{name} {version}" if version is not None and resolved is value else None


def _version(module: str) -> str | None:
    """Returns the version of a library; None for other modules."""
    top = module.partition(".")[0]
    if module == _OURS or module.startswith(_OURS + "."):
        return "ours"
    if top in _LIBRARIES:
        return str(getattr(sys.modules.get(top), "__version__", ""))
    return sys.version.split()[0] if top in sys.stdlib_module_names else None
