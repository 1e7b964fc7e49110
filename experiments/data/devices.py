"""Arranges devices, and spreads batches over them.

Data parallel: parameters on every device, each device with its share of the batch.  Functions are
jitted with these shardings and XLA adds the reductions, those of the norm layers included, so
the result is that of one device with the whole batch.

A training spreads each batch over all devices of all processes.  An evaluation, whose attacks look
at their results on the host, spreads it over those of one process; several processes take turns,
and exchange what they found.
"""

import contextlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.errors import ConfigError

AXIS = "data"

_MOST_APART = 60
"""Seconds between the ends of two processes; after these a failure of one ends the others."""


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
        jax.distributed.initialize(
            coordinator, processes, process_id, shutdown_timeout_seconds=_MOST_APART
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join the other processes: {error}\n"
            "give --coordinator HOST:PORT --processes N --process-id I, or start the command "
            "through a launcher that JAX knows (Slurm, Open MPI, Kubernetes)"
        ) from error


def join_if_asked(
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    *,
    by_environment: bool,
) -> None:
    """Joins the other processes if the flags or the environment name a coordinator.

    Args:
      coordinator: as in ``join``.
      processes: as in ``join``.
      process_id: as in ``join``.
      by_environment: whether the user says that the environment names one.

    Raises:
      ConfigError: they cannot be joined.
    """
    if by_environment or coordinator is not None or "JAX_COORDINATOR_ADDRESS" in os.environ:
        join(coordinator, processes, process_id)


def mesh(batch_size: int) -> Mesh:
    """Returns the most devices of every process, as many of each, that can share a batch evenly.

    They lie in one row called ``AXIS``. Devices that are left over stay idle.

    Args:
      batch_size: over all processes.

    Raises:
      ConfigError: the processes cannot share it; the message names the nearest sizes that they can.
    """
    processes = jax.process_count()
    if batch_size % processes:
        low = batch_size // processes * processes
        near = f"{low} or {low + processes}" if low else f"{processes}"
        raise ConfigError(
            f"{processes} processes cannot share a batch of {batch_size} evenly; choose {near}, or "
            "another number of processes"
        )
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    size = _most(batch_size // processes, min(map(len, by_process.values())))
    # In the order of the processes, as their rows of a batch are: JAX lists devices as they are
    # connected.
    chosen = [device for number in sorted(by_process) for device in by_process[number][:size]]
    return Mesh(np.asarray(chosen), (AXIS,))


def idle(devices: Mesh) -> str:
    """Returns what to say of devices that a training leaves idle; nothing where it uses all."""
    if devices.size == jax.device_count():
        return ""
    return f"{jax.device_count()} devices cannot share the batch evenly: {devices.size} are used"


def process() -> tuple[int, int]:
    """Returns the number of this process, and how many there are."""
    return jax.process_index(), jax.process_count()


def own_mesh(count: int) -> Mesh:
    """Returns the most of this process's devices that can share so many examples evenly."""
    local = jax.local_devices()
    return Mesh(np.asarray(local[: _most(count, len(local))]), (AXIS,))


def _most(count: int, available: int) -> int:
    """Returns the largest number of devices that divides a number of examples."""
    return max(n for n in range(1, available + 1) if count % n == 0)


def is_first() -> bool:
    """Returns whether this is the process that prints and writes."""
    return jax.process_index() == 0


def replicated(devices: Mesh) -> NamedSharding:
    """Returns the sharding that puts the same array on every device."""
    return NamedSharding(devices, PartitionSpec())


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


def products(precision: str) -> contextlib.AbstractContextManager:
    """Returns a context in which float32 matrix products and convolutions have a precision.

    On a CPU they are float32 in any case, and the context does nothing.

    Args:
      precision: as ``jax.default_matmul_precision`` takes it.
    """
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def share(examples: Any, devices: Mesh) -> Any:
    """Divides examples (B, ...) among devices of this process, as ``own_mesh`` gives them."""
    if devices.size == 1:  # bound to no device, like the model: see ``training.weights``
        return jax.tree.map(jnp.asarray, examples)
    return jax.device_put(examples, NamedSharding(devices, PartitionSpec(AXIS)))


def copy_to(tree: Any, devices: Mesh) -> Any:
    """Puts arrays of this process on each of its devices, as ``own_mesh`` gives them."""
    return tree if devices.size == 1 else jax.device_put(tree, replicated(devices))


def exchange(content: bytes) -> list[bytes]:
    """Returns what each process gives, in the order of the processes; all of them must call it."""
    if jax.process_count() == 1:
        return [content]
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(content))))
    # Of few sizes, because each is compiled.
    padded = np.zeros(1 << max(int(lengths.max()), 1).bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:n].tobytes() for row, n in zip(gathered, lengths, strict=True)]


def of_first(tree: Any) -> Any:
    """Returns the arrays of the first process in every process; all of them must call it."""
    if jax.process_count() == 1:
        return tree
    of_first = multihost_utils.broadcast_one_to_all(tree)
    # Bound to no device, as what each process computes by itself: see ``training.weights``.
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), of_first)
