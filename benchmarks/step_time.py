"""What does SteinBatchNorm cost in training, against flax.linen.BatchNorm and PyTorch's layer?

Run with ``make bench``. Every peer runs in a process of its own, because a peer slows down what
comes after it in the same process: Flax took twice its time behind PyTorch. The processes wait for
their turn, so that only one works at a time. A round times each of them once, in an order that
rotates, and the median of the rounds' ratios to Flax is printed, with the temporary memory that
XLA reserves, in sizes of the activation, and the time to compile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steinnorm.attacks.files import write_text

SHAPES = [
    (64, 32, 32, 64),
    (64, 16, 16, 128),
    (64, 4, 4, 512),
    (8, 128, 256, 48),
    (4, 32, 32, 32, 16),
]
REFERENCE = "flax"
PEERS = (REFERENCE, "none", "stein", "toward_running", "torch")
TORCH = "torch==2.13.0"
BUSY = 0.7  # load average from which the table says that it was not alone
COMPILATIONS = 3  # each from empty caches, of which the median counts

Step = Callable[[], Any]


class Build(NamedTuple):
    """What there is to know about a peer before it runs.

    Attributes:
      compile: seconds to trace and compile the step, the median of a few times; None where
        nothing is compiled.
      memory: temporaries in sizes of the activation; None where nobody knows.
    """

    compile: float | None
    memory: float | None


class Row(NamedTuple):
    """What was measured for one shape.

    Attributes:
      shape: of the activation.
      seconds: of Flax's step, the median over the rounds.
      ratios: peer -> the median over the rounds of its time over Flax's.
      builds: peer -> what its process said when it was ready.
    """

    shape: tuple[int, ...]
    seconds: float
    ratios: dict[str, float]
    builds: dict[str, Build]


# The processes of the peers. JAX and PyTorch are imported there only.


def jax_step(name: str, shape: tuple[int, ...]) -> tuple[Step, Build]:
    """Compiles forward, backward and the update of the running statistics.

    The loss is linear in y, with given weights: a loss that must keep y itself for its own
    gradient would charge that array to every layer.
    """
    jax = importlib.import_module("jax")
    layer: Any
    if name == REFERENCE:
        layer = importlib.import_module("flax.linen").BatchNorm(use_running_average=False)
    else:
        stein = importlib.import_module("steinnorm.linen").SteinBatchNorm
        layer = stein(use_running_average=False, shrinkage=name)
    x = 1 + 2 * jax.random.normal(jax.random.key(0), shape)
    weights = jax.random.normal(jax.random.key(1), shape)
    variables = layer.init(jax.random.key(2), x)
    params, before = variables["params"], variables["batch_stats"]

    def loss(params: Any, x: Any, weights: Any, before: Any) -> Any:
        variables = {"params": params, "batch_stats": before}
        y, after = layer.apply(variables, x, mutable=["batch_stats"])
        return (y * weights).sum(), after

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    arguments = jax.block_until_ready((params, x, weights, before))
    times = []
    for _ in range(COMPILATIONS):
        jax.clear_caches()
        start = time.perf_counter()
        compiled = step.lower(*arguments).compile()
        times.append(time.perf_counter() - start)
    analysis = compiled.memory_analysis()
    memory = None if analysis is None else analysis.temp_size_in_bytes / x.nbytes
    return lambda: jax.block_until_ready(compiled(*arguments)), Build(
        statistics.median(times), memory
    )


def torch_step(shape: tuple[int, ...]) -> tuple[Step, Build]:
    """Builds the same step of PyTorch's own batch norm, channels second."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    x = (1 + 2 * torch.randn(shape[0], shape[-1], *shape[1:-1])).requires_grad_()
    kind = torch.nn.BatchNorm3d if len(shape) == 5 else torch.nn.BatchNorm2d
    layer = kind(shape[-1])
    weights = torch.randn(x.shape)

    def step() -> None:
        x.grad = None
        layer.zero_grad()
        (layer(x) * weights).sum().backward()

    return step, Build(None, None)


