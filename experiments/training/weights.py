"""Loads the trained network of a work folder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import devices
from experiments.data.examples import Dataset
from experiments.errors import ConfigError
from experiments.models.build import build
from experiments.tasks import Task
from experiments.training.checkpoints import Checkpoints, Progress
from experiments.training.folder import RunSettings
from experiments.training.step import TrainState, optimiser, split_model


def load_weights(
    workdir: Path, settings: RunSettings, dataset: Dataset, task: Task, weights: str
) -> tuple[nnx.Module, Progress]:
    """Returns the trained network of a work folder, in training mode, and its progress.

    Args:
      workdir: of a training.
      settings: of that training.
      dataset: the training part gives the shapes.
      task: gives the number of outputs.
      weights: ``best`` or ``last``.

    Raises:
      ConfigError: there is no checkpoint, or ``weights`` is neither.
      CheckpointError: it cannot be read.
    """
    if weights not in ("best", "last"):
        raise ConfigError(f"weights must be best or last; got {weights!r}")
    config = settings.config
    model = build(
        config.model,
        settings.norm,
        config.train,
        examples=dataset.train,
        outputs=task.outputs,
        seed=settings.seed,
    )
    graphdef, params, rest = split_model(model)
    state = TrainState(params, rest, optimiser(config.train, 1).init(params))
    folder = workdir / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True) if folder.is_dir() else None
    step = None
    if checkpoints is not None:
        step = checkpoints.best_step() if weights == "best" else checkpoints.newest_step()
    if checkpoints is None or step is None:
        raise ConfigError(f"{workdir} holds no checkpoint yet; run its training first")
    one_each = devices.mesh(jax.process_count())
    found, progress = checkpoints.load(devices.replicate(state, one_each), step)
    checkpoints.close()
    # Arrays that are bound to no device, like the inputs that they will meet: bound to one they
    # would make every attack compile twice, for inputs as they are and as they were attacked.
    local = jax.tree.map(lambda x: jnp.asarray(np.asarray(x.addressable_data(0))), found)
    return nnx.merge(graphdef, local.params, local.rest), progress
