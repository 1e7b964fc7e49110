"""Threat models for models whose logits of one example depend on the rest of its batch.

Batch normalisation with the statistics of the test batch makes an example's logits a function of
its companions. Then "the attacker may change x by epsilon" does not say which examples may change:

- joint: the attacker changes the whole batch; this is what all attacks do by default.
- independent: one example is attacked among clean, fixed companions (``independent``).
- companion: the example is clean and its companions are attacked (``companion``; called
  distributed invading by Wu et al. 2023, arXiv 2301.12576).

For the last two, the model is wrapped as a function of the attacked examples only
(``alone_in_batch``, ``as_companions``), which any attack accepts. Batch and position are traced, so
that one compilation serves all examples.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._arguments import check_key
from steinnorm.attacks._criterion import VOID, mean_over_labels
from steinnorm.attacks._explicit_meshes import placed_as
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import LogitsFn, as_partial, traced_logits
from steinnorm.attacks._survivors import place_like
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

Attack = Callable[..., AttackResult]
"""``attack(logits_fn, x, y, *, threat, key, **settings)``."""


def alone_in_batch(logits_fn: LogitsFn, batch: jax.Array, i: int) -> jax.tree_util.Partial:
    """Returns the model as a function of example ``i`` only, with the rest of its batch fixed.

    Args:
      logits_fn: maps a batch (B, ...) to logits ``(B, *S, K)``.
      batch: inputs (B, ...).
      i: position of the replaced example in the batch.

    Returns:
      A function from examples (n, ...) to logits ``(n, *S, K)``. Each example replaces example
      ``i`` in a batch of its own.
    """
    return jax.tree_util.Partial(
        _logits_alone, as_partial(logits_fn), jnp.asarray(batch), _position(i)
    )


def expected_over_companions(
    logits_fn: LogitsFn, companions: jax.Array, i: int = 0
) -> jax.tree_util.Partial:
    """Returns the model's mean prediction over several sets of companions.

    An attack on it searches an example that is wrong among companions in general, not just among
    those of one batch (expectation over transformation, Athalye et al. 2018).

    Args:
      logits_fn: maps a batch (B, ...) to logits ``(B, *S, K)``.
      companions: M sets of companions, (M, B - 1, ...).
      i: position of the example in the batch.

    Returns:
      A function from examples (n, ...) to logits ``(n, *S, K)``: the logarithm of the mean of the
      M softmax probabilities.
    """
    companions = jnp.asarray(companions)
    return jax.tree_util.Partial(_expected_logits, as_partial(logits_fn), companions, _position(i))


def as_companions(logits_fn: LogitsFn, victim: jax.Array, i: int) -> jax.tree_util.Partial:
    """Returns the model as a function of a victim's companions, with the victim's logits for each.

    With the victim's label for each companion, any attack on the companions is an attack on the
    victim, because all of them share its loss.

    Args:
      logits_fn: maps a batch (B, ...) to logits ``(B, *S, K)``.
      victim: the unchanged example, (...).
      i: its position in the batch.

    Returns:
      A function from companions (B - 1, ...) to B - 1 copies of the victim's logits,
      ``(B - 1, *S, K)``.
    """
    return jax.tree_util.Partial(
        _companions_logits, as_partial(logits_fn), jnp.asarray(victim), _position(i)
    )


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
    """Attacks each example separately, among the clean companions of its batch.

    Args:
      attack: a function in ``steinnorm.attacks`` with the arguments ``logits_fn, x, y, threat,
        key``.
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: the batch (B, ...); as in ``fgsm``.
      y: true labels ``(B, *S)``.
      threat: ball and box of the attacked example.
      key: random key, from which each example gets its own.
      target: labels that a targeted attack aims for, shape of ``y``; None for an untargeted one.
      victims: positions of the V examples to attack; None for all B.
      on_progress: called with the number of completed victims, and of all.
      **settings: further arguments of the attack.

    Returns:
      ``success`` is ``(V, *S)`` in the order of the V victims, each evaluated in its own batch.
      ``x_adv`` is (B, ...) with every victim replaced by its attacked version. It is NOT a batch
      that was evaluated: each victim belongs among clean companions. ``max_norm``, ``min`` and
      ``max`` are the extremes, ``nan_count`` and ``zero_gradients`` the sums over the victims'
      batches.

    Raises:
      ValueError: as in the attack, or a victim is not in the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, pgd
      >>> from steinnorm.attacks.batch_threats import independent
      >>> x, y = jnp.array([[0.9, 0.3], [0.2, 0.4], [0.4, 0.5]]), jnp.array([0, 1, 1])
      >>> threat = Threat("linf", 0.2)
      >>> centred = lambda x: x - x.mean(axis=0, keepdims=True)
      >>> independent(pgd, centred, x, y, threat=threat).success
      Array([False, False,  True], dtype=bool)
    """
    check_key(key)
    problem = Problem.of(logits_fn, x, y, threat, target)
    victims = _positions(victims, len(problem.x))
    _set_batch_dependent(attack, settings, batch_dependent=False)
    examples, images = np.asarray(problem.x), np.array(problem.x)
    results_of_victims = []
    for number, i in enumerate(victims):
        result = attack(
            alone_in_batch(problem.model, problem.x, i),
            jnp.asarray(examples[i : i + 1]),
            _repeated_label(problem.criterion.y, i, 1),
            threat=threat,
            key=_victim_key(key, i),
            **_with_target(settings, problem.criterion.target, i, 1),
        )
        images[i] = np.asarray(result.x_adv[0])
        batch_adv = examples.copy()
        batch_adv[i] = images[i]
        results_of_victims.append(
            (i, problem.result(place_like(batch_adv, problem.x), result.zero_gradients))
        )
        if on_progress is not None:
            on_progress(number + 1, len(victims))
    return _merged(
        results_of_victims, place_like(images, problem.x), np.asarray(problem.criterion.y)
    )


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
    """Attacks each example through changes of its companions only (Wu et al. 2023).

    A victim that is wrong in the clean batch counts as a success if it is still wrong.

    Args:
      attack: a function in ``steinnorm.attacks`` with the arguments ``logits_fn, x, y, threat,
        key``.
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: the batch (B, ...), B >= 2; as in ``fgsm``.
      y: true labels ``(B, *S)``.
      threat: ball and box of each companion.
      key: random key, from which each victim's attack gets its own.
      target: labels that the victims shall get, shape of ``y``; None for an untargeted attack.
      victims: positions of the V examples to attack; None for all B.
      on_progress: called with the number of completed victims, and of all.
      **settings: further arguments of the attack.

    Returns:
      ``success`` is ``(V, *S)`` in the order of the V victims: whether the clean victim is wrong
      among its attacked companions. ``x_adv`` is the batch (B, ...) of a single victim, because all
      V batches would need V times the memory: the first victim with the largest share of successes.
      ``max_norm``, ``min`` and ``max`` are the extremes, ``nan_count`` and ``zero_gradients`` the
      sums over all V batches.

    Raises:
      ValueError: as in the attack, or the batch has one example, or a victim is not in the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, pgd
      >>> from steinnorm.attacks.batch_threats import companion
      >>> x, y = jnp.array([[0.9, 0.3], [0.2, 0.4], [0.4, 0.5]]), jnp.array([0, 1, 1])
      >>> threat = Threat("linf", 0.2)
      >>> centred = lambda x: x - x.mean(axis=0, keepdims=True)
      >>> companion(pgd, centred, x, y, threat=threat).success
      Array([False, False,  True], dtype=bool)
    """
    check_key(key)
    problem = Problem.of(logits_fn, x, y, threat, target)
    victims = _positions(victims, len(problem.x))
    others = len(problem.x) - 1
    if not others:
        raise ValueError("a batch of one has no companions to attack; pass at least two examples")
    _set_batch_dependent(attack, settings, batch_dependent=True)
    examples = np.asarray(problem.x)
    results_of_victims, worst_batch, worst_share = [], problem.x, -1.0
    for number, i in enumerate(victims):
        result = attack(
            as_companions(problem.model, jnp.asarray(examples[i]), i),
            jnp.asarray(np.delete(examples, i, axis=0)),
            _repeated_label(problem.criterion.y, i, others),
            threat=threat,
            key=_victim_key(key, i),
            **_with_target(settings, problem.criterion.target, i, others),
        )
        batch_adv = place_like(
            np.insert(np.asarray(result.x_adv), i, examples[i], axis=0), problem.x
        )
        judged = problem.result(batch_adv, result.zero_gradients)
        results_of_victims.append((i, judged))
        share = _success_share(judged, problem, i)
        if share > worst_share:
            worst_batch, worst_share = batch_adv, share
        if on_progress is not None:
            on_progress(number + 1, len(victims))
    return _merged(results_of_victims, worst_batch, np.asarray(problem.criterion.y))


def _logits_alone(
    model: jax.tree_util.Partial, batch: jax.Array, i: jax.Array, examples: jax.Array
) -> jax.Array:
    def logits_of(example: jax.Array) -> jax.Array:
        everywhere = placed_as(jnp.broadcast_to(example[None], batch.shape), batch)
        batch_adv = jnp.where(_is_example(batch, i), everywhere, batch)
        return _example(model(batch_adv), i)

    # vmap keeps the statistics of the batches separate.
    return logits_of(examples[0])[None] if len(examples) == 1 else jax.vmap(logits_of)(examples)


def _expected_logits(
    model: jax.tree_util.Partial, companions: jax.Array, i: jax.Array, examples: jax.Array
) -> jax.Array:
    def logits_of(example: jax.Array) -> jax.Array:
        logs = [
            jax.nn.log_softmax(_logits_among(model, others, example, i)) for others in companions
        ]
        return jax.nn.logsumexp(jnp.stack(logs), axis=0) - float(np.log(len(companions)))

    return logits_of(examples[0])[None] if len(examples) == 1 else jax.vmap(logits_of)(examples)


def _companions_logits(
    model: jax.tree_util.Partial, victim: jax.Array, i: jax.Array, companions: jax.Array
) -> jax.Array:
    logits = _logits_among(model, companions, victim, i)
    return jnp.broadcast_to(logits[None], (len(companions), *logits.shape))


def _logits_among(
    model: jax.tree_util.Partial, companions: jax.Array, example: jax.Array, i: jax.Array
) -> jax.Array:
    """Returns the logits (*S, K), K >= 2, of an example at position ``i`` among companions."""
    count = len(companions)
    place = jnp.arange(count + 1, dtype=i.dtype)
    source = jnp.where(place == i, count, place - (place > i).astype(i.dtype))
    batch_adv = jnp.take(jnp.concatenate([companions, example[None]]), source, axis=0)
    logits = traced_logits(model, batch_adv)
    return _example(logits, i)


def _is_example(batch: jax.Array, i: jax.Array) -> jax.Array:
    """Returns a mask (B, 1, ...) of example ``i``; works for batches divided among devices."""
    return (jnp.arange(len(batch), dtype=i.dtype) == i).reshape(-1, *(1,) * (batch.ndim - 1))


def _example(batch: jax.Array, i: jax.Array) -> jax.Array:
    """Returns example ``i`` of a batch that may be divided among devices."""
    return jnp.sum(jnp.where(_is_example(batch, i), batch, 0), axis=0)


def _position(i: int) -> jax.Array:
    return jnp.asarray(i, jnp.int32)


def _positions(victims: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if victims is None else [int(i) for i in victims]
    if not chosen or not all(0 <= i < count for i in chosen):
        raise ValueError(f"victims must be positions in [0, {count}), at least one; got {chosen}")
    return chosen


def _repeated_label(labels: jax.Array, i: int, count: int) -> jax.Array:
    """Returns ``count`` copies of the labels of example ``i``."""
    return jnp.asarray(np.repeat(np.asarray(labels)[i : i + 1], count, axis=0))


def _set_batch_dependent(
    attack: Attack, settings: dict[str, Any], *, batch_dependent: bool
) -> None:
    """Sets ``batch_dependent`` in the settings if the attack has this argument."""
    if "batch_dependent" in inspect.signature(attack).parameters:
        settings.setdefault("batch_dependent", batch_dependent)


def _with_target(
    settings: dict[str, Any], target: jax.Array | None, i: int, count: int
) -> dict[str, Any]:
    return settings if target is None else {**settings, "target": _repeated_label(target, i, count)}


def _success_share(result: AttackResult, problem: Problem, i: int) -> float:
    """Returns the share of the labels of example ``i`` on which the attack succeeds."""
    succeeded = result.success.astype(problem.x.dtype)
    return float(np.asarray(mean_over_labels(succeeded, problem.criterion.y))[i])


def _victim_key(key: jax.Array | None, i: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, i)


def _merged(
    results_of_victims: list[tuple[int, AttackResult]], x_adv: jax.Array, labels: np.ndarray
) -> AttackResult:
    """Merges the results of all victims' batches."""
    results = [result for _, result in results_of_victims]
    success = [np.asarray(result.success)[i] for i, result in results_of_victims]
    return AttackResult(
        x_adv=x_adv,
        success=jnp.asarray(np.stack(success)),
        max_norm=max(result.max_norm for result in results),
        min=min(result.min for result in results),
        max=max(result.max for result in results),
        nan_count=sum(result.nan_count for result in results),
        zero_gradients=sum(result.zero_gradients for result in results),
        outside_box=max(result.outside_box for result in results),
        labels=int(
            sum(np.sum(labels[i] != VOID) if labels.ndim > 1 else 1 for i, _ in results_of_victims)
        ),
        outside_ball=max(result.outside_ball for result in results),
    )
