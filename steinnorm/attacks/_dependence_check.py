"""Whether an example's logits depend on its companions: a quick look, before an attack."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import jax
import numpy as np

from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import predict
from steinnorm.attacks._survivors import placed_like
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import BatchDependenceWarning

_ROUNDING = 0.01  # of the largest logit; bfloat16 may change logits by 0.4 % with their place
_REMEMBERED = 64
# Structure and shapes of models and inputs -> whether logits depend on the batch. For models whose
# arrays are arguments: what makes them depend on it, such as a training mode, is in the structure.
_found: OrderedDict[Any, bool] = OrderedDict()


def resolve_batch_dependence(problem: Problem, given: bool | None, *, quiet: bool = False) -> bool:
    """Returns ``given``, or what ``depends_on_batch`` finds where that is None.

    Warns:
      BatchDependenceWarning: the model's logits change with the batch, and nobody said so.
    """
    if given is not None:
        return given
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
    shapes = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves if hasattr(leaf, "dtype"))
    key = (structure, shapes, problem.x.shape)
    if key not in _found:
        _found[key] = depends_on_batch(problem)
        if len(_found) > _REMEMBERED:
            _found.popitem(last=False)
    return _found[key]


def depends_on_batch(problem: Problem) -> bool:
    """Returns whether an example's logits change with its companions, of which half become others.

    One more forward pass of the same shape, so that nothing compiles anew. An example alone is
    given a companion; a model that takes no second example has no companions: False. So is what
    changes logits by less than 1 % of the largest, which bfloat16 may do by itself;
    ``batch_dependence`` measures smaller changes.
    """
    rows = np.asarray(problem.x)
    kept = len(rows) - len(rows) // 2
    # Negatives: unlike other images of the batch, they cannot have its statistics by chance.
    low, high = (rows.min(), rows.max()) if problem.threat.bounds is None else problem.threat.bounds
    negatives = (np.asarray(low) + np.asarray(high) - rows).astype(rows.dtype)
    if len(rows) == 1:
        batch = np.concatenate([rows, negatives])
    else:
        batch = np.concatenate([rows[:kept], negatives[: len(rows) // 2]])
    try:
        there = np.asarray(predict(problem.model, placed_like(batch, problem.x)))[:kept]
    except (TypeError, ValueError):
        if len(rows) > 1:
            raise
        return False
    here = np.asarray(problem.logits)[:kept]
    scale = max(float(np.abs(here).max()), 1e-6)
    return not bool(np.abs(there - here).max() <= _ROUNDING * scale)
