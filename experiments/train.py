"""The one training loop: a host loop over a jitted step.

The step is a pure function of arrays: the NNX model is split into its structure (static), its
parameters and its other state at the boundary and merged inside.  A loop on the host may report,
stop and log at any step, and on a CPU it is faster than a scan around convolutions.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.config import ConfigError, TrainConfig

Factors = dict[str, dict[str, jax.Array]]
"""Layer -> ``mean_factor`` and ``variance_factor``, scalars; 1 = untouched, 0 = the target."""


class Variables(NamedTuple):
    """The arrays of a model.

    Attributes:
      params: what the optimiser changes.
      rest: what the layers record, such as running statistics.
    """

    params: nnx.State
    rest: nnx.State


class LogRow(NamedTuple):
    """What is kept of one training step.

    Attributes:
      step: counted from 1.
      epoch: passes over the data so far.
      loss: mean cross-entropy of the batch, in nats.
      accuracy: share of the batch that was right.
      factors: layer -> {``mean_factor``, ``variance_factor``}; empty for norms without shrinkage.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float
    factors: dict[str, dict[str, float]]


class Trained(NamedTuple):
    """A trained model and how it got there.

    Attributes:
      model: a new model; the one that was passed in is left alone.
      history: every ``log_every``-th step, the first and the last.
    """

    model: nnx.Module
    history: list[LogRow]


def train(
    model: nnx.Module,
    images: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    *,
    seed: int,
    log_every: int = 2,
    on_step: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> Trained:
    """Trains a classifier.

    Args:
      model: maps images (B, H, W, C) to logits (B, K), in training mode.
      images: (N, H, W, C) floating.
      labels: (N,) integers.
      config: the optimisation.
      seed: of the order of the images.
      log_every: steps between two rows of the history.
      on_step: called after each step with (step, total steps, loss).

    Raises:
      ConfigError: there are fewer images than fill one batch.
      FloatingPointError: the loss is not finite; the message names the step.
    """
    per_epoch = len(images) // config.batch_size
    total = per_epoch * config.epochs
    if total < 1:
        raise ConfigError(
            f"{len(images)} images in batches of {config.batch_size}, {config.epochs} epochs: "
            "not a single step"
        )
    optimiser, step_fn = _compiled(config, per_epoch)
    graphdef, variables = _split(model)
    optimiser_state = optimiser.init(variables.params)
    history = []
    batches = _batches(len(images), config, seed)
    for step, index in enumerate(batches, start=1):
        variables, optimiser_state, report = step_fn(
            graphdef, variables, optimiser_state, (images[index], labels[index])
        )
        loss = float(report["loss"])
        if not math.isfinite(loss):
            rate = config.learning_rate
            raise FloatingPointError(
                f"the loss is {loss} at step {step} of {total} (peak learning rate {rate:g}); "
                "training stops here"
            )
        if step % log_every == 0 or step in (1, total):
            history.append(_log_row(step, step / per_epoch, report))
        on_step(step, total, loss)
    return Trained(nnx.merge(graphdef, *variables), history)


def steps_in(examples: int, config: TrainConfig) -> int:
    """How many steps ``train`` takes on so many images."""
    return examples // config.batch_size * config.epochs


def _batches(examples: int, config: TrainConfig, seed: int) -> Iterator[np.ndarray]:
    """Indices of each batch, a new order every epoch."""
    generator = np.random.default_rng(seed)
    size = config.batch_size
    for _ in range(config.epochs):
        order = generator.permutation(examples)
        for start in range(0, examples - size + 1, size):
            yield order[start : start + size]


def _optimiser(config: TrainConfig, per_epoch: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=round(config.warmup_epochs * per_epoch),
        decay_steps=max(config.epochs * per_epoch, round(config.warmup_epochs * per_epoch) + 1),
    )

    def is_weight(params: Any) -> Any:
        # Scales and biases of norms are not weights: decay would pull the scale to zero.
        return jax.tree.map(lambda p: p.ndim >= 2, params)

    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=is_weight),
        # As a float: optax mixes the integer count with floats, which strict promotion forbids.
        optax.sgd(
            lambda count: schedule(jnp.float32(count)), momentum=config.momentum, nesterov=True
        ),
    )


@functools.lru_cache(maxsize=32)
def _compiled(config: TrainConfig, per_epoch: int) -> tuple[optax.GradientTransformation, Any]:
    """Optimiser and jitted step; cached, so that seeds of one norm share a compilation."""
    optimiser = _optimiser(config, per_epoch)
    return optimiser, jax.jit(functools.partial(_step, optimiser))


def _step(
    optimiser: optax.GradientTransformation,
    graphdef: nnx.GraphDef,
    variables: Variables,
    optimiser_state: optax.OptState,
    batch: tuple[jax.Array, jax.Array],
) -> tuple[Variables, optax.OptState, dict[str, Any]]:
    images, labels = batch

    def loss_fn(params: nnx.State) -> tuple[jax.Array, tuple[jax.Array, nnx.State, Factors]]:
        # Copies, because the statistics are written inside the trace of the gradient.
        model = nnx.merge(graphdef, params, variables.rest, copy=True)
        run = nnx.capture(lambda model, x: model(x), nnx.Intermediate)
        logits, sown = run(model, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), (logits, _split(model)[1].rest, _factors(sown))

    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, rest, factors)), gradients = gradient_fn(variables.params)
    updates, optimiser_state = optimiser.update(gradients, optimiser_state, variables.params)
    params = optax.apply_updates(variables.params, updates)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    report = {"loss": loss, "accuracy": accuracy, "factors": factors}
    return Variables(params, rest), optimiser_state, report


def _split(model: nnx.Module) -> tuple[nnx.GraphDef, Variables]:
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, Variables(params, rest)


def _factors(sown: nnx.State) -> Factors:
    factors: Factors = {}
    for path, variable in nnx.to_flat_state(sown):
        # sow() collects a tuple, one entry per call of the layer.
        layer = "/".join(map(str, path[:-1]))
        factors.setdefault(layer, {})[str(path[-1])] = variable.get_value()[-1]
    return factors


def _log_row(step: int, epoch: float, report: dict[str, Any]) -> LogRow:
    values = jax.tree.map(float, jax.device_get(report))
    return LogRow(step, epoch, values["loss"], values["accuracy"], values["factors"])
