"""Arranges all devices of all processes in one row, and spreads batches over it.

Data parallel: parameters on every device, each device with its share of the batch.  The step is
jitted with these shardings and XLA adds the reductions, those of the norm layers included, so
the result is that of one device with the whole batch.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.errors import ConfigError

AXIS = "data"


def join(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of a distributed run, before anything else is done with JAX.

    Args:
      coordinator: ``host:port`` of process 0; None leaves it to JAX, which reads
        ``JAX_COORDINATOR_ADDRESS`` and the variables of Slurm, Open MPI, Kubernetes and TPU pods.
      processes: how many there are.
      process_id: of this one, from 0.

    Raises:
      ConfigError: they cannot be joined; the message is JAX's own.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join the other processes: {error}\n"
            "give --coordinator HOST:PORT --processes N --process-id I, or start the command "
            "through a launcher that JAX knows (Slurm, Open MPI, Kubernetes)"
        ) from error


def asked_for(coordinator: str | None) -> bool:
    """Returns whether the flags or the environment name a coordinator."""
    return coordinator is not None or "JAX_COORDINATOR_ADDRESS" in os.environ


def mesh() -> Mesh:
    """Returns every device of every process, in one row called ``AXIS``."""
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def process() -> tuple[int, int]:
    """Returns the number of this process, and how many there are."""
    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Returns whether this is the process that prints and writes."""
    return jax.process_index() == 0


def replicated(devices: Mesh) -> NamedSharding:
    """Returns the sharding that puts the same array on every device."""
    return NamedSharding(devices, PartitionSpec())


def check_batch(batch_size: int, devices: Mesh) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
      ConfigError: naming the nearest sizes that they can.
    """
    count = devices.size
    if batch_size % count:
        low = batch_size // count * count
        near = f"{low} or {low + count}" if low else f"{count}"
        raise ConfigError(
            f"{count} devices cannot share a batch of {batch_size} evenly; choose {near}"
        )


def spread(batch: Any, devices: Mesh) -> Any:
    """Puts this process's rows of a batch on its devices; the result is the whole batch."""
    sharding = NamedSharding(devices, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, devices: Mesh) -> Any:
    """Puts arrays, the same in every process, on every device."""
    # Unlike device_put this does not compare the processes' values by a broadcast.  np.array
    # copies: the result may be given up to a step while the originals live on.
    sharding = replicated(devices)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.array(x), np.shape(x)), tree
    )
