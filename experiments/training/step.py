"""Compiles one step of a training, a pure function of arrays.

The NNX model is split into its structure (static), its parameters and its other state at the
boundary and merged inside.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from experiments.configs.schema import TrainConfig
from experiments.data import devices
from experiments.data.batches import Batch
from experiments.data.examples import as_inputs
from experiments.tasks import Task, mean_loss
from experiments.training.xla_options import compiler_options
from steinnorm.nnx import ShrinkageFactor

Factors = dict[str, dict[str, jax.Array]]
"""Layer -> ``mean_factor`` and ``variance_factor``, scalars; 1 = untouched, 0 = the target."""


class TrainState(NamedTuple):
    """All arrays of a training.

    Attributes:
      params: what the optimiser changes.
      rest: what the layers record, such as running statistics.
      optimiser: the optimiser's own.
    """

    params: nnx.State
    rest: nnx.State
    optimiser: optax.OptState


class StepReport(NamedTuple):
    """What a step says about its batch.

    Attributes:
      loss: mean, in nats.
      score: share of the labels that were right (of pixels, for label maps).
      factors: how much each norm layer shrank.
    """

    loss: jax.Array
    score: jax.Array
    factors: Factors


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Returns a model's structure, parameters and other state."""
    return nnx.split(model, nnx.Param, ...)  # type: ignore[return-value]


@functools.lru_cache(maxsize=32)
def optimiser(config: TrainConfig, per_epoch: int) -> optax.GradientTransformation:
    """Returns SGD with Nesterov momentum, coupled weight decay and a schedule.

    The same object for the same arguments, so that trainings which differ in the seed only share
    a compilation.

    Args:
      config: the optimisation.
      per_epoch: steps per epoch.
    """
    schedule = learning_rate(config, per_epoch)

    def is_decayed(params: Any) -> Any:
        # Scales and biases of norms are not weights: decay would pull the scale to zero.
        return jax.tree.map(lambda p: config.decay_all or p.ndim >= 2, params)

    parts = [
        optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
        # As a float: optax mixes the integer count with floats, which strict promotion forbids.
        optax.sgd(
            lambda count: schedule(jnp.float32(count)), momentum=config.momentum, nesterov=True
        ),
    ]
    if config.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*parts)


def learning_rate(config: TrainConfig, per_epoch: int) -> optax.Schedule:
    """Returns the learning rate of each step, counted from 0."""
    warmup = round(config.warmup_epochs * per_epoch)
    total = max(config.epochs * per_epoch, warmup + 1)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, total)
    rise = optax.linear_schedule(0.0, config.learning_rate, max(warmup, 1))
    flat = optax.constant_schedule(config.learning_rate)
    return optax.join_schedules([rise, flat], [warmup])


class CompiledStep:
    """The compiled step of one training, over the devices of a mesh.

    Between steps the state is a list of arrays: to take the containers of a large network apart at
    every call, and to compare its structure, costs the host more than to start the program.

    Args:
      task: loss and scores.
      transformation: of the gradients, as ``optimiser`` gives it.
      graphdef: structure of the model.
      state: of the training; only its structure matters.
      mesh: the devices.
      input_rank: number of axes of a batch of inputs.
    """

    def __init__(
        self,
        task: Task,
        transformation: optax.GradientTransformation,
        *,
        graphdef: nnx.GraphDef,
        state: TrainState,
        mesh: Mesh,
        input_rank: int,
    ):
        self._structure = jax.tree.structure(state)
        self._jitted = _jitted(
            task, transformation, graphdef, self._structure, mesh=mesh, input_rank=input_rank
        )

    def take(self, arrays: list[jax.Array], batch: Batch) -> tuple[list[jax.Array], StepReport]:
        """Takes one step; the arrays are given up (their memory is used again)."""
        return self._jitted(arrays, batch)

    def lower(self, arrays: list[Any], batch: Batch) -> jax.stages.Lowered:
        """Returns the program, to be compiled without being run; shapes do for arrays."""
        return self._jitted.lower(arrays, batch)

    def state(self, arrays: list[jax.Array]) -> TrainState:
        """Returns the state that these are the arrays of, in the order of ``jax.tree.leaves``."""
        return jax.tree.unflatten(self._structure, arrays)


@functools.lru_cache(maxsize=32)
def _jitted(
    task: Task,
    transformation: optax.GradientTransformation,
    graphdef: nnx.GraphDef,
    structure: Any,
    *,
    mesh: Mesh,
    input_rank: int,
) -> Any:
    """Returns the jitted step, whose results are on every device.

    One cached function for all trainings, so that seeds of one norm share a compilation.
    """

    def step(arrays: list[jax.Array], batch: Batch) -> tuple[list[jax.Array], StepReport]:
        state = jax.tree.unflatten(structure, arrays)
        after, report = _train_step(task, transformation, graphdef, state, batch)
        assert jax.tree.structure(after) == structure
        return jax.tree.leaves(after), report

    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=devices.replicated(mesh),
        compiler_options=compiler_options(input_rank, mesh.devices.flat[0].platform),
    )


def _train_step(
    task: Task,
    optimiser: optax.GradientTransformation,
    graphdef: nnx.GraphDef,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, StepReport]:
    inputs = as_inputs(batch.inputs)

    def loss_fn(params: nnx.State) -> tuple[jax.Array, tuple[jax.Array, nnx.State, Factors]]:
        # Copies, because the statistics are written inside the trace of the gradient.
        model = nnx.merge(graphdef, params, state.rest, copy=True)
        run = nnx.capture(lambda model, x: model(x), ShrinkageFactor)
        outputs, sown = run(model, inputs)
        loss = mean_loss(task, outputs, batch.targets)
        return loss, (outputs, split_model(model)[2], _factors(sown))

    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (outputs, rest, factors)), gradients = gradient_fn(state.params)
    updates, memory = optimiser.update(gradients, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    report = StepReport(loss, task.share_right(outputs, batch.targets), factors)
    return TrainState(params, rest, memory), report


def _factors(sown: nnx.State) -> Factors:
    factors: Factors = {}
    for path, variable in nnx.to_flat_state(sown):
        # sow() collects a tuple, one entry per call of the layer.
        layer = "/".join(map(str, path[:-1]))
        factors.setdefault(layer, {})[str(path[-1])] = variable.get_value()[-1]
    return factors
