"""How long does a training wait for its checkpoints, and how long does writing them take?

Run with ``python -m benchmarks.checkpoint_wait``.  The state is that of a training of the
network with SGD and momentum, filled with random numbers, on the CPU.  The training waits for a
copy of it; before checkpoints were written beside it, it waited until they were on disk.  Each
figure is the median of a few checkpoints, with the largest in brackets.  On an accelerator the copy
is a transfer to the host, which is not measured here.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.experiment_programs import training_step
from experiments.data import devices
from experiments.training.checkpoints import Checkpoints, Progress
from experiments.training.step import TrainState

GOALS = {"ResNet-18": 0.1, "HRNetV2-W48": 1.0}  # seconds


def filled(name: str) -> TrainState:
    """Returns the state of a training with random numbers for weights, in the CPU's memory."""
    step, shapes, _ = training_step(name, "bfloat16", devices.mesh(1))
    generator = np.random.default_rng(0)

    def array(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if not np.issubdtype(shape.dtype, np.floating):
            return jax.numpy.zeros(shape.shape, shape.dtype)
        return jax.numpy.asarray(generator.standard_normal(shape.shape, np.float32))

    return step.state([array(shape) for shape in shapes])


def measure(state: TrainState, folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Returns how long the training waits for each checkpoint, and until it was on disk."""
    waits, writes = [], []
    checkpoints = Checkpoints(folder)
    # The first makes folders and starts threads.
    for number in range(1, count + 2):
        start = time.perf_counter()
        checkpoints.save(state, Progress(number))
        waits.append(time.perf_counter() - start)
        checkpoints.complete()
        writes.append(time.perf_counter() - start)
    checkpoints.close()
    return waits[1:], writes[1:]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=5, help="of each network")
    parser.add_argument("--folder", type=Path, help="where to write; the system's for short files")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| network | state | it waits | goal | until it is on disk |")
    print("|---|---:|---:|---:|---:|")
    for name, goal in GOALS.items():
        state = filled(name)
        leaves = jax.tree.leaves(state)
        size = sum(x.nbytes for x in leaves) / 1e9
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            waits, writes = measure(state, Path(folder), arguments.checkpoints)
        print(
            f"| {name} | {size:.2f} GB in {len(leaves):,} arrays | {_shown(waits)} | {goal:g} s | "
            f"{_shown(writes)} |",
            flush=True,
        )


def _shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} [{max(seconds):.3f}] s"


if __name__ == "__main__":
    main()
