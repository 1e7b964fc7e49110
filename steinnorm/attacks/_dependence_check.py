"""A quick test, before an attack, of whether an example's logits depend on its companions.

Or on its place in the batch, which changes when broken examples leave. Companions are exchanged
three times, each time in a batch of the same shape, so that nothing is compiled again:

1. the second half of the batch, looking at the first: statistics of the batch, later examples;
2. the first half, looking at the second: earlier examples, or the first one as a reference;
3. in an irregular pattern of single examples, after all have moved to other places: groups of the
   batch, neighbours, and noise that is drawn for the batch from one key.
"""

from __future__ import annotations

import dataclasses
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
from steinnorm.attacks.dependence import ROUNDING
from steinnorm.attacks.errors import BatchDependenceWarning
from steinnorm.attacks.random_models import one_draw_for_batches


class _Allowed(NamedTuple):
    """Largest change of a logit that still counts as none, among the classes that compete.

    Attributes:
      change: as a share of the logits' spread.
      rounding: as a share of the largest logit, for rounding.
    """

    change: float
    rounding: float


# On most devices the logits of an independent model do not change by a single bit in their place.
_IN_PLACE = _Allowed(1e-3, 1e-6)
_ELSEWHERE = _Allowed(ROUNDING, 1e-5)
_MOST_ANSWERS = 64


class _Findings(NamedTuple):
    """What the exchanges found.

    Attributes:
      dependent: whether an example's logits changed with its companions or its place.
      telling: whether most examples have other logits than their neighbours, and than what they
        were exchanged for. Otherwise, as in a batch of black images, a dependence need not show.
    """

    dependent: bool
    telling: bool


class _Remembered(NamedTuple):
    """The answer for one model, which holds as long as its arrays are the same objects.

    The arrays matter, because their values may hide the dependence: the logits of a head of zeros
    depend on nothing. So may the examples; an answer that they may have hidden is not kept.
    """

    leaves: tuple[Any, ...]
    answer: bool

    def holds_for(self, leaves: list[Any]) -> bool:
        """Returns whether these are the arrays of the remembered model."""
        return all(ref() is leaf for ref, leaf in zip(self.leaves, leaves, strict=True))


_answers: OrderedDict[Any, _Remembered] = OrderedDict()


