"""Attacks the batches of a training (Madry et al. 2018)."""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.configs.schema import AdversaryConfig, Statistics
from experiments.data.batches import Batch
from experiments.data.examples import as_inputs
from experiments.models.norms import in_evaluation
from experiments.tasks import Task
from experiments.training.step import TrainState, split_model
from steinnorm.attacks import Threat


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Attacks the batch of a training step, at the current weights.

    The attacked model is the one that is trained: its norms take the statistics of the attacked
    batch, and record nothing while they are attacked.

    Attributes:
      config: of the attack.
      task: whose loss is increased.
      graphdef: of the model under attack.
      seed: of random starts.
    """

    config: AdversaryConfig
    task: Task
    graphdef: nnx.GraphDef
    seed: int

    @classmethod
    def of(
        cls,
        config: AdversaryConfig | None,
        task: Task,
        model: nnx.Module,
        statistics: Statistics,
        seed: int,
    ) -> Self | None:
        """Returns the adversary of a configuration; None where it has none.

        Args:
          config: of the attack.
          task: whose loss is increased.
          model: that is trained.
          statistics: with which it is evaluated; ``none`` where its norm uses none.
          seed: of random starts.
        """
        if config is None:
            return None
        # "batch": the statistics of training, by the same rule, without recording them.
        attacked = in_evaluation(model, "none" if statistics == "none" else "batch")
        return cls(config, task, split_model(attacked)[0], seed)

    def attack(self, state: TrainState, batch: Batch, step: int) -> Batch:
        """Returns the batch with attacked inputs, float32 in [0, 1].

        Args:
          state: the weights; left as they are.
          batch: on the devices.
          step: its number, which decides the random start.
        """
        config, threat = self.config, Threat(self.config.norm, self.config.epsilon)
        size = 2.5 * config.epsilon / config.steps if config.step_size is None else config.step_size
        clean = _clean(batch.inputs)
        attacked = clean
        if config.random_start:
            key = jax.random.fold_in(jax.random.key(self.seed), step)
            attacked = _start(threat, key, clean)
        # An accelerator waits for a host that starts its steps one by one; on a CPU convolutions in
        # a loop of XLA's take four times as long.
        at_once = config.steps if _platform(batch.targets) != "cpu" else 1
        for _ in range(config.steps // at_once):
            attacked = _ascend(
                (self.task, self.graphdef, at_once),
                (state.params, state.rest),
                (attacked, clean, batch.targets),
                (threat, size),
            )
        return batch._replace(inputs=attacked)


def _platform(array: jax.Array) -> str:
    return next(iter(array.devices())).platform


_clean = jax.jit(as_inputs)


@jax.jit
def _start(threat: Threat, key: jax.Array, clean: jax.Array) -> jax.Array:
    return threat.random_start(key, clean)


@functools.partial(jax.jit, static_argnums=0)
def _ascend(
    what: tuple[Task, nnx.GraphDef, int],
    variables: tuple[nnx.State, nnx.State],
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    how: tuple[Threat, float],
) -> jax.Array:
    """Takes some steps of the attack.

    Args:
      what: task and structure of the attacked model, and how many steps.
      variables: parameters and other state of the model.
      arrays: where the attack is, the clean inputs and the targets.
      how: the threat and the size of a step.
    """
    (task, graphdef, steps), (threat, size) = what, how
    start, clean, targets = arrays

    def total(x: jax.Array) -> jax.Array:
        losses, weights = task.losses(nnx.merge(graphdef, *variables, copy=True)(x), targets)
        return jnp.sum(losses * weights)

    def ascend(_: int | jax.Array, attacked: jax.Array) -> jax.Array:
        return threat.step(attacked, clean, jax.grad(total)(attacked), size)

    if steps == 1:
        return ascend(0, start)
    return jax.lax.fori_loop(0, steps, ascend, start)
