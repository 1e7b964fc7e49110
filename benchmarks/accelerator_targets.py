"""Compiles for a TPU v5e or an H100 that is not there, and counts what the program does.

JAX compiles ahead of time for a described device. That gives the optimised program, but nothing
can be run, so there are no times.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import hlo_text

AXIS = "data"
H100 = "h100"
V5E = "v5e"
_H100_DESCRIPTION = Path(__file__).with_name("h100.txtpb")
# What libtpu would ask a cloud machine for. It is read when the library is loaded.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def prepare() -> None:
    """Makes JAX compute on the CPU and compile for devices that are not there."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in _TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@functools.cache
def mesh(target: str) -> Mesh:
    """Returns the described devices as a mesh with one axis.

    Args:
      target: ``h100`` or ``v5e`` for one device, a topology such as ``v5e:2x4`` for all its chips.
    """
    if target == H100:
        description = _H100_DESCRIPTION.read_text()
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=description, topology="1x1x1"
        )
        return Mesh(np.array(topology.devices[:1]), (AXIS,))
    # The smallest topology that libtpu knows has four chips.
    name = "v5e:2x2" if target == V5E else target
    chips = topologies.get_topology_desc(name, platform="tpu").devices
    return Mesh(np.array(chips[:1] if target == V5E else chips), (AXIS,))


def placed(tree: Any, target: str, *, split: bool = False) -> Any:
    """Returns shapes as arguments on the devices: copied to all, or split along the first axis."""
    sharding = NamedSharding(mesh(target), PartitionSpec(AXIS) if split else PartitionSpec())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def compiled(function: Callable[..., Any], arguments: tuple[Any, ...], **options: Any) -> Any:
    """Compiles a function for the devices that its arguments are placed on.

    Args:
      function: of arrays.
      arguments: from :func:`placed`.
      **options: of ``jax.jit``.
    """
    return jax.jit(function, **options).lower(*arguments).compile()


def figures(program: Any) -> dict[str, float]:
    """Counts, for one device, what a compiled program moves, holds and does.

    Returns:
      ``bytes`` by XLA's cost analysis, of which a conditional counts as its most expensive branch
      and a loop of unknown length as one turn; ``temporaries`` and ``peak`` memory in bytes;
      ``instructions``; and the fields of ``hlo_text.Collectives``.
    """
    memory = program.memory_analysis()
    temporaries = memory.temp_size_in_bytes
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    text = program.as_text()
    return {
        "bytes": _bytes_moved(program),
        "temporaries": temporaries,
        "peak": temporaries + held,
        "instructions": hlo_text.instructions(text),
        **hlo_text.collectives(text)._asdict(),
    }


def _bytes_moved(program: Any) -> float:
    analysis = program.cost_analysis()
    if analysis is None:
        # For a GPU that is not there JAX has none, but the same analysis takes any module.
        from jax._src.lib import xla_client  # noqa: PLC0415 - private, so only where it is needed

        module = program._executable.xla_executable.hlo_modules()[0]
        client = jax.devices("cpu")[0].client
        analysis = xla_client._xla.hlo_module_cost_analysis(client, module)
    return analysis["bytes accessed"]
