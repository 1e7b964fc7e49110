"""How exactly a model computes, where a check would take rounding for a finding."""

import contextlib
import re

import jax

from steinnorm.attacks._model import LogitsFn, traced_logits

_COARSE = re.compile(r"\b(bf16|f16|f8\w*)\[")


def exact_products() -> contextlib.AbstractContextManager:
    """Products in full float32: accelerators round their factors to 11 bits unless they are told.

    On a CPU nothing is to be told, and what is compiled serves inside and outside.
    """
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def coarse_dtype(model: LogitsFn, x: jax.Array) -> str | None:
    """The floating type below float32 in which the model computes something; None if in none."""
    found = _COARSE.search(str(jax.make_jaxpr(traced_logits)(model, x)))
    return found[1] if found else None
