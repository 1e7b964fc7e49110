"""A quick test, before an attack, of whether an example's logits depend on its companions."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import numpy as np

from steinnorm.attacks._competing import without_unreachable
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import predict
from steinnorm.attacks._survivors import place_like
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.errors import BatchDependenceWarning

# Largest change of a logit that still counts as none, among the classes that compete: as a share
# of the logits' spread and, for rounding, of the largest logit. Examples keep their places in the
# batch, so that on most devices the logits of an independent model do not change by a single bit.
_CHANGE, _ROUNDING = 1e-3, 1e-6
_MOST_ANSWERS = 64


class _Remembered(NamedTuple):
    """The answer for one model, which holds as long as its arrays are the same objects.

    The arrays matter, because their values may hide the dependence: the logits of a head of zeros
    depend on nothing.
    """

    leaves: tuple[Any, ...]
    answer: bool

    def holds_for(self, leaves: list[Any]) -> bool:
        """Returns whether these are the arrays of the remembered model."""
        return all(ref() is leaf for ref, leaf in zip(self.leaves, leaves, strict=True))


_answers: OrderedDict[Any, _Remembered] = OrderedDict()


def resolve_batch_dependence(problem: Problem, given: bool | None, *, quiet: bool = False) -> bool:
    """Returns ``given``, or what ``depends_on_batch`` finds where that is None.

    Warns:
      BatchDependenceWarning: the logits depend on the batch, and ``given`` is None.
    """
    if given is not None:
        return bool(given)
    dependent = _remembered_or_tested(problem)
    if dependent and not quiet:
        warn(
            "an example's logits change with its companions (the model is in training mode, or "
            "uses statistics of the test batch): the batch is attacked as a whole, and its result "
            "is kept as a whole. If that is not intended, switch the model to evaluation first: "
            "model.eval() in NNX, use_running_average=True in Linen. If it is, pass "
            "batch_dependent=True; steinnorm.attacks.batch_threats has other threat models",
            BatchDependenceWarning,
        )
    return dependent


def _remembered_or_tested(problem: Problem) -> bool:
    """Returns the remembered answer for the same arrays, else tests the model."""
    leaves, structure = jax.tree.flatten(problem.model)
    if not leaves:  # a plain function may have changed since the last call
        return depends_on_batch(problem)
    key = (structure, problem.x.shape)
    remembered = _answers.get(key)
    if remembered is not None and remembered.holds_for(leaves):
        return remembered.answer
    answer = depends_on_batch(problem)
    try:
        _answers[key] = _Remembered(tuple(map(weakref.ref, leaves)), answer)
    except TypeError:  # Python's numbers have no weak references
        return answer
    _answers.move_to_end(key)
    if len(_answers) > _MOST_ANSWERS:
        _answers.popitem(last=False)
    return answer


def depends_on_batch(problem: Problem) -> bool:
    """Returns whether an example's logits change when half of the batch is replaced.

    It costs one forward pass of the same shape, so that nothing is compiled again. A single example
    is given a companion; the answer is False for a model that accepts no second example.
    ``batch_dependence`` measures how large the change is.
    """
    examples = np.asarray(problem.x)
    kept = len(examples) - len(examples) // 2
    # Darker images of less contrast change the batch's mean and variance.
    low = examples.min() if problem.threat.bounds is None else np.asarray(problem.threat.bounds[0])
    others = (low + (examples - low) / 4).astype(examples.dtype)
    if len(examples) == 1:
        batch = np.concatenate([examples, others])
    else:
        batch = np.concatenate([examples[:kept], others[kept:]])
    try:
        logits_among_others = np.asarray(predict(problem.model, place_like(batch, problem.x)))[
            :kept
        ]
    except (TypeError, ValueError):
        if len(examples) > 1:
            raise
        return False
    clean = np.asarray(problem.logits)[:kept]
    logits, among_others = (
        without_unreachable(z, like=clean) for z in (clean, logits_among_others)
    )
    # The spread, because an offset that all logits share changes no prediction.
    spread = float(np.max(logits.max(axis=-1) - logits.min(axis=-1)))
    allowed = max(_CHANGE * spread, _ROUNDING * float(np.abs(logits).max()))
    return not bool(np.abs(among_others - logits).max() <= allowed)
