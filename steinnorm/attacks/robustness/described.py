"""Functions in words that another function does not share: code, and all values that it reads."""

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

# What these hold is told by their names and versions; our own code is hashed elsewhere.
_LIBRARIES = ("jax", "jaxlib", "numpy", "scipy", "flax", "optax", "chex", "ml_dtypes")
_OURS = "steinnorm.attacks"
_HIDING = ("eval", "exec", "globals", "locals", "vars", "__import__")  # nobody sees what they read
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
_JITTED = type(jax.jit(abs))


def described(value: Any) -> str | None:
    """Returns a value in words that another value does not share; None where there are none.

    Of a function these are its code, its defaults, what it closes over, and every global that it
    or a function within it reads, functions in the same way.  Modules and objects of JAX, NumPy and
    other libraries are told by name and version; of other modules the attributes that are read.

    Args:
      value: a function, or anything that functions read.
    """
    try:
        return _Words().of(value)
    except (_UnknownError, RecursionError):
        return None


def arrays_digest(model: Any) -> str:
    """Returns a hash of the arrays of a pytree, and of where they stand; empty without any."""
    digest, some = hashlib.sha256(), False
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)  # noqa: PLW2901
        if isinstance(leaf, jax.Array | np.ndarray):
            values, some = np.asarray(leaf), True
            digest.update(f"{jax.tree_util.keystr(path)} {values.shape} {values.dtype}".encode())
            digest.update(values.tobytes())
    return digest.hexdigest() if some else ""


class _UnknownError(Exception):
    """Nobody can tell this value from another one."""


class _Words:
    """One description.  A function that was described already is told by its number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def of(self, value: Any) -> str:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, np.dtype | np.generic):
            return f"{kind.__name__} {value!r}"
        if isinstance(value, jax.Array | np.ndarray):
            return _array(value)
        by_name = _by_name(value)
        return self._of_parts(value) if by_name is None else by_name

    def _of_parts(self, value: Any) -> str:
        kind, name = type(value), type(value).__name__
        words = None
        if kind in (tuple, list):
            words = self._joined(name, *value)
        elif kind in (set, frozenset):
            words = _hashed([name, *sorted(self.of(part) for part in value)])
        elif kind is dict:
            words = self._joined("dict", *(part for item in value.items() for part in item))
        elif kind in (functools.partial, jax.tree_util.Partial):
            words = self._joined("partial", value.func, value.args, value.keywords)
        elif isinstance(value, types.CodeType):
            words = self._code(value)
        elif isinstance(value, _JITTED):
            words = self._joined("jit", inspect.unwrap(value, stop=inspect.isfunction))
        elif inspect.isfunction(value):
            words = self._function(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type) and _by_name(kind):
            fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
            words = self._joined("dataclass", kind, *fields)
        if words is None:
            raise _UnknownError
        return words

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
        more = (function.__defaults__, function.__kwdefaults__, vars(function))
        parts: list[Any] = [
            function.__qualname__,
            function.__code__,
            [list(cell) for cell in cells],
            *more,
        ]
        where = function.__globals__
        if _version(where.get("__name__", "")) is None:  # a library's globals have its version
            read = _globals(function.__code__, where)
            parts.append([[name, *values] for name, values in read])
        return self._joined("function", *parts)


def _hashed(words: list[str]) -> str:
    # What is nested in texts of texts would grow without bounds.
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _content(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not filled yet
        return ()


def _array(value: Any) -> str:
    if value.dtype == object:
        raise _UnknownError
    return f"{type(value).__name__} {arrays_digest(value)}"


def _globals(code: types.CodeType, where: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The globals that code reads, by name, those of functions and classes within it included."""
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        if step.opname == "IMPORT_NAME" and _version(step.argval) is None:
            raise _UnknownError  # what is read of that module is not followed
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            continue
        name = step.argval
        if name in where:
            yield _followed(name, where[name], steps[place + 1 :])
        elif name in _HIDING:
            raise _UnknownError
        elif hasattr(builtins, name):
            yield name, []
        elif step.opname == "LOAD_GLOBAL":
            raise _UnknownError  # defined later, if ever
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant, where)


def _followed(name: str, value: Any, behind: list[dis.Instruction]) -> tuple[str, list[Any]]:
    """What is read of a global: of a module that is no library's, the attribute that is taken."""
    for step in behind:
        if not inspect.ismodule(value) or _by_name(value) is not None:
            break
        if step.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not hasattr(value, step.argval):
            raise _UnknownError
        name, value = f"{name}.{step.argval}", getattr(value, step.argval)
    return name, [value]


def _by_name(value: Any) -> str | None:
    """A library's module, function or class in words; None of all else."""
    if inspect.ismodule(value):
        version = _version(value.__name__)
        return None if version is None else f"module {value.__name__} {version}"
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    version = _version(module)
    # Only what is found there: a library's decorator gives its function the name of another one.
    found: Any = sys.modules.get(module)
    for part in getattr(value, "__qualname__", name).split("."):
        found = getattr(found, part, None)
    return f"{module}.{name} {version}" if version is not None and found is value else None


def _version(module: str) -> str | None:
    """The version of a library; None of a module that is no library's."""
    top = module.partition(".")[0]
    if module == _OURS or module.startswith(_OURS + "."):
        return "ours"
    if top in _LIBRARIES:
        return str(getattr(sys.modules.get(top), "__version__", ""))
    return sys.version.split()[0] if top in sys.stdlib_module_names else None
