"""How long does a training wait for its first step, when it starts again?

Run with ``python -m benchmarks.restart``.  Each start is a process of its own, which builds the
network of the handwritten digits, then traces, compiles and takes one step: once without JAX's
persistent cache of compiled programs, once with an empty one, then with what that one left there.
The time begins when the network is built.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from experiments import tasks
from experiments.configs.overrides import resolve
from experiments.data import devices
from experiments.data.batches import Batch
from experiments.data.examples import Examples
from experiments.models.build import build
from experiments.training.step import CompiledStep, TrainState, optimiser, split_model

ROOT = Path(__file__).resolve().parents[1]


def first_step() -> float:
    """Returns the seconds until the first step of a training is done, the network being built."""
    config = resolve("digits")
    count = config.train.batch_size
    examples = Examples(np.zeros((count, 8, 8, 1), np.uint8), np.zeros(count, np.int32))
    task = tasks.create(config.task, 10)
    model = build(
        config.model, "stein", config.train, examples=examples, outputs=task.outputs, seed=0
    )
    start = time.perf_counter()
    graphdef, params, rest = split_model(model)
    transformation = optimiser(config.train, 20)
    mesh = devices.mesh(count)
    state = devices.replicate(TrainState(params, rest, transformation.init(params)), mesh)
    step = CompiledStep(
        task, transformation, graphdef=graphdef, state=state, mesh=mesh, input_rank=4
    )
    batch = Batch(examples.inputs, examples.targets, np.ones(count, bool))
    _, report = step.take(jax.tree.leaves(state), devices.spread(batch, mesh))
    report.loss.block_until_ready()
    return time.perf_counter() - start


def in_a_process(cache: Path | None) -> float:
    """Returns ``first_step`` of a new process with that folder of compiled programs, or none."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    keeps = {"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.restart", "--one"],
        cwd=ROOT,
        env={**inherited, **keeps},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of the three starts")
    parser.add_argument("--one", action="store_true", help="one start, in this process: its time")
    arguments = parser.parse_args()
    if arguments.one:
        print(first_step())
        return
    names = ("without a cache", "with an empty one", "with that one, again")
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append([in_a_process(place) for place in (None, Path(folder), Path(folder))])
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| start | first step | of that without a cache |\n|---|---:|---:|")
    for number, name in enumerate(names):
        times = [each[number] for each in rounds]
        ratio = statistics.median(each[number] / each[0] for each in rounds)
        print(f"| {name} | {statistics.median(times):.2f} s | {ratio:.2f} |")


if __name__ == "__main__":
    main()
