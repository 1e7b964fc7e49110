"""AutoAttack: several parameter-free attacks, of which each example keeps the worst.

Where it departs from Croce & Hein (2020b) and from the authors' code:

1. With fewer than four logits the targeted margin takes the place of the targeted DLR loss, which
   is not defined there.
2. Where an example's logits depend on its companions the batch is one, whole: examples neither
   leave it nor are put together from several attacks, and FAB is left out.
3. Examples that still stand go to the next attack in batches of few sizes, filled with copies; a
   batch is never larger than what was given, since another size may be another model.
4. What each attack hands back is judged again, and so is what is handed back in the end.
5. The deviations of the four attacks are listed in their own files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks._criterion import for_batch, share_reached
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem, check_key, merged
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._survivors import Worst, bucket, padded, placed_like, shards
from steinnorm.attacks.apgd import run_apgd
from steinnorm.attacks.fab import run_fab
from steinnorm.attacks.result import AttackResult, Stage
from steinnorm.attacks.square import run_square
from steinnorm.attacks.threat import Threat

OnStage = Callable[[str, int, int], None]
"""Called with an attack's name, how many examples it has done, and of how many."""


def autoattack(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    steps: int = 100,
    queries: int = 5000,
    target_classes: int = 9,
    batch_size: int = 128,
    batch_dependent: bool | None = None,
    on_progress: OnStage | None = None,
) -> AttackResult:
    """Runs the standard ensemble of Croce & Hein (2020b), with its budgets.

    In this order: APGD on the cross-entropy, APGD on the targeted DLR loss, FAB towards the same
    classes, Square.  Each attack is given the examples that all before it left standing.  With
    fewer than four logits, where the targeted DLR loss is not defined, the targeted margin takes
    its place.

    Where an example's logits change with its companions, examples cannot leave the batch, nor be
    put together from several attacks.  Then the whole of ``x`` is one batch, each attack owns it,
    and the batch with most errors is kept.  FAB, whose smallest distances are per example, is left
    out.

    Args:
      logits_fn: maps a batch to logits (B, K) or (B, 1); as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: the right labels (B,).
      threat: the ball and the box.
      key: randomness of all attacks; None is ``jax.random.key(0)``, the same at every call.
      steps: of APGD and FAB per run.
      queries: of Square.
      target_classes: of APGD and FAB.
      batch_size: examples per batch of a model without batch dependence, the first and the last
        look at them included, so that memory does not grow with their number; it changes the time,
        and which random numbers an example gets.
      batch_dependent: whether an example's logits change with its companions; None to find out.
      on_progress: called after each batch.

    Returns:
      The attacked batch; ``stages`` says what each attack did.

    Raises:
      ValueError: as in ``fgsm``, or a label per pixel (for which there is ``sea``).
      LeftThreatError: an attack left its ball or box.

    Warns:
      BatchDependenceWarning: the model's logits change with the batch, and nobody said so.
    """
    check_key(key)
    key = jax.random.key(0) if key is None else key
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if min(steps, queries, target_classes) < 1:
        raise ValueError(
            "steps, queries and target_classes must be at least 1; got "
            f"{steps}, {queries} and {target_classes}"
        )
    batches, joint = _open(logits_fn, x, y, threat, batch_size, batch_dependent)
    clean = [for_batch(share_reached(p.logits, p.criterion), joint) for p in batches.all()]
    kept = Worst(batches.x, np.concatenate([np.asarray(share) for share in clean]))
    stages, vanished = [], 0
    budgets = _Budgets(steps, queries, target_classes, joint)
    for number, (name, attack) in enumerate(_members(budgets, batches.classes)):
        began, before = time.perf_counter(), _wrong(kept, joint)
        index = np.arange(len(kept.x)) if joint else kept.standing
        zeros = 0
        for place, (chosen, problem) in enumerate(batches.of(index)):
            own = jax.random.fold_in(jax.random.fold_in(key, number), place)
            x_adv, count = attack(problem, own)
            result = problem.result(x_adv, name=name)
            share = for_batch(result.success.astype(x_adv.dtype), joint)
            kept.offer(chosen, result.x_adv, share)
            zeros += min(count, len(chosen))  # padding is counted too
            if on_progress is not None:
                on_progress(name, min((place + 1) * batches.size, len(index)), len(index))
        broken = _wrong(kept, joint) - before
        stages.append(Stage(name, len(index), broken, time.perf_counter() - began))
        vanished = max(vanished, zeros)
    judged = [
        problem.result(placed_like(kept.x[chosen], problem.x))
        for chosen, problem in batches.of(np.arange(len(kept.x)), fill=False)
    ]
    return merged(judged, tuple(stages), batches.given)._replace(zero_gradients=vanished)


