"""The programs of ``experiments`` that are compiled for accelerators: training steps, attacks.

They are those that the commands run, taken from a configuration: the network, the loss, the
optimiser, the precision of products, and how a batch is divided among the chips.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import hlo_text
from benchmarks.accelerator_targets import figures, mesh, placed
from experiments import tasks
from experiments.configs.overrides import resolve
from experiments.configs.schema import ExperimentConfig, HRNetModel
from experiments.data.batches import Batch
from experiments.data.examples import Examples
from experiments.evaluation.attack_batch import as_logits_fn
from experiments.models.build import build
from experiments.models.norms import in_evaluation
from experiments.tasks import Task
from experiments.training.step import CompiledStep, TrainState, optimiser, split_model
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._loss_and_gradient import loss_and_gradient

Figures = dict[str, float]

NORM = "stein"
_TOO_LARGE = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}


class Subject(NamedTuple):
    """An experiment, as it is compiled.

    Attributes:
      config: name of the configuration.
      preset: of its presets.
      input: shape of one example.
      classes: that its data have.
      batch: examples of a training step, over all chips.
      size: of the high-resolution network, where it is not the preset's.
    """

    config: str
    preset: str
    input: tuple[int, ...]
    classes: int
    batch: int
    size: Literal["w18", "w48"] | None = None


# As in the presets, but for the batch of the volumes, 26, which four chips cannot share, and for
# HRNetV2-W48, which no preset has: Cityscapes' full frames are halved for it, one for each chip.
SUBJECTS = {
    "ResNet-18": Subject("cifar10", "strong", (32, 32, 3), 10, 128),
    "3-D CNN": Subject("volumes", "hippocampus", (48, 64, 48, 1), 2, 28),
    "HRNet": Subject("cityscapes", "paper", (256, 512, 3), 19, 16),
    "HRNetV2-W18": Subject("cityscapes", "strong", (256, 512, 3), 19, 16),
    "HRNetV2-W48": Subject("cityscapes", "strong", (512, 1024, 3), 19, 4, "w48"),
}


def training_step(name: str, dtype: str, devices: Any) -> tuple[CompiledStep, list[Any], Batch]:
    """Returns the compiled step of a training, and shapes of its arrays and of its batch.

    Args:
      name: one of ``SUBJECTS``.
      dtype: of the activations.
      devices: a mesh.
    """
    subject = SUBJECTS[name]
    config, task = _config(subject, dtype)
    graphdef, params, rest = split_model(_untrained(subject, config, task))
    transformation = optimiser(config.train, 100)
    state = TrainState(params, rest, jax.eval_shape(transformation.init, params))
    step = CompiledStep(
        task,
        transformation,
        graphdef=graphdef,
        state=state,
        mesh=devices,
        input_rank=len(subject.input) + 1,
    )
    return step, jax.tree.leaves(state), _batch(subject, config)


def measure_training(name: str, dtype: str, target: str) -> Figures:
    """Counts for the training step of an experiment.

    Args:
      name: one of ``SUBJECTS``.
      dtype: of the activations; parameters and statistics are float32.
      target: one chip or a topology of TPUs.

    Returns:
      The figures of ``accelerator_targets.figures``, and for each type of numbers how many arrays
      of it are all-reduced, ``reduced_f32`` and so on.
    """
    step, arrays, batch = training_step(name, dtype, mesh(target))
    with jax.default_matmul_precision(_config(SUBJECTS[name], dtype)[0].train.matmul_precision):
        lowered = step.lower(placed(arrays, target), placed(batch, target, split=True))
    program = lowered.compile()
    reduced = hlo_text.reduced_types(program.as_text() or "")
    return {**figures(program), **{f"reduced_{kind}": n for kind, n in reduced.items()}}


def measure_attack(name: str, source: str, target: str) -> Figures:
    """Counts for one look of an attack: the loss, its gradient and the success, at a batch.

    Args:
      name: one of ``SUBJECTS``, whose preset is evaluated as it is.
      source: of the norm's statistics.
      target: one chip or a topology of TPUs, over which the batch is divided.

    Returns:
      The figures of ``accelerator_targets.figures``; of a program that does not fit a chip only
      ``needed`` and ``available``, in bytes, as the compiler tells them.
    """
    subject = SUBJECTS[name]
    config, task = _config(subject, None)
    logits_fn = _logits_fn(_untrained(subject, config, task), source)
    count = config.evaluation.batch_size
    x = jax.ShapeDtypeStruct((count, *subject.input), jnp.float32)
    labels = jax.ShapeDtypeStruct((count, *_labels(subject, config)), jnp.int32)
    x, labels = placed((x, labels), target, split=True)
    fraction = placed(jax.ShapeDtypeStruct((), jnp.float32), target)
    criterion = Criterion(labels, step_fraction=fraction)
    with jax.default_matmul_precision(config.train.matmul_precision):
        lowered = loss_and_gradient.lower(
            placed(logits_fn, target),
            x,
            criterion,
            criterion,
            loss="cross_entropy",
            joint=source != "running",
        )
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = _TOO_LARGE.search(str(error))
        if found is None:
            raise
        needed, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
        return {"needed": needed, "available": available}
    return figures(program)


def _config(subject: Subject, dtype: str | None) -> tuple[ExperimentConfig, Task]:
    config = resolve(subject.config, preset=subject.preset)
    if dtype is not None:
        train = dataclasses.replace(config.train, compute_dtype=dtype, batch_size=subject.batch)  # type: ignore[arg-type]
        config = dataclasses.replace(config, train=train)
    if subject.size is not None:
        config = dataclasses.replace(config, model=HRNetModel(size=subject.size))
    return config, tasks.create(config.task, subject.classes, config.train.label_smoothing)


def _untrained(subject: Subject, config: ExperimentConfig, task: Task) -> nnx.Module:
    """Returns the network with shapes for arrays."""
    example = np.zeros((1, *subject.input), np.uint8)
    examples = Examples(example, np.zeros((1, *_labels(subject, config)), np.uint8))
    return nnx.eval_shape(
        lambda: build(
            config.model, NORM, config.train, examples=examples, outputs=task.outputs, seed=0
        )
    )


def _logits_fn(model: nnx.Module, source: str) -> jax.tree_util.Partial:
    return as_logits_fn(in_evaluation(model, source))  # type: ignore[arg-type]


def _labels(subject: Subject, config: ExperimentConfig) -> tuple[int, ...]:
    """Returns the shape of the labels of one example."""
    return subject.input[:-1] if config.task == "segmentation" else ()


def _batch(subject: Subject, config: ExperimentConfig) -> Batch:
    count, labels = subject.batch, _labels(subject, config)
    inputs = jnp.float32 if subject.config == "volumes" else jnp.uint8
    return Batch(
        jax.ShapeDtypeStruct((count, *subject.input), inputs),
        jax.ShapeDtypeStruct((count, *labels), jnp.uint8 if labels else jnp.int32),
        jax.ShapeDtypeStruct((count,), jnp.bool_),
    )
