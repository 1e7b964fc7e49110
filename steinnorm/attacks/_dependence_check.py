"""Whether an example's logits depend on its companions: a quick look, before an attack."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import numpy as np

from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import predict
from steinnorm.attacks._survivors import placed_like
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import BatchDependenceWarning

# Examples keep their places, so that an independent model gives the same logits bit by bit on most
# devices; as a share of the logits' spread, and for rounding as a share of the largest.
_CHANGE, _ROUNDING = 1e-3, 1e-6
_REMEMBERED = 64


class _Seen(NamedTuple):
    """A model that was looked at: its arrays, which must still be the same objects, and the answer.

    What makes logits depend on the batch may be in the numbers: behind a head of zeros nothing
    shows.
    """

    leaves: tuple[Any, ...]
    answer: bool

    def is_of(self, leaves: list[Any]) -> bool:
        """Returns whether these are the arrays that were looked at."""
        return all(seen() is leaf for seen, leaf in zip(self.leaves, leaves, strict=True))


_seen: OrderedDict[Any, _Seen] = OrderedDict()


def resolve_batch_dependence(problem: Problem, given: bool | None, *, quiet: bool = False) -> bool:
    """Returns ``given``, or what ``depends_on_batch`` finds where that is None.

    Warns:
      BatchDependenceWarning: the model's logits change with the batch, and nobody said so.
    """
    if given is not None:
        return bool(given)
    found = _remembered(problem)
    if found and not quiet:
        warn(
            "an example's logits change with its companions (a model in training mode, or with "
            "statistics of the test batch): the whole batch is attacked at once and kept as a "
            "whole. If that is not what you want, put the model into evaluation first: "
            "model.eval() in NNX, use_running_average=True in Linen. If it is, pass "
            "batch_dependent=True; steinnorm.attacks.batch_threats has the other threat models",
            BatchDependenceWarning,
        )
    return found


def _remembered(problem: Problem) -> bool:
    leaves, structure = jax.tree.flatten(problem.model)
    if not leaves:  # a plain function may have changed since
        return depends_on_batch(problem)
    key = (structure, problem.x.shape)
    before = _seen.get(key)
    if before is not None and before.is_of(leaves):
        return before.answer
    answer = depends_on_batch(problem)
    try:
        _seen[key] = _Seen(tuple(map(weakref.ref, leaves)), answer)
    except TypeError:  # a number of Python's cannot be referred to weakly
        return answer
    _seen.move_to_end(key)
    if len(_seen) > _REMEMBERED:
        _seen.popitem(last=False)
    return answer


def depends_on_batch(problem: Problem) -> bool:
    """Returns whether an example's logits change with its companions, of which half become others.

    One more forward pass of the same shape, so that nothing compiles anew. An example alone is
    given a companion; a model that takes no second example has no companions: False.
    ``batch_dependence`` says how large the change is.
    """
    rows = np.asarray(problem.x)
    kept = len(rows) - len(rows) // 2
    # Darker and of less contrast: companions of another mean and variance.
    low = rows.min() if problem.threat.bounds is None else np.asarray(problem.threat.bounds[0])
    others = (low + (rows - low) / 4).astype(rows.dtype)
    if len(rows) == 1:
        batch = np.concatenate([rows, others])
    else:
        batch = np.concatenate([rows[:kept], others[kept:]])
    try:
        there = np.asarray(predict(problem.model, placed_like(batch, problem.x)))[:kept]
    except (TypeError, ValueError):
        if len(rows) > 1:
            raise
        return False
    here = np.asarray(problem.logits)[:kept]
    # A number that all logits share changes no prediction, however large it is.
    spread = float(np.max(here.max(axis=-1) - here.min(axis=-1)))
    allowed = max(_CHANGE * spread, _ROUNDING * float(np.abs(here).max()))
    return not bool(np.abs(there - here).max() <= allowed)
