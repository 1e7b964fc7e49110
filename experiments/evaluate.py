"""Scores of a trained model on the test part: clean, under noise and under attack."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import attacks
from experiments.attacks import ShortReachWarning, Threat
from experiments.config import AttackConfig, ConfigError, Statistics
from experiments.data.batches import in_order
from experiments.data.examples import Examples
from experiments.metrics import Tally, bootstrap_interval, wilson_interval
from experiments.models.norms import in_evaluation
from experiments.record import Row
from experiments.step import as_inputs
from experiments.tasks import Binary, Segmentation, Summary, Task

CLEAN = AttackConfig("clean", "gaussian", (0.0,))
"""No attack at all, in the form of one."""

_OUTSIDE = 1e-6  # by how much rounding may take an example out of its ball or box


class Labels(NamedTuple):
    """What rows say about the run that they were measured in.

    Attributes:
      config: name of the configuration.
      norm: name of the norm.
      seed: of the run; also of noise and random starts.
    """

    config: str
    norm: str
    seed: int


class Attacked(NamedTuple):
    """A batch after an attack.

    Attributes:
      inputs: what the model is given.
      max_norm: the largest change of an example, in the attack's norm; 0 for noise.
      zero_gradients: examples whose gradient was all zero in the last step.
    """

    inputs: jax.Array
    max_norm: float = 0.0
    zero_gradients: int = 0


def evaluate(
    model: nnx.Module,
    task: Task,
    examples: Examples,
    *,
    statistics: Statistics,
    batch_size: int,
    labels: Labels,
    attack_configs: Sequence[AttackConfig] = (),
    metrics: Sequence[str] | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Measures scores on all examples with one source of statistics.

    The attacker sees the model that is evaluated: gradients go through the statistics of the test
    batch where those are used.

    Args:
      model: the trained model.
      task: its scores.
      examples: the test part.
      statistics: the source of the norm's statistics.
      batch_size: with statistics of the test batch, scores depend on it.
      labels: for the rows, and the seed of noise and random starts.
      attack_configs: measured besides the clean scores.
      metrics: names of the scores that become rows; all by default.
      on_row: called with each row as soon as it is there.

    Raises:
      ConfigError: an attack that does not exist for this task.
    """
    if attack_configs and isinstance(task, Segmentation):
        names = ", ".join(attack.name for attack in attack_configs)
        raise ConfigError(f"attacks on label maps do not exist yet; asked for: {names}")
    model = in_evaluation(model, statistics)
    answer = functools.partial(_answer, task, *nnx.split(model))
    logits_fn = as_logits_fn(model, single=isinstance(task, Binary))
    rows = []
    for number, attack in enumerate((CLEAN, *attack_configs)):
        for epsilon in attack.epsilons:
            seen = []
            # Copies that fill the last batch would count in its statistics.
            whole = statistics in ("running", "none")
            for place, batch in enumerate(in_order(examples, batch_size, fill=whole)):
                key = jax.random.fold_in(jax.random.key(labels.seed), number)
                x, y = as_inputs(jnp.asarray(batch.inputs)), jnp.asarray(batch.targets)
                at_batch = jax.random.fold_in(key, place)
                attacked = _attacked(attack, epsilon, logits_fn, (x, y), at_batch)
                summary = jax.device_get(answer(attacked.inputs, y))
                seen.append(({k: v[batch.real] for k, v in summary.items()}, attacked))
            common = {**labels._asdict(), "statistics": statistics, "epsilon": epsilon}
            for row in _rows(task, seen, attack, common, metrics):
                on_row(row)
                rows.append(row)
    return rows


def rows_in(attack_configs: Sequence[AttackConfig]) -> int:
    """How many attacks at how many strengths ``evaluate`` measures, clean included."""
    return 1 + sum(len(attack.epsilons) for attack in attack_configs)


