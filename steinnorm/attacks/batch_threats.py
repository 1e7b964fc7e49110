"""Threat models for models whose output for one example depends on the others of its batch.

Batch normalisation with the statistics of the test batch makes an example's logits a function of
its companions, so that "the attacker may change x by epsilon" no longer says who may change what:

joint:        one attacker owns the whole batch and changes all of it.  The plain attack.
independent:  one example is attacked, its companions are clean and do not move (``independent``).
companion:    the example is clean and its companions are attacked (``companion``; the attack that
              Wu et al. 2023, arXiv 2301.12576, call distributed invading).

The last two turn the model into one of another batch (``alone_in_batch``, ``as_companions``), for
which any attack will do.  Batch and position are traced: one compilation serves all examples.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import VOID, mean_over_labels
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import LogitsFn, as_argument, traced_logits
from steinnorm.attacks._survivors import placed_like
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

Attack = Callable[..., AttackResult]
"""``attack(logits_fn, x, y, *, threat, key, **settings)``."""


def alone_in_batch(logits_fn: LogitsFn, batch: jax.Array, i: int) -> jax.tree_util.Partial:
    """The model of example ``i`` alone, with the rest of its batch fixed.

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, *S, K).
      batch: (B, ...).
      i: position in the batch of the example that is replaced.

    Returns:
      A function from examples (n, ...) to logits (n, *S, K): row ``i`` of the logits of ``batch``
      with its row ``i`` replaced, for each of the examples by itself.
    """
    return jax.tree_util.Partial(_alone, as_argument(logits_fn), jnp.asarray(batch), _position(i))


def expected_over_companions(
    logits_fn: LogitsFn, companions: jax.Array, i: int = 0
) -> jax.tree_util.Partial:
    """The model's mean prediction over several sets of companions.

    An attack on it looks for an example that is wrong among any companions, not among these only
    (expectation over transformation, Athalye et al. 2018).

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, *S, K).
      companions: M sets, (M, B - 1, ...).
      i: position of the example among them.

    Returns:
      A function from examples (n, ...) to (n, *S, K): the logarithm of the mean of the M softmax
      probabilities, which serves as logits.
    """
    companions = jnp.asarray(companions)
    return jax.tree_util.Partial(_expected, as_argument(logits_fn), companions, _position(i))


def as_companions(logits_fn: LogitsFn, victim: jax.Array, i: int) -> jax.tree_util.Partial:
    """The model of the companions of a victim, all of which answer with the victim's logits.

    With the victim's label for each of them, any attack on a batch becomes one on the victim: all
    rows share its loss.

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, *S, K).
      victim: the example (...) that stays as it is.
      i: its position in the batch.

    Returns:
      A function from companions (B - 1, ...) to (B - 1, *S, K), all rows of which are the same.
    """
    return jax.tree_util.Partial(_among, as_argument(logits_fn), jnp.asarray(victim), _position(i))


def independent(
    attack: Attack,
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    target: jax.Array | None = None,
    victims: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> AttackResult:
    """Attacks each example by itself, in its batch of clean companions.

    Args:
      attack: any function of ``steinnorm.attacks`` that takes ``logits_fn, x, y, threat, key``.
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: the batch (B, ...); as in ``fgsm``.
      y: the right labels (B, *S).
      threat: what may happen to the one example.
      key: randomness, of which each example gets its own.
      target: wanted labels, of the shape of ``y``; None for any wrong ones.
      victims: positions of the examples to attack; None for all B.
      on_progress: called with the number of victims that are done, and of all.
      **settings: further arguments of the attack.

    Returns:
      ``success`` is (V, *S) in the order of the V victims, each measured in its own batch.
      ``x_adv`` is (B, ...) with the row of every victim replaced: rows to be looked at one at a
      time, NOT a batch that was ever evaluated.  ``max_norm``, ``min``, ``max`` are the extremes
      and ``nan_count`` and ``zero_gradients`` the sums over the victims' batches.

    Raises:
      ValueError: as the attack, or a victim that is not in the batch.
    """
    problem = Problem.of(logits_fn, x, y, threat, target)
    victims = _positions(victims, len(problem.x))
    _say(attack, settings, batch_dependent=False)
    rows, images = np.asarray(problem.x), np.array(problem.x)
    found = []
    for number, i in enumerate(victims):
        result = attack(
            alone_in_batch(problem.model, problem.x, i),
            jnp.asarray(rows[i : i + 1]),
            _of_victim(problem.criterion.y, i, 1),
            threat=threat,
            key=_key_of(key, i),
            **_with_target(settings, problem.criterion.target, i, 1),
        )
        images[i] = np.asarray(result.x_adv[0])
        whole = rows.copy()
        whole[i] = images[i]
        found.append((i, problem.result(placed_like(whole, problem.x), result.zero_gradients)))
        if on_progress is not None:
            on_progress(number + 1, len(victims))
    return _together(found, placed_like(images, problem.x), np.asarray(problem.criterion.y))


def companion(
    attack: Attack,
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    target: jax.Array | None = None,
    victims: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> AttackResult:
    """Attacks each example through its companions alone (Wu et al. 2023), which all may change.

    A victim that is wrong in the clean batch counts as a success if it is still wrong.

    Args:
      attack: any function of ``steinnorm.attacks`` that takes ``logits_fn, x, y, threat, key``.
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: the batch (B, ...), B >= 2; as in ``fgsm``.
      y: the right labels (B, *S).
      threat: what may happen to each companion.
      key: randomness, of which each victim's attack gets its own.
      target: labels wanted of the victims, of the shape of ``y``; None for any wrong ones.
      victims: positions of the examples to attack; None for all B.
      on_progress: called with the number of victims that are done, and of all.
      **settings: further arguments of the attack.

    Returns:
      ``success`` is (V, *S) in the order of the V victims: the clean victim is wrong among its
      attacked companions.  ``x_adv`` is one whole batch (B, ...), that of the victim of which most
      labels are reached (the first of these): all V of them would be V times the memory.
      ``max_norm``, ``min``, ``max`` are the extremes and ``nan_count`` and ``zero_gradients`` the
      sums over all V batches.

    Raises:
      ValueError: as the attack, or a batch of one, or a victim that is not in the batch.
    """
    problem = Problem.of(logits_fn, x, y, threat, target)
    victims = _positions(victims, len(problem.x))
    others = len(problem.x) - 1
    if not others:
        raise ValueError("a batch of one has no companions to attack; give at least two examples")
    _say(attack, settings, batch_dependent=True)
    rows = np.asarray(problem.x)
    found, worst, worst_share = [], problem.x, -1.0
    for number, i in enumerate(victims):
        result = attack(
            as_companions(problem.model, jnp.asarray(rows[i]), i),
            jnp.asarray(np.delete(rows, i, axis=0)),
            _of_victim(problem.criterion.y, i, others),
            threat=threat,
            key=_key_of(key, i),
            **_with_target(settings, problem.criterion.target, i, others),
        )
        whole = placed_like(np.insert(np.asarray(result.x_adv), i, rows[i], axis=0), problem.x)
        judged = problem.result(whole, result.zero_gradients)
        found.append((i, judged))
        share = _share(judged, problem, i)
        if share > worst_share:
            worst, worst_share = whole, share
        if on_progress is not None:
            on_progress(number + 1, len(victims))
    return _together(found, worst, np.asarray(problem.criterion.y))


def _alone(
    model: jax.tree_util.Partial, batch: jax.Array, i: jax.Array, examples: jax.Array
) -> jax.Array:
    def one(example: jax.Array) -> jax.Array:
        whole = jnp.where(_is_row(batch, i), example[None], batch)
        return _row(model(whole), i)

    # Over whole batches, each with its own statistics, vmap is right.
    return one(examples[0])[None] if len(examples) == 1 else jax.vmap(one)(examples)


def _expected(
    model: jax.tree_util.Partial, companions: jax.Array, i: jax.Array, examples: jax.Array
) -> jax.Array:
    def one(example: jax.Array) -> jax.Array:
        logs = [jax.nn.log_softmax(_row_among(model, others, example, i)) for others in companions]
        return jax.nn.logsumexp(jnp.stack(logs), axis=0) - float(np.log(len(companions)))

    return one(examples[0])[None] if len(examples) == 1 else jax.vmap(one)(examples)


def _among(
    model: jax.tree_util.Partial, victim: jax.Array, i: jax.Array, companions: jax.Array
) -> jax.Array:
    logits = _row_among(model, companions, victim, i)
    return jnp.broadcast_to(logits[None], (len(companions), *logits.shape))


def _row_among(
    model: jax.tree_util.Partial, companions: jax.Array, example: jax.Array, i: jax.Array
) -> jax.Array:
    """Logits (*S, K), K >= 2, of an example that stands at row ``i`` among these companions."""
    count = len(companions)
    place = jnp.arange(count + 1, dtype=i.dtype)
    source = jnp.where(place == i, count, place - (place > i).astype(i.dtype))
    whole = jnp.take(jnp.concatenate([companions, example[None]]), source, axis=0)
    logits = traced_logits(model, whole)
    return _row(logits, i)


def _is_row(batch: jax.Array, i: jax.Array) -> jax.Array:
    """Returns where a batch (B, ...) has its row ``i``, (B, 1, ...) bool, wherever its rows lie."""
    return (jnp.arange(len(batch), dtype=i.dtype) == i).reshape(-1, *(1,) * (batch.ndim - 1))


def _row(batch: jax.Array, i: jax.Array) -> jax.Array:
    """Returns row ``i`` of a batch that may be split over devices."""
    return jnp.sum(jnp.where(_is_row(batch, i), batch, 0), axis=0)


def _position(i: int) -> jax.Array:
    return jnp.asarray(i, jnp.int32)


def _positions(victims: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if victims is None else [int(i) for i in victims]
    if not chosen or not all(0 <= i < count for i in chosen):
        raise ValueError(f"victims must be positions in [0, {count}), at least one; got {chosen}")
    return chosen


def _of_victim(labels: jax.Array, i: int, count: int) -> jax.Array:
    """The labels of example ``i``, so many times."""
    return jnp.asarray(np.repeat(np.asarray(labels)[i : i + 1], count, axis=0))


def _say(attack: Attack, settings: dict[str, Any], *, batch_dependent: bool) -> None:
    """Tells an attack that wants to know whether its examples depend on each other."""
    if "batch_dependent" in inspect.signature(attack).parameters:
        settings.setdefault("batch_dependent", batch_dependent)


def _with_target(
    settings: dict[str, Any], target: jax.Array | None, i: int, count: int
) -> dict[str, Any]:
    return settings if target is None else {**settings, "target": _of_victim(target, i, count)}


def _share(result: AttackResult, problem: Problem, i: int) -> float:
    """Share of the labels of example ``i`` that are reached."""
    reached = result.success.astype(problem.x.dtype)
    return float(np.asarray(mean_over_labels(reached, problem.criterion.y))[i])


def _key_of(key: jax.Array | None, i: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, i)


def _together(
    found: list[tuple[int, AttackResult]], x_adv: jax.Array, labels: np.ndarray
) -> AttackResult:
    """The results of all victims' batches as one."""
    results = [result for _, result in found]
    success = [np.asarray(result.success)[i] for i, result in found]
    return AttackResult(
        x_adv=x_adv,
        success=jnp.asarray(np.stack(success)),
        max_norm=max(result.max_norm for result in results),
        min=min(result.min for result in results),
        max=max(result.max for result in results),
        nan_count=sum(result.nan_count for result in results),
        zero_gradients=sum(result.zero_gradients for result in results),
        outside_box=max(result.outside_box for result in results),
        labels=int(sum(np.sum(labels[i] != VOID) if labels.ndim > 1 else 1 for i, _ in found)),
    )
