"""A hash of what a model computes: its program as JAX traces it, and all values in it."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._model import traced_logits
from steinnorm.attacks._without_gradient import why_no_gradient
from steinnorm.attacks.robustness.describe import arrays_digest, describe

# Addresses and numbers of objects, which differ between two processes.
_ADDRESSES = re.compile(r"0x[0-9a-f]+|\bid=\d+")


def model_digest(model: jax.tree_util.Partial, x: jax.Array) -> str | None:
    """Returns a hash of a model's code, attributes and arrays, the same in every process.

    Logits and gradient are traced, and the operations, their settings and all constants are hashed
    with the model's own arrays and numbers. So it covers whatever the model is made of: a function
    and its closure, a ``Partial``, or an NNX model with its attributes. The gradient counts because
    custom rules of derivatives are no part of the logits. Code that JAX cannot trace, that of
    callbacks, is described as attacks are.

    Args:
      model: the model as a pytree.
      x: inputs of the shape that the model is evaluated on; their values do not count.

    Returns:
      The hash; None if the code of a callback cannot be described.
    """
    traced = [jax.make_jaxpr(traced_logits)(model, x)]
    if not why_no_gradient(model, x):
        traced.append(jax.make_jaxpr(_gradient)(model, x))
    try:
        programs = [_Hasher().of(program) for program in traced]
    except _UnknownCallbackError:
        return None
    return _joined(arrays_digest(model), *programs)


def _gradient(model: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
    return jax.grad(lambda inputs: jnp.sum(traced_logits(model, inputs)))(x)


class _UnknownCallbackError(Exception):
    """The code of a callback cannot be described."""


class _Hasher:
    """Hashes a traced program part by part.

    JAX's text of a program is not enough: it leaves out the values of constants, names objects by
    their addresses, and writes sets in an order that changes with the process.
    """

    def __init__(self) -> None:
        self._hashes: dict[int, str] = {}  # of inner programs, which may be called many times

    def of(self, value: Any) -> str:
        """Returns a text that identifies a value among an operation's settings."""
        if hasattr(value, "jaxpr") and hasattr(value, "consts"):
            text = _joined(self._program(value.jaxpr), *map(self.of, value.consts))
        elif hasattr(value, "eqns"):
            text = self._program(value)
        elif isinstance(value, tuple | list | dict):
            parts = value.items() if isinstance(value, dict) else value
            text = _joined(type(value).__name__, *map(self.of, parts))
        elif isinstance(value, set | frozenset):
            text = _joined("set", *sorted(map(self.of, value)))
        elif hasattr(value, "__array__") and hasattr(value, "dtype"):
            is_array = isinstance(value, jax.Array)  # else NumPy's, or a typed constant of JAX
            text = arrays_digest(value if is_array else np.asarray(value))
        elif callable(value) or hasattr(value, "call_wrapped"):
            # Rules of derivatives: the traced gradient has what they compute.
            text = getattr(value, "__qualname__", type(value).__name__)
        else:
            text = _ADDRESSES.sub("", repr(value))
        return text

    def _program(self, program: Any) -> str:
        if id(program) not in self._hashes:
            self._hashes[id(program)] = self._hash_of(program)
        return self._hashes[id(program)]

    def _hash_of(self, program: Any) -> str:
        numbers: dict[Any, int] = {}

        def named(variable: Any) -> str:
            is_literal = hasattr(variable, "val")
            name = (
                self.of(variable.val) if is_literal else numbers.setdefault(variable, len(numbers))
            )
            return f"{name} {_ADDRESSES.sub('', repr(variable.aval))}"

        parts = [named(variable) for variable in (*program.constvars, *program.invars)]
        for step in program.eqns:
            parts.append(_joined(*map(named, step.invars)))
            parts.append(self._operation(step))
            parts.append(_joined(*map(named, step.outvars)))
        return _joined(*parts, *map(named, program.outvars))

    def _operation(self, step: Any) -> str:
        name = step.primitive.name
        if name.startswith("debug"):  # prints, and changes nothing
            return name
        settings = dict(step.params)
        parts = []
        if "callback" in name:
            callback = settings.pop("callback", None)
            description = describe(getattr(callback, "callback_func", callback))
            if description is None:
                raise _UnknownCallbackError
            parts.append(description)
        return _joined(name, *parts, *(f"{k} {self.of(v)}" for k, v in sorted(settings.items())))


def _joined(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()