def as_logits_fn(model: nnx.Module, *, single: bool = False) -> jax.tree_util.Partial:
    """A model as a pure function of inputs, in a form that compiles once per architecture.

    Whatever a layer records while it runs is dropped: the model stays as it is.

    Args:
      model: ready for evaluation.
      single: the model gives one logit z; the function gives (0, z), whose softmax has the same
        probabilities, so that attacks for K logits apply.
    """
    graphdef, state = nnx.split(model)
    return jax.tree_util.Partial(_apply_single if single else _apply, graphdef, state)


def _apply(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    # Copies: under a gradient, writing to the caller's variables would be an error in NNX.
    return nnx.merge(graphdef, state, copy=True)(x)


def _apply_single(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    logit = _apply(graphdef, state, x)
    return jnp.concatenate([jnp.zeros_like(logit), logit], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answer(
    task: Task, graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array, y: jax.Array
) -> Summary:
    return task.summary(_apply(graphdef, state, x), y)


def _attacked(
    attack: AttackConfig,
    epsilon: float,
    logits_fn: jax.tree_util.Partial,
    xy: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> Attacked:
    x, y = xy
    if attack.kind == "gaussian":
        if epsilon == 0:
            return Attacked(x)
        return Attacked(attacks.gaussian(key, x, epsilon, bounds=(0.0, 1.0)))
    threat = Threat(attack.norm, epsilon)
    if attack.kind == "fgsm":
        result = attacks.fgsm(logits_fn, x, y, threat=threat, loss=attack.loss)
    else:
        with warnings.catch_warnings():
            if attack.short_reach:
                warnings.simplefilter("ignore", ShortReachWarning)
            result = attacks.pgd(
                logits_fn,
                x,
                y,
                threat=threat,
                key=key,
                steps=attack.steps,
                step_size=attack.step_size,
                random_start=attack.random_start,
                loss=attack.loss,
            )
    low, high = threat.bounds
    inside = low - _OUTSIDE <= result.min and result.max <= high + _OUTSIDE
    if result.nan_count or not inside or result.max_norm > epsilon * (1 + _OUTSIDE) + _OUTSIDE:
        raise AssertionError(
            f"{attack.name} left its ball or box: {result.max_norm} from the inputs, values in "
            f"[{result.min}, {result.max}], {result.nan_count} not finite"
        )
    return Attacked(result.x_adv, result.max_norm, result.zero_gradients)


def _rows(
    task: Task,
    seen: Sequence[tuple[dict[str, np.ndarray], Attacked]],
    attack: AttackConfig,
    common: dict[str, Any],
    metrics: Sequence[str] | None,
) -> list[Row]:
    """A row for each score that exists; ``common`` is what they all say."""
    summary = {name: np.concatenate([s[name] for s, _ in seen]) for name in seen[0][0]}
    count = len(summary["loss"])
    has_ball, epsilon = attack.kind != "gaussian", common["epsilon"]
    step_size = {"gaussian": 0.0, "fgsm": epsilon, "pgd": attack.step_size}[attack.kind]
    rows = []
    for metric, value in task.scores(summary).items():
        if (metrics is not None and metric not in metrics) or not math.isfinite(value):
            continue
        low, high = _interval(task, summary, metric)
        row = Row(
            **common,
            attack=attack.name,
            metric=metric,
            value=value,
            n=count,
            ci_low=low,
            ci_high=high,
            norm_order=attack.norm if has_ball else "",
            steps=attack.steps if has_ball else 0,
            step_size=2.5 * epsilon / attack.steps if step_size is None else step_size,
            max_norm=max(attacked.max_norm for _, attacked in seen),
            zero_gradients=sum(attacked.zero_gradients for _, attacked in seen),
        )
        rows.append(row)
    return rows


def _interval(task: Task, summary: dict[str, np.ndarray], metric: str) -> tuple[float, float]:
    """95 %: Wilson's for a share of examples, the bootstrap over examples for all else."""
    if metric == "accuracy":
        return wilson_interval(Tally.of(summary["right"]))

    def of(index: np.ndarray) -> float:
        return task.scores({name: values[index] for name, values in summary.items()})[metric]

    return bootstrap_interval(of, len(summary["loss"]))
