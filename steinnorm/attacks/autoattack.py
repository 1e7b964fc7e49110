"""AutoAttack (Croce & Hein 2020b): an ensemble of parameter-free attacks.

Differences from the paper and from the authors' code:

1. With fewer than four logits the targeted margin replaces the targeted DLR loss, which is not
   defined there.
2. If an example's logits depend on its companions, the batch stays whole: no example leaves it,
   mixtures of attacks are tried as batches of their own, and FAB is left out.
3. Unbroken examples go to the next attack in batches of a few sizes, padded with copies. No batch
   is larger than the given one, because the model may behave differently at another size.
4. The result of each attack, and the final one, are evaluated again.
5. The differences of the four attacks are listed in their own modules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks._arguments import check_counts, check_key, refuse_traced
from steinnorm.attacks._criterion import mean_if_joint
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem, merged
from steinnorm.attacks._mixtures import Mixtures
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._survivors import (
    WorstInputs,
    pad_indices,
    padded_size,
    place_like,
    shard_count,
)
from steinnorm.attacks.apgd import run_apgd
from steinnorm.attacks.fab import run_fab
from steinnorm.attacks.result import AttackResult, Stage
from steinnorm.attacks.square import run_square
from steinnorm.attacks.threat import Threat

OnStage = Callable[[str, int, int], None]
"""Called with an attack's name, the number of examples that it has attacked, and of all."""


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

    The order is APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB, Square.
    Each attack gets the examples that no earlier one has broken. With fewer than four logits the
    targeted margin replaces the targeted DLR loss, which is not defined there.

    If an example's logits depend on its companions, examples cannot leave the batch. Then ``x`` is
    one batch, which each attack may change as a whole. The worst batch is kept: that of an attack,
    or a mixture of several, which takes each example from an attack that breaks it and is evaluated
    as a batch of its own. FAB, which minimises distances per example, is left out.

    Args:
      logits_fn: maps a batch to logits (B, K) or (B, 1); as in ``fgsm``.
      x: inputs (B, ...), floating, within ``threat.bounds``.
      y: true labels (B,).
      threat: ball and box.
      key: random key of all attacks; None means ``jax.random.key(0)``.
      steps: gradient steps per run of APGD and FAB.
      queries: forward passes of Square.
      target_classes: number of likeliest wrong classes for APGD and FAB.
      batch_size: examples per batch, which bounds the memory; not used if logits depend on the
        batch. It changes the time and which random numbers an example gets.
      batch_dependent: whether an example's logits depend on the rest of the batch; None to test it.
      on_progress: called after each batch.

    Returns:
      The attacked batch and its success; ``stages`` has one entry per attack.

    Raises:
      ValueError: as in ``fgsm``; or the labels are label maps (use ``sea``), or settings are out of
        range.
      LeftThreatError: an attack left its ball or box.

    Warns:
      BatchDependenceWarning, RadiusWarning, ProbabilitiesWarning, RandomLogitsWarning: as in
        ``fgsm``.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, autoattack
      >>> x, y = jnp.array([[0.75, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
      >>> threat = Threat("linf", 0.25)
      >>> result = autoattack(lambda x: 4 * x, x, y, threat=threat, steps=5, queries=10)
      >>> result.success, [stage.name for stage in result.stages]
      (Array([ True, False], dtype=bool), ['apgd-ce', 'apgd-t', 'fab-t', 'square'])
    """
    check_key(key)
    key = jax.random.key(0) if key is None else key
    check_counts(batch_size=batch_size, steps=steps, queries=queries, target_classes=target_classes)
    refuse_traced(x=x, y=y)
    batches, joint = _make_batches(logits_fn, x, y, threat, batch_size, batch_dependent)
    clean = [p.success_share(joint=joint) for p in batches.all()]
    worst = WorstInputs(batches.x, np.concatenate([np.asarray(share) for share in clean]))
    mixtures = Mixtures(next(batches.all())) if joint and len(batches.x) else None
    stages, zero_gradients = [], 0
    budgets = _Budgets(steps, queries, target_classes, joint)
    for number, (name, attack) in enumerate(_members(budgets, batches.classes)):
        start_time, broken_before = time.perf_counter(), _count_broken(worst, joint)
        positions = np.arange(len(worst.x)) if joint else worst.unbroken
        count_of_zeros = 0
        for batch_number, (chosen, problem) in enumerate(batches.of(positions)):
            own_key = jax.random.fold_in(jax.random.fold_in(key, number), batch_number)
            x_adv, count = attack(problem, own_key)
            result = problem.result(x_adv, name=name)
            share = mean_if_joint(result.success.astype(x_adv.dtype), joint)
            worst.update(chosen, result.x_adv, share)
            if mixtures is not None:
                worst.update(chosen, *mixtures.add(result.x_adv))
            count_of_zeros += min(count, len(chosen))  # the count includes padding
            if on_progress is not None:
                on_progress(
                    name, min((batch_number + 1) * batches.size, len(positions)), len(positions)
                )
        broken = _count_broken(worst, joint) - broken_before
        stages.append(Stage(name, len(positions), broken, time.perf_counter() - start_time))
        zero_gradients = max(zero_gradients, count_of_zeros)
    results = [
        problem.result(place_like(worst.x[chosen], problem.x))
        for chosen, problem in batches.of(np.arange(len(worst.x)), fill=False)
    ]
    return merged(results, tuple(stages), batches.given)._replace(zero_gradients=zero_gradients)


class _Batches(NamedTuple):
    """All examples as NumPy arrays, which are placed on the devices batch by batch.

    Attributes:
      model: function from inputs to logits, as a pytree.
      x: inputs (N, ...).
      y: labels (N,).
      threat: ball and box.
      size: examples per batch.
      classes: number of classes, K.
      given: the original inputs, which may be divided among devices.
    """

    model: jax.tree_util.Partial
    x: np.ndarray
    y: np.ndarray
    threat: Threat
    size: int
    classes: int
    given: Any

    def all(self) -> Iterator[Problem]:
        """Yields all examples, in batches without padding."""
        for _, problem in self.of(np.arange(len(self.x)), fill=False):
            yield problem

    def of(
        self, positions: np.ndarray, *, fill: bool = True
    ) -> Iterator[tuple[np.ndarray, Problem]]:
        """Yields the examples at some positions, batch by batch.

        Args:
          positions: positions of the examples.
          fill: whether the last batch is padded with copies to one of a few sizes.

        Yields:
          Positions, and the problem of these examples, which may be longer by padding.
        """
        multiple = shard_count(self.given)
        for first in range(0, len(positions), self.size):
            chosen = examples = positions[first : first + self.size]
            if fill:
                examples = pad_indices(chosen, padded_size(len(chosen), self.size, multiple))
            x = place_like(self.x[examples], self.given)
            yield chosen, Problem.without_warnings(self.model, x, self.y[examples], self.threat)


def _make_batches(  # noqa: PLR0917
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    threat: Threat,
    batch_size: int,
    batch_dependent: bool | None,
) -> tuple[_Batches, bool]:
    """Checks the arguments on the first batch; also returns whether logits depend on the batch."""
    given = x if isinstance(x, jax.Array) else np.asarray(x)
    labels = np.asarray(y)
    if not given.ndim or labels.shape[:1] != given.shape[:1]:
        raise ValueError(
            "y must be integer labels, one for each of the inputs x; got shapes "
            f"{labels.shape} of y and {given.shape} of x"
        )
    count = shard_count(given)
    size = min(max(batch_size // count, 1) * count, max(len(given), 1))
    examples = np.asarray(given)
    single_batch = size == len(given)
    first = Problem.of(
        logits_fn,
        given if single_batch else place_like(examples[:size], given),
        labels[:size],
        threat,
    )
    if first.label_axes:
        raise ValueError("autoattack is for one label per example; for a label per pixel use sea")
    joint = resolve_batch_dependence(first, batch_dependent)
    size = len(examples) if joint else size
    # As the attacks have them: in half precision the worst inputs would be rounded out of the ball.
    examples = examples.astype(first.x.dtype)
    batches = _Batches(first.model, examples, labels, threat, size, first.classes, given)
    return batches, joint


class _Budgets(NamedTuple):
    """The settings of the attacks in the ensemble."""

    steps: int
    queries: int
    target_classes: int
    joint: bool


_Member = Callable[[Problem, jax.Array], tuple[jax.Array, int]]


def _members(budgets: _Budgets, classes: int) -> list[tuple[str, _Member]]:
    """Returns names and attacks, in their order."""
    steps, joint = budgets.steps, budgets.joint
    targeted_loss = "targeted_dlr" if classes >= 4 else "targeted_margin"

    def apgd_t(problem: Problem, key: jax.Array) -> tuple[jax.Array, int]:
        count = budgets.target_classes
        return run_apgd(
            problem, key, joint=joint, steps=steps, loss=targeted_loss, target_classes=count
        )

    def fab_t(problem: Problem, key: jax.Array) -> tuple[jax.Array, int]:
        return run_fab(problem, key, steps=steps, target_classes=budgets.target_classes)

    def square(problem: Problem, key: jax.Array) -> tuple[jax.Array, int]:
        # As in the original, the schedule is that of 10,000 queries for any number of them.
        queries = budgets.queries
        x_adv = run_square(problem, key, joint=joint, queries=queries, rescale_schedule=False)
        return x_adv, 0

    members: list[tuple[str, _Member]] = [
        ("apgd-ce", lambda problem, key: run_apgd(problem, key, joint=joint, steps=steps)),
        ("apgd-t", apgd_t),
        ("fab-t", fab_t),
        ("square", square),
    ]
    return [member for member in members if not (joint and member[0] == "fab-t")]


def _count_broken(worst: WorstInputs, joint: bool) -> int:
    return round(float(worst.share.sum())) if joint else int((worst.share >= 1).sum())
