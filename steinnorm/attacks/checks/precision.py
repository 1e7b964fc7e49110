"""The numerical precision of a model, so that checks do not mistake rounding for a failure."""

import contextlib
import re

import jax

from steinnorm.attacks._model import LogitsFn, traced_logits

_COARSE = re.compile(r"\b(bf16|f16|f8\w*)\[")
_FULL = ("highest", "float32", "F32_F32_F32")


def full_precision_products() -> contextlib.AbstractContextManager:
    """Returns a context in which matrix products use full float32 precision, unless one is pinned.

    By default accelerators round the factors to fewer bits. Where ``jax_default_matmul_precision``
    is set, it belongs to the model that is evaluated, and stays. On a CPU the context does nothing,
    so that functions are not compiled again.
    """
    if _is_left_to_the_device():
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def precision_note() -> str:
    """Returns what to add to a finding that was made under ``full_precision_products``."""
    if not _is_left_to_the_device():
        return ""
    return (
        "; with products in full float32 precision, which the evaluation leaves to the device: to "
        "check what is evaluated, set jax_default_matmul_precision to 'highest' for both"
    )


def low_precision_dtype(model: LogitsFn, x: jax.Array) -> str | None:
    """Returns the precision below float32 in which the model computes; None if there is none."""
    pinned = _pinned()
    if pinned not in (None, *_FULL) and jax.default_backend() != "cpu":
        return f"products of precision {pinned!r}"
    match = _COARSE.search(str(jax.make_jaxpr(traced_logits)(model, x)))
    return match[1] if match else None


def _is_left_to_the_device() -> bool:
    return jax.default_backend() != "cpu" and _pinned() is None


def _pinned() -> str | None:
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