class _Batches(NamedTuple):
    """All examples on the host, and the way to bring some of them to the devices.

    Attributes:
      model: as an argument of compiled functions.
      x: inputs (N, ...).
      y: labels (N,).
      threat: the ball and the box.
      size: of a batch.
      classes: K.
      given: the inputs as they came, which may be split over devices.
    """

    model: jax.tree_util.Partial
    x: np.ndarray
    y: np.ndarray
    threat: Threat
    size: int
    classes: int
    given: Any

    def all(self) -> Iterator[Problem]:
        """Goes through all examples, in batches that are not filled up."""
        for _, problem in self.of(np.arange(len(self.x)), fill=False):
            yield problem

    def of(self, index: np.ndarray, *, fill: bool = True) -> Iterator[tuple[np.ndarray, Problem]]:
        """Goes through the examples at some positions.

        Args:
          index: the positions.
          fill: fill the last batch up to one of few sizes, with copies.

        Yields:
          Positions, and the problem of these examples; it may be longer, by copies.
        """
        multiple = shards(self.given)
        for first in range(0, len(index), self.size):
            chosen = rows = index[first : first + self.size]
            if fill:
                rows = padded(chosen, bucket(len(chosen), self.size, multiple))
            x = placed_like(self.x[rows], self.given)
            yield chosen, Problem.unwarned(self.model, x, self.y[rows], self.threat)


def _open(  # noqa: PLR0917
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    threat: Threat,
    batch_size: int,
    batch_dependent: bool | None,
) -> tuple[_Batches, bool]:
    """Checks the arguments on the first batch; and whether the batch is one, as a whole."""
    given = x if isinstance(x, jax.Array) else np.asarray(x)
    labels = np.asarray(y)
    if not given.ndim or labels.shape[:1] != given.shape[:1]:
        raise ValueError(
            "y must be integer labels, one for each of the inputs x; got shapes "
            f"{labels.shape} and {given.shape}"
        )
    count = shards(given)
    size = min(max(batch_size // count, 1) * count, max(len(given), 1))
    rows = np.asarray(given)
    whole = size == len(given)
    first = Problem.of(
        logits_fn, given if whole else placed_like(rows[:size], given), labels[:size], threat
    )
    if first.label_axes:
        raise ValueError("autoattack is for one label per example; for a label per pixel take sea")
    joint = resolve_batch_dependence(first, batch_dependent)
    size = len(rows) if joint else size
    batches = _Batches(first.model, rows, labels, threat, size, first.classes, given)
    return batches, joint


class _Budgets(NamedTuple):
    """The settings of the ensemble's attacks."""

    steps: int
    queries: int
    target_classes: int
    joint: bool


_Member = Callable[[Problem, jax.Array], tuple[jax.Array, int]]


def _members(budgets: _Budgets, classes: int) -> list[tuple[str, _Member]]:
    """Returns names and attacks, the cheapest first."""
    steps, joint = budgets.steps, budgets.joint
    towards = "targeted_dlr" if classes >= 4 else "targeted_margin"

    def apgd_t(problem: Problem, key: jax.Array) -> tuple[jax.Array, int]:
        count = budgets.target_classes
        return run_apgd(problem, key, joint=joint, steps=steps, loss=towards, target_classes=count)

    def fab_t(problem: Problem, key: jax.Array) -> tuple[jax.Array, int]:
        return run_fab(problem, key, steps=steps, target_classes=budgets.target_classes)

    def square(problem: Problem, key: jax.Array) -> tuple[jax.Array, int]:
        # Its schedule is that of 10,000 queries, whatever their number, as in the original.
        queries = budgets.queries
        found = run_square(problem, key, joint=joint, queries=queries, rescale_schedule=False)
        return found, 0

    members: list[tuple[str, _Member]] = [
        ("apgd-ce", lambda problem, key: run_apgd(problem, key, joint=joint, steps=steps)),
        ("apgd-t", apgd_t),
        ("fab-t", fab_t),
        ("square", square),
    ]
    return [member for member in members if not (joint and member[0] == "fab-t")]


def _wrong(kept: Worst, joint: bool) -> int:
    return round(float(kept.share.sum())) if joint else int((kept.share >= 1).sum())