def resolve_batch_dependence(problem: Problem, given: bool | None, *, quiet: bool = False) -> bool:
    """Returns ``given``, or what ``depends_on_batch`` finds where that is None.

    Raises:
      ValueError: the model is a mean over randomness in which each example is alone, and its
        logits depend on companions; ``given`` is None.

    Warns:
      BatchDependenceWarning: the logits depend on the batch, and ``given`` is None.
    """
    if given is not None:
        return bool(given)
    dependent = _remembered_or_tested(problem)
    if dependent and not quiet:
        warn(
            "an example's logits change with its companions or its place in the batch (the model "
            "is in training mode, uses statistics of the test batch, or draws noise for the whole "
            "batch from one key): the batch is attacked as a whole, and its result is kept as a "
            "whole. If that is not intended, switch the model to evaluation first: model.eval() in "
            "NNX, use_running_average=True in Linen; give noise to expected_over_randomness. If it "
            "is, pass batch_dependent=True; steinnorm.attacks.batch_threats has other threat "
            "models",
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
    _refuse_lonely_examples(problem)
    found = _exchange_companions(problem)
    if not (found.dependent or found.telling):
        return False
    try:
        _answers[key] = _Remembered(tuple(map(weakref.ref, leaves)), found.dependent)
    except TypeError:  # Python's numbers have no weak references
        return found.dependent
    _answers.move_to_end(key)
    if len(_answers) > _MOST_ANSWERS:
        _answers.popitem(last=False)
    return found.dependent


def depends_on_batch(problem: Problem) -> bool:
    """Returns whether an example's logits change with its companions or its place in the batch.

    It costs up to three forward passes of the same shape. A single example is given a companion;
    the answer is False for a model that accepts no second example. ``batch_dependence`` measures
    how large the change is.
    """
    return _exchange_companions(problem).dependent


def _refuse_lonely_examples(problem: Problem) -> None:
    """Refuses a mean by example of a random model that needs whole batches."""
    whole = one_draw_for_batches(problem.model)
    if whole is None:
        return
    # In their places, because the draws differ from place to place.
    if _exchange_companions(dataclasses.replace(problem, model=whole), move=False).dependent:
        raise ValueError(
            "expected_over_randomness gives logits_fn each example alone, but its logits change "
            "with the other examples of a batch, so that this would be another model: pass "
            "by_example=False, or switch the model to evaluation"
        )


def _exchange_companions(problem: Problem, *, move: bool = True) -> _Findings:
    if len(problem.x) == 1:
        return _with_a_companion(problem)
    examples, clean = np.asarray(problem.x), np.asarray(problem.logits)
    others, places = _others(problem), np.arange(len(examples))
    second_half = places >= len(places) - len(places) // 2
    moved = np.roll(places, min(len(places) // 2 + 1, len(places) - 1))
    differences = [_changes(clean, np.roll(clean, 1, axis=0), _IN_PLACE)]
    for order, exchanged, allowed in (
        (places, second_half, _IN_PLACE),
        (places, ~second_half, _IN_PLACE),
        (moved if move else places, _irregular(len(places)), _ELSEWHERE if move else _IN_PLACE),
    ):
        batch, kept = examples[order], ~exchanged
        batch[exchanged] = others[order][exchanged]
        before = clean[order]
        after = np.asarray(predict(problem.model, place_like(batch, problem.x)))
        if _changes(before[kept], after[kept], allowed).any():
            return _Findings(dependent=True, telling=True)
        differences.append(_changes(before[exchanged], after[exchanged], allowed))
    telling = all(found.mean() > 0.5 for found in differences)
    return _Findings(dependent=False, telling=telling)


def _with_a_companion(problem: Problem) -> _Findings:
    """Returns whether the logits of a batch of one example change with a second example."""
    batch = np.concatenate([np.asarray(problem.x), _others(problem)])
    try:
        after = np.asarray(predict(problem.model, place_like(batch, problem.x)))
    except (TypeError, ValueError):
        return _Findings(dependent=False, telling=True)
    before = np.asarray(problem.logits)
    dependent = bool(_changes(before, after[:1], _IN_PLACE).any())
    own_change = bool(_changes(before, after[1:], _IN_PLACE).any())
    return _Findings(dependent, telling=dependent or own_change)


def _others(problem: Problem) -> np.ndarray:
    """Returns a dark negative of every example, which changes the batch's mean and variance.

    Black images become grey. The negative is squared, because a model that standardises each image
    does not see another brightness or contrast.
    """
    examples, bounds = np.asarray(problem.x), problem.threat.bounds
    low, width = examples.min(), np.asarray(np.inf)
    if bounds is not None:
        low, high = (np.asarray(bound, examples.dtype) for bound in bounds)
        width = high - low
    span = np.minimum(examples.max() - low, width)
    # All is black: as wide as the box, if there is one.
    span = np.where(span > 0, span, np.where(np.isfinite(width), width, 1))
    others = low + span * np.square(1 - (examples - low) / span) / 4
    return others.astype(examples.dtype)


def _irregular(count: int) -> np.ndarray:
    """Returns about half of the places of a batch, as a mask (B,), the first one among them.

    It is the Thue-Morse sequence: every group of two, four, ... neighbours is divided by it, with
    the first of some groups and the last of others on either side.
    """
    return np.array([bin(place).count("1") % 2 == 0 for place in range(count)])


def _changes(before: np.ndarray, after: np.ndarray, allowed: _Allowed) -> np.ndarray:
    """Returns for which examples a logit changes by more than is allowed, (B,) bool."""
    before, after = (without_unreachable(z, like=before) for z in (before, after))
    # The spread, because an offset that all logits share changes no prediction.
    spread = float(np.max(before.max(axis=-1) - before.min(axis=-1)))
    largest = max(allowed.change * spread, allowed.rounding * float(np.abs(before).max()))
    change = np.abs(after - before).reshape(len(before), -1).max(axis=1)
    return ~(change <= largest)  # NaN counts as a change
