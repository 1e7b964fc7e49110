"""Blocks of code in which Linen layers are frozen, also where JAX has traced them before."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Hashable, Iterator

from steinnorm import _checks
from steinnorm._compat import cache_context

__all__ = ["block", "freezes"]

_current: contextvars.ContextVar[tuple[_checks.Paths, bool] | None] = contextvars.ContextVar(
    "steinnorm_frozen", default=None
)
# Makes a function that JAX has traced in a block another one outside; None where JAX cannot.
_in_block = cache_context()
# Blocks whose layers were found: in the next one like it some or all may come from JAX's caches,
# and are not asked for.
_traced: dict[Hashable, None] = {}
_MOST_REMEMBERED = 256


@contextlib.contextmanager
def block(where: _checks.Where, *, affine: bool) -> Iterator[None]:
    """Freezes the layers that are called inside the ``with`` block.

    Args:
      where: which, as of :class:`~steinnorm._checks.Paths`.
      affine: whether their parameters are frozen too.

    Raises:
      ValueError: at the end of the block, if a layer that is meant was not called; of blocks with
        the same ``where`` the first, because later ones may find theirs in JAX's caches.
    """
    if not (where is None or isinstance(where, str) or callable(where)):
        where = tuple(where)
    paths = _checks.Paths(where)
    name: Hashable = (where if _is_hashable(where) else paths, affine)
    token = _current.set((paths, affine))
    try:
        with contextlib.nullcontext() if _in_block is None else _in_block(name):
            yield
    finally:
        _current.reset(token)
    if _in_block is None or name not in _traced:
        paths.check("SteinBatchNorm")
        _traced[name] = None
        if len(_traced) > _MOST_REMEMBERED:
            del _traced[next(iter(_traced))]


def freezes(path: str) -> tuple[bool, bool]:
    """Returns whether the layer at a path is frozen where it is called, and its parameters too."""
    paths, affine = _current.get() or (None, False)
    frozen = paths is not None and paths.holds(path)
    return frozen, frozen and affine


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
