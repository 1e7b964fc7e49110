"""Accuracy of a trained model: clean, under noise and under attack."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import attacks
from experiments.attacks import ShortReachWarning, Threat
from experiments.config import AttackConfig, EvaluationConfig, Statistics
from experiments.data.digits import ImageData
from experiments.metrics import Tally, wilson_interval
from experiments.models.norms import in_evaluation
from experiments.record import Row


class Outcome(NamedTuple):
    """One attack on all test images.

    Attributes:
      right: how many images the model still gets right.
      max_norm: the largest change of an image.
      zero_gradients: images whose gradient was all zero in the last step.
    """

    right: Tally = Tally()
    max_norm: float = 0.0
    zero_gradients: int = 0

    def merge(self, other: "Outcome") -> "Outcome":
        """Both together."""
        return Outcome(
            self.right.merge(other.right),
            max(self.max_norm, other.max_norm),
            self.zero_gradients + other.zero_gradients,
        )


Batch = tuple[int, jax.Array, jax.Array]


def evaluate(
    model: nnx.Module,
    data: ImageData,
    config: EvaluationConfig,
    *,
    statistics: Statistics,
    experiment: str,
    norm: str,
    seed: int,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Measures the accuracy on the test images with one source of statistics.

    The attacker sees the model that is evaluated: gradients go through the statistics of the test
    batch where those are used.

    Args:
      model: the trained model.
      data: of which the test part is used.
      config: attacks and batch size.
      statistics: the source of the norm's statistics.
      experiment: name of the configuration, for the rows.
      norm: name of the norm, for the rows.
      seed: for the rows, and for noise and random starts.
      on_row: called with each row as soon as it is there.
    """
    logits_fn = as_logits_fn(in_evaluation(model, statistics))
    key = jax.random.key(seed)
    clean = AttackConfig("clean", "gaussian", (0.0,))
    rows = []
    for number, attack in enumerate((clean, *config.attacks)):
        for epsilon in attack.epsilons:
            outcome = Outcome()
            for batch in _batches(data, config.batch_size):
                batch_key = jax.random.fold_in(jax.random.fold_in(key, number), batch[0])
                outcome = outcome.merge(_run(attack, epsilon, logits_fn, batch, batch_key))
            if outcome.right.trials != len(data.test_labels):
                raise AssertionError(f"{outcome.right.trials} of {len(data.test_labels)} seen")
            row = Row(
                config=experiment,
                norm=norm,
                seed=seed,
                statistics=statistics,
                **_measured(outcome, attack, epsilon),
            )
            on_row(row)
            rows.append(row)
    return rows


def rows_in(config: EvaluationConfig) -> int:
    """How many rows ``evaluate`` returns."""
    return 1 + sum(len(attack.epsilons) for attack in config.attacks)


def as_logits_fn(model: nnx.Module) -> jax.tree_util.Partial:
    """A model as a pure function of images, in a form that compiles once per architecture.

    Whatever a layer records while it runs is dropped: the model stays as it is.
    """
    graphdef, state = nnx.split(model)
    return jax.tree_util.Partial(_apply, graphdef, state)


def _apply(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    # Copies: under a gradient, writing to the caller's variables would be an error in NNX.
    return nnx.merge(graphdef, state, copy=True)(x)


def _batches(data: ImageData, size: int) -> Iterator[Batch]:
    for number, start in enumerate(range(0, len(data.test_labels), size)):
        part = slice(start, start + size)
        images, labels = jnp.asarray(data.test_images[part]), jnp.asarray(data.test_labels[part])
        yield number, images, labels


def _run(
    attack: AttackConfig,
    epsilon: float,
    logits_fn: jax.tree_util.Partial,
    batch: Batch,
    key: jax.Array,
) -> Outcome:
    _, x, y = batch
    if attack.kind == "gaussian":
        noisy = attacks.gaussian(key, x, epsilon, bounds=(0.0, 1.0))
        predicted = jnp.argmax(attacks.predict(logits_fn, noisy), axis=-1)
        return Outcome(Tally.of(np.asarray(predicted == y)))
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
    right = Tally.of(~np.asarray(result.success))
    return Outcome(right, result.max_norm, result.zero_gradients)


def _measured(outcome: Outcome, attack: AttackConfig, epsilon: float) -> dict[str, Any]:
    """What a row says about the attack and its result."""
    low, high = wilson_interval(outcome.right)
    has_ball = attack.kind != "gaussian"
    step_size = {"gaussian": 0.0, "fgsm": epsilon, "pgd": attack.step_size}[attack.kind]
    return {
        "attack": attack.name,
        "epsilon": epsilon,
        "metric": "accuracy",
        "value": outcome.right.share,
        "n": outcome.right.trials,
        "ci_low": low,
        "ci_high": high,
        "norm_order": attack.norm if has_ball else "",
        "steps": attack.steps if has_ball else 0,
        "step_size": 2.5 * epsilon / attack.steps if step_size is None else step_size,
        "max_norm": outcome.max_norm,
        "zero_gradients": outcome.zero_gradients,
    }
