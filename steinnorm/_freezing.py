"""Blocks of code in which Linen layers are frozen, also where JAX has traced them before."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from steinnorm import _checks
from steinnorm._compat import cache_context

__all__ = ["block", "freezes"]


class _Block(NamedTuple):
    name: Hashable
    paths: _checks.Paths
    affine: bool


# From the outermost to the innermost.
_current: contextvars.ContextVar[tuple[_Block, ...]] = contextvars.ContextVar(
    "steinnorm_frozen", default=()
)
# Makes a function that JAX has traced in a block another one outside; None where JAX cannot.
_in_blocks = cache_context()
# What blocks of a name have found so far: in the next one like it some layers or all may come from
# JAX's caches, and are not asked for.
_found: dict[Hashable, _checks.Paths] = {}
_found_lock = threading.Lock()
_MOST_REMEMBERED = 256


@contextlib.contextmanager
def block(where: _checks.Where, *, affine: bool) -> Iterator[None]:
    """Freezes the layers that are called inside the ``with`` block, beside those of blocks around.

    Args:
      where: which, as of :class:`~steinnorm._checks.Paths`.
      affine: whether their parameters are frozen too.

    Raises:
      ValueError: at the end of the block, if a layer that is meant was called neither in it nor in
        an earlier one with the same ``where``, from which JAX's caches may have it.
    """
    mine = _block_of(where, affine)
    blocks = (*_current.get(), mine)
    token = _current.set(blocks)
    try:
        with contextlib.nullcontext() if _in_blocks is None else _in_blocks(_names(blocks)):
            yield
    finally:
        _current.reset(token)
    mine.paths.check("SteinBatchNorm")


def freezes(path: str) -> tuple[bool, bool]:
    """Returns whether the layer at a path is frozen where it is called, and its parameters too.

    Raises:
      RuntimeError: JAX's caches would mistake what is traced here for what is traced elsewhere.
    """
    blocks = _current.get()
    # Tasks and copied contexts take Python's variable into places where JAX's is another.
    if _in_blocks is not None and _in_blocks.value != _names(blocks):
        raise RuntimeError(
            "a layer is called in another thread or task than the block that freezes layers was "
            "entered in: enter it where the layer is called, and leave it before an await."
        )
    # All are asked, although one is enough, because each checks what its own paths name.
    holding = [block for block in blocks if block.paths.holds(path)]
    return bool(holding), any(block.affine for block in holding)


def _block_of(where: _checks.Where, affine: bool) -> _Block:
    if not (where is None or isinstance(where, str) or callable(where)):
        where = tuple(where)
    paths = _checks.Paths(where)
    if _in_blocks is None or not _is_hashable(where):
        return _Block((paths, affine), paths, affine)
    name = (where, affine)
    with _found_lock:
        paths = _found.pop(name, paths)
        _found[name] = paths  # the latest is the last to be forgotten
        if len(_found) > _MOST_REMEMBERED:
            del _found[next(iter(_found))]
    return _Block(name, paths, affine)


def _names(blocks: tuple[_Block, ...]) -> frozenset[Hashable] | None:
    """Returns what JAX tells traces apart by: a set, because the order makes no difference."""
    return frozenset(block.name for block in blocks) or None


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
