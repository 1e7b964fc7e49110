"""The numerical precision of a model, so that checks do not mistake rounding for a failure."""

import contextlib
import re

import jax

from steinnorm.attacks._model import LogitsFn, traced_logits

_COARSE = re.compile(r"\b(bf16|f16|f8\w*)\[")


def full_precision_products() -> contextlib.AbstractContextManager:
    """Returns a context in which matrix products use full float32 precision.

    By default accelerators round the factors to fewer bits. On a CPU the context does nothing, so
    that functions are not compiled again.
    """
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def low_precision_dtype(model: LogitsFn, x: jax.Array) -> str | None:
    """Returns a floating dtype below float32 in which the model computes; None if there is none."""
    match = _COARSE.search(str(jax.make_jaxpr(traced_logits)(model, x)))
    return match[1] if match else None