def seconds(step: Step) -> float:
    """Returns the wall-clock time of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def work(name: str, shape: tuple[int, ...], steps: int) -> None:
    """Answers in lines of JSON: first what was built, then the times of each ``run``."""
    step, build = torch_step(shape) if name == "torch" else jax_step(name, shape)
    step()
    print(json.dumps(build), flush=True)
    for command in sys.stdin:
        if command.strip() != "run":
            raise ValueError(f"unknown command {command!r}; expected 'run'")
        step()  # wakes the threads and fills the caches that the other peers have used
        print(json.dumps([seconds(step) for _ in range(steps)]), flush=True)


# The process that asks them in turn.


class Worker:
    """A peer's process, that is idle but for the time of its answers.

    Args:
      name: one of ``PEERS``.
      shape: of the activation.
      steps: timed per run.
    """

    def __init__(self, name: str, shape: tuple[int, ...], steps: int):
        self.name = name
        command = [sys.executable, "-m", "benchmarks.step_time", "--worker", name]
        command += ["--shape", ",".join(map(str, shape)), "--steps", str(steps)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.build = Build(*self._answer())

    def run(self) -> float:
        """Returns the median time of a few steps."""
        assert self._process.stdin is not None
        print("run", file=self._process.stdin, flush=True)
        return statistics.median(self._answer())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def workers(names: Sequence[str], shape: tuple[int, ...], steps: int) -> Iterator[list[Worker]]:
    """Starts one process per peer, one after another; ends all of them."""
    with contextlib.ExitStack() as stack:
        started = []
        for name in names:
            started.append(Worker(name, shape, steps))
            stack.callback(started[-1].close)
        yield started


def measure(names: Sequence[str], shape: tuple[int, ...], rounds: int, steps: int) -> Row:
    """Times the peers in turn for one shape."""
    times = []
    with workers(names, shape, steps) as peers:
        for index in range(rounds):
            first = index % len(peers)
            times.append({peer.name: peer.run() for peer in peers[first:] + peers[:first]})
        builds = {peer.name: peer.build for peer in peers}
    ratios = {name: statistics.median(t[name] / t[REFERENCE] for t in times) for name in names}
    return Row(shape, statistics.median(t[REFERENCE] for t in times), ratios, builds)


# What is printed.


def processor() -> str:
    """Returns the processor's name and the number of cores that may be used."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def busy() -> str:
    """Says that other programs were running, if they were."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < BUSY:
        return ""
    # PyTorch's threads wait for each other: one core taken, and its step took five times as long.
    return (
        f"\nOther programs were running (load {load:.1f} at the start): ratios to Flax may be off, "
        "PyTorch's most."
    )


def geometric_mean(values: Sequence[float]) -> float:
    """Returns the geometric mean of positive numbers."""
    return math.exp(statistics.mean(map(math.log, values)))


def compile_ratio(row: Row, name: str) -> float | None:
    """Returns the time to compile over Flax's, None for a peer that does not compile."""
    ours, reference = row.builds[name].compile, row.builds[REFERENCE].compile
    return None if ours is None or not reference else ours / reference


def cells(row: Row) -> list[str]:
    """Returns the row's cells behind the shape: time, temporaries in [], time to compile in {}."""
    texts = []
    for name, ratio in row.ratios.items():
        build, compiling = row.builds[name], compile_ratio(row, name)
        text = f"{row.seconds * 1e3:.1f} ms" if name == REFERENCE else f"{ratio:.2f}"
        text += "" if build.memory is None else f" [{build.memory:.2f}]"
        if name == REFERENCE:
            text += f" {{{build.compile:.2f} s}}"
        elif compiling is not None:
            text += f" {{{compiling:.2f}}}"
        texts.append(text)
    return texts


def means(rows: Sequence[Row]) -> list[str]:
    """Returns the cells of the last row: geometric means and the largest temporaries."""
    texts = []
    for name in rows[0].ratios:
        text = f"{geometric_mean([row.ratios[name] for row in rows]):.2f}"
        memories = [row.builds[name].memory for row in rows]
        known = [memory for memory in memories if memory is not None]
        text += f" [{max(known):.2f}]" if known else ""
        compiling = [compile_ratio(row, name) for row in rows]
        ratios = [ratio for ratio in compiling if ratio is not None]
        text += f" {{{geometric_mean(ratios):.2f}}}" if ratios else ""
        texts.append(text)
    return texts


def markdown(cells: Sequence[str]) -> str:
    """Returns one row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def header(rounds: int, steps: int) -> str:
    """Says what the table holds, and where it was measured."""
    return (
        f"Training step of one layer, float32, on {processor()}:\n"
        f"Flax's time, and that of the others over it (median of {rounds} rounds of {steps}\n"
        "steps, every peer in its own process) [temporaries in sizes of the activation] {time to\n"
        "trace and compile, over Flax's}. Last row: geometric means, largest temporaries." + busy()
    )


def report(names: Sequence[str], rounds: int, steps: int) -> str:
    """Prints the table as it comes, and returns it."""
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(header(rounds, steps) + "\n")
    say(markdown(["input", *names]))
    say(markdown(["---"] * (len(names) + 1)))
    rows = []
    for shape in SHAPES:
        rows.append(measure(names, shape, rounds, steps))
        say(markdown([str(shape), *cells(rows[-1])]))
    say(markdown(["geometric mean", *means(rows)]))
    if "torch" not in names:
        say(f"\nPyTorch: not installed, left out (pip install {TORCH}).")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table, or is the process of one peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="each times every peer once")
    parser.add_argument("--steps", type=int, default=3, help="timed per peer and round")
    parser.add_argument("--write", type=Path, help="a file for the table, in Markdown")
    parser.add_argument("--worker", choices=PEERS, help="be this peer's process (internal)")
    parser.add_argument("--shape", help="of the process's activation (internal)")
    arguments = parser.parse_args()
    if arguments.worker:
        shape = tuple(map(int, arguments.shape.split(",")))
        work(arguments.worker, shape, arguments.steps)
        return
    has_torch = importlib.util.find_spec("torch") is not None
    names = [name for name in PEERS if name != "torch" or has_torch]
    table = report(names, arguments.rounds, arguments.steps)
    if arguments.write:
        write_text(arguments.write, table)


if __name__ == "__main__":
    main()
