"""How long does the host take to start one training step of a large network?

Run with ``python -m benchmarks.host_time``; no accelerator is needed.  A call of a compiled step
costs the host what JAX does with the arguments and the results, however long the device computes.
So a program with the arguments, the donation and the results of the real step is timed that
computes nothing: it returns its arguments, whose memory it was given.  It is called in the ways in
which a step may be: with the state as a list of arrays, as the training does; with the containers
of Flax and optax, which JAX takes apart and puts together at every call; and with the structure of
the model as a static argument besides, which JAX hashes at every call.  Times are the median of the
calling thread's processor time.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import accelerator_programs
from experiments.configs.overrides import resolve
from experiments.data import devices
from experiments.data.batches import Batch
from experiments.models.hrnet import HRNet
from experiments.models.norms import norm_factory
from experiments.training.step import TrainState, optimiser, split_model

NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "ResNet-18": accelerator_programs.NETWORKS["ResNet-18"].build,
    "HRNetV2-W48": functools.partial(HRNet, size="w48", channels_in=3, outputs=19),
}


def program(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
    """Computes nothing: returns the state, and a number of the batch."""
    return state, batch.targets[0]


def with_structure(graphdef: nnx.GraphDef, state: Any, batch: Batch) -> tuple[Any, jax.Array]:
    """Computes nothing, with the structure of the model beside its arrays."""
    del graphdef
    return program(state, batch)


def seconds(call: Callable[[Any, Batch], tuple[Any, jax.Array]], state: Any, batch: Batch) -> float:
    """Returns the median processor time of a call, whose state the next one takes."""
    times = []
    for _ in range(60):
        # Processor time of this thread: that of others, and of other programs, does not count.
        start = time.thread_time()
        state, number = call(state, batch)
        times.append(time.thread_time() - start)
        number.block_until_ready()
    return statistics.median(times[10:])  # the first compile and warm up


def measure(build: Callable[..., nnx.Module]) -> tuple[int, list[float]]:
    """Returns the number of arrays of a network's training, and the seconds of the three calls."""
    graphdef, params, rest = split_model(
        nnx.eval_shape(lambda: build(norm_factory("stein"), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    )
    transformation = optimiser(resolve("cifar10", preset="strong").train, 100)
    state = TrainState(params, rest, jax.eval_shape(transformation.init, params))
    mesh = devices.mesh(1)
    sharding = devices.replicated(mesh)
    batch = Batch(jnp.zeros((1, 8, 8, 3), jnp.uint8), jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    batch = jax.device_put(batch, sharding)

    def placed() -> Any:
        return devices.replicate(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state), mesh)

    plain = jax.jit(program, donate_argnums=0, out_shardings=sharding)
    structured = jax.jit(with_structure, static_argnums=0, donate_argnums=1, out_shardings=sharding)
    return len(jax.tree.leaves(state)), [
        seconds(plain, jax.tree.leaves(placed()), batch),
        seconds(plain, placed(), batch),
        seconds(functools.partial(structured, graphdef), placed(), batch),
    ]


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| network | arrays | list of arrays | Flax's containers | and static structure |")
    print("|---|---:|---:|---:|---:|")
    for name, build in NETWORKS.items():
        count, found = measure(build)
        cells = " | ".join(f"{1e3 * value:.1f} ms" for value in found)
        print(f"| {name} | {count:,} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
