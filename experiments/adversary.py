"""Attacked batches for training (Madry et al. 2018): a host loop over one jitted step."""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import AdversaryConfig, Statistics
from experiments.data.batches import Batch
from experiments.models.norms import in_evaluation
from experiments.step import TrainState, as_inputs, split
from experiments.tasks import Task
from steinnorm.attacks import _geometry as geometry

_BOX = (0.0, 1.0)


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
        """The adversary of a configuration; None where it has none.

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
        return cls(config, task, split(attacked)[0], seed)

    def attack(self, state: TrainState, batch: Batch, step: int) -> Batch:
        """The batch with attacked inputs, float32 in [0, 1].

        Args:
          state: the weights; left as they are.
          batch: on the devices.
          step: its number, which decides the random start.
        """
        epsilon = self.config.epsilon
        size = self.config.step_size
        size = 2.5 * epsilon / self.config.steps if size is None else size
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        clean, attacked = _start(self.config, key, batch.inputs)
        for _ in range(self.config.steps):
            attacked = _ascend(
                (self.task, self.graphdef, self.config.norm),
                (state.params, state.rest),
                (attacked, clean, batch.targets),
                (epsilon, size),
            )
        return batch._replace(inputs=attacked)


@functools.partial(jax.jit, static_argnums=0)
def _start(
    config: AdversaryConfig, key: jax.Array, inputs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    clean = as_inputs(inputs)
    if not config.random_start:
        return clean, clean
    noise = geometry.random_in_ball(key, clean, config.norm, config.epsilon)
    return clean, geometry.project(clean + noise, clean, config.norm, config.epsilon, _BOX)


@functools.partial(jax.jit, static_argnums=0)
def _ascend(
    what: tuple[Task, nnx.GraphDef, str],
    variables: tuple[nnx.State, nnx.State],
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    sizes: tuple[float, float],
) -> jax.Array:
    """One step: of which task, model and norm; from where, around what, against which targets."""
    task, graphdef, norm = what
    attacked, clean, targets = arrays
    epsilon, step_size = sizes

    def total(x: jax.Array) -> jax.Array:
        losses, weights = task.losses(nnx.merge(graphdef, *variables, copy=True)(x), targets)
        return jnp.sum(losses * weights)

    moved = attacked + step_size * geometry.ascent(jax.grad(total)(attacked), norm)
    return geometry.project(moved, clean, norm, epsilon, _BOX)
