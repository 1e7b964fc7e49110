"""AutoAttack: several parameter-free attacks, of which each example keeps the worst."""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import for_batch, share_reached
from steinnorm.attacks._inputs import Problem, resolve_batch_dependence
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._survivors import Kept, bucket, padded
from steinnorm.attacks.apgd import apgd
from steinnorm.attacks.fab import fab
from steinnorm.attacks.square import square
from steinnorm.attacks.threat import AttackResult, Stage, Threat

OnStage = Callable[[str, int, int], None]
"""Called with an attack's name, how many examples it has done, and of how many."""


class _Member(NamedTuple):
    """An attack of the ensemble; ``attack`` has the signature of all attacks."""

    name: str
    attack: Callable[..., AttackResult]


def autoattack(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
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
    """The standard ensemble of Croce & Hein (2020b), with its budgets.

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
      batch_size: examples per attacked batch of a model without batch dependence; it changes the
        time, and which random numbers an example gets.  The clean and the attacked inputs are
        looked at all at once: give only as many as one forward pass may hold.
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
    key = jax.random.key(0) if key is None else key
    problem = Problem.of(logits_fn, x, y, threat)
    if problem.label_axes:
        raise ValueError("autoattack is for one label per example; for a label per pixel take sea")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    joint = resolve_batch_dependence(problem, batch_dependent)
    share = share_reached(problem.logits, problem.criterion)
    kept = Kept(problem.x, for_batch(share, joint))
    stages, vanished = [], 0
    for number, member in enumerate(_standard(problem, steps, queries, target_classes, joint)):
        began = time.perf_counter()
        before = _wrong(kept, joint)
        size = len(problem.x) if joint else batch_size
        attacked, zeros = _attack(
            member, problem, kept, jax.random.fold_in(key, number), size, joint, on_progress
        )
        broken = _wrong(kept, joint) - before
        stages.append(Stage(member.name, attacked, broken, time.perf_counter() - began))
        vanished = max(vanished, zeros)
    return problem.result(jnp.asarray(kept.x), vanished, tuple(stages))


def _standard(
    problem: Problem, steps: int, queries: int, target_classes: int, joint: bool
) -> list[_Member]:
    """The attacks, the cheapest first."""
    towards = "targeted_dlr" if problem.classes >= 4 else "targeted_margin"
    members = [
        _Member("apgd-ce", functools.partial(apgd, steps=steps)),
        _Member(
            "apgd-t",
            functools.partial(apgd, steps=steps, loss=towards, target_classes=target_classes),
        ),
        _Member("fab-t", functools.partial(fab, steps=steps, target_classes=target_classes)),
        # Its schedule is that of 10,000 queries, whatever their number, as in the original.
        _Member("square", functools.partial(square, queries=queries, rescale_schedule=False)),
    ]
    return [member for member in members if not (joint and member.name == "fab-t")]


def _attack(  # noqa: PLR0917
    member: _Member,
    problem: Problem,
    kept: Kept,
    key: jax.Array,
    size: int,
    joint: bool,
    on_progress: OnStage | None,
) -> tuple[int, int]:
    """Gives an attack what still stands; how many examples, and how many zero gradients."""
    index = np.arange(len(problem.x)) if joint else kept.standing
    vanished = 0
    for place, start in enumerate(range(0, len(index), size)):
        chosen = index[start : start + size]
        rows = padded(chosen, bucket(len(chosen), size))
        part = problem.take(rows)
        result = member.attack(
            problem.model,
            part.x,
            part.criterion.y,
            threat=problem.threat,
            key=jax.random.fold_in(key, place),
            batch_dependent=joint,
        )
        result.check(problem.threat, member.name)
        share = for_batch(result.success.astype(part.logits.dtype), joint)
        kept.offer(chosen, result.x_adv, share)
        vanished += min(result.zero_gradients, len(chosen))  # padding is counted too
        if on_progress is not None:
            on_progress(member.name, start + len(chosen), len(index))
    return len(index), vanished


def _wrong(kept: Kept, joint: bool) -> int:
    return round(float(kept.share.sum())) if joint else int((kept.share >= 1).sum())
