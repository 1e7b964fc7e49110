"""How long do layers and training steps take on the device that JAX has?

Run with ``python -m benchmarks.device_time`` on one accelerator; it compares SteinBatchNorm with
Flax's layer and, where PyTorch with CUDA is installed, with PyTorch's. Minutes on such a machine
are dear: programs are compiled side by side, results are written after every row, what fails is
recorded and the rest goes on, and what the budget has no time for is named. The shapes are larger
than the cache of an H100, so that a layer takes as long as its memory traffic. Steps are queued
without waiting, in rounds which time every program once in an order that rotates; ratios are
medians over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device_clock as clock
from benchmarks import device_report as page
from benchmarks.device_report import Row
from benchmarks.device_torch import Peer
from benchmarks.layer_programs import (
    FORWARD,
    REFERENCE,
    TRAINING,
    arguments,
    at_test_time,
    in_training,
    layer,
    layer_at_test_time,
)
from steinnorm.attacks.files import write_json, write_text

DTYPES = ("bfloat16", "float32")
NORMS = (REFERENCE, "none", "stein", "toward_running")
SOURCES = (REFERENCE, "running", "shrunk")
NETWORK_NORMS = (REFERENCE, "stein")
SHAPES = (
    (128, 56, 56, 256),
    (128, 112, 112, 64),
    (256, 28, 28, 512),
    (256, 14, 14, 1024),
    (8, 64, 64, 64, 32),
)
TESTED = SHAPES[:1]  # at test time as well
BATCHES = {"ResNet-18": 512, "ResNet-50": 128}
SMOKE_SHAPES = ((4, 4, 4, 8), (2, 2, 4, 4, 4))
SMOKE_BATCHES = {"tiny": 4}
TINY = (2, 4, 4, 8)  # takes as long as its start
CACHE = 64 << 20  # bytes that an accelerator may keep near; smaller inputs take turns
# Seconds that are kept for a job: with less left of the budget it is not started.
EXPECTED = {page.LAYERS: 5.0, "ResNet-18": 30.0, "ResNet-50": 90.0}


@dataclasses.dataclass
class Setting:
    """What all rows are measured with.

    Attributes:
      pace: of the rounds of layers; networks take five times as long.
      bandwidth: of a copy, in bytes per second, read and written; 0 where it is not known.
      peer: PyTorch's process, None without.
    """

    pace: clock.Pace
    bandwidth: float
    peer: Peer | None


class Job(NamedTuple):
    """What is measured or left out together.

    Attributes:
      name: for ``--only``, and where it is left out or fails.
      part: the table.
      expected: seconds.
      rows: measures one row after another.
    """

    name: str
    part: str
    expected: float
    rows: Callable[[Setting], Iterator[Row]]


def compiled(function: Callable[..., Any], given: Sequence[Any], **options: Any) -> Any:
    """Compiles a function for shapes, with options of ``jax.jit``."""
    return jax.jit(function, **options).lower(*given).compile()


def compile_layer(part: str, shape: tuple[int, ...], dtype: str, mode: str, name: str) -> Any:
    """Compiles one layer: a norm in training, or a source of statistics at test time."""
    tested = part == page.TEST_TIME
    module = (layer_at_test_time if tested else layer)(name, dtype)
    function = (at_test_time if tested else in_training)(module, mode)
    variables, x = arguments(module, shape, dtype)
    return compiled(function, (variables, x) if mode == FORWARD else (variables, x, x))


def layer_rows(shape: tuple[int, ...], dtype: str, tested: bool, setting: Setting) -> Iterator[Row]:
    """Measures one layer in training, and perhaps at test time."""
    plan = [(page.LAYERS, mode, name) for mode in (FORWARD, TRAINING) for name in NORMS]
    plan += [(page.TEST_TIME, FORWARD, name) for name in SOURCES if tested]
    bytes_of_x = math.prod(shape) * jnp.dtype(dtype).itemsize
    count = max(1, min(4, math.ceil(2 * CACHE / bytes_of_x)))
    functions: dict[tuple[str, str, str], Callable[[], Any]] = {
        key: functools.partial(compile_layer, key[0], shape, dtype, *key[1:]) for key in plan
    }
    inputs = ("", "", "inputs")  # made while the layers are compiled
    functions[inputs] = functools.partial(clock.random_inputs, shape, dtype, count + 1)
    programs, failures = clock.attempt(functions)
    if inputs in failures:
        raise RuntimeError(failures[inputs])
    *xs, weights = programs.pop(inputs)
    variables = clock.initial(arguments(layer(REFERENCE, dtype), shape, dtype)[0])
    for part, mode in dict.fromkeys(key[:2] for key in plan):
        more = [weights] if mode == TRAINING else []
        of_row = {key[2]: program for key, program in programs.items() if key[:2] == (part, mode)}
        runs = {n: clock.layer_run(program, variables, xs, more) for n, program in of_row.items()}
        times = clock.take_turns(runs, REFERENCE, setting.pace)
        failed = {key[2]: why for key, why in failures.items() if key[:2] == (part, mode)}
        floors = {
            name: bytes_of_x * _passes(part, mode, name) / setting.bandwidth
            for name in (times.seconds if setting.bandwidth else ())
        }
        row = Row(
            part,
            ",".join(map(str, shape)),
            dtype,
            mode,
            times.seconds,
            times.ratios,
            times.spreads,
            {**failed, **times.failures},
            floors,
            {},
            shape[0],
        )
        yield _with_torch(row, shape, setting) if mode == TRAINING else row


def _passes(part: str, mode: str, name: str) -> int:
    return page.PASSES_AT_TEST_TIME[name] if part == page.TEST_TIME else page.PASSES[mode]


def _with_torch(row: Row, shape: tuple[int, ...], setting: Setting) -> Row:
    """Returns the row with PyTorch's times, and those over Flax's."""
    if setting.peer is None:
        return row
    seconds, failures = setting.peer.measure(
        shape=shape, dtype=row.dtype, rounds=setting.pace.rounds, seconds=setting.pace.seconds
    )
    flax = row.seconds.get(REFERENCE)
    ratios = {name: found / flax for name, found in seconds.items()} if flax else {}
    return row._replace(
        seconds={**row.seconds, **seconds},
        ratios={**row.ratios, **ratios},
        failures={**row.failures, **failures},
    )


class Built(NamedTuple):
    """A training step.

    Attributes:
      program: compiled.
      shapes: of its arguments.
      seconds: to trace and compile it.
    """

    program: Any
    shapes: Any
    seconds: float


def network_of(name: str) -> Any:
    """Returns a network with the batch that is measured."""
    # Networks need more packages than layers (pydantic), and without those layers are measured.
    from benchmarks import accelerator_programs  # noqa: PLC0415

    if name in BATCHES:
        network = accelerator_programs.NETWORKS[name]
        batch = BATCHES[name]
    else:
        build = functools.partial(
            accelerator_programs.ResNet, channels_in=3, outputs=10, width=4, stage_sizes=(1,)
        )
        network = accelerator_programs.Network(build, (1, 8, 8, 3), (1,))
        batch = SMOKE_BATCHES[name]
    return network._replace(shape=(batch, *network.shape[1:]), labels=(batch, *network.labels[1:]))


def compile_steps(network: Any, dtype: str) -> tuple[dict[str, Built], dict[str, str]]:
    """Compiles the training steps of one dtype, after each other; returns failures as well."""
    from benchmarks.accelerator_programs import training_step  # noqa: PLC0415 - as above

    built, failures = {}, {}
    for norm in NETWORK_NORMS:
        start = time.perf_counter()
        try:
            step, shapes = training_step(network, norm, dtype)
            program = compiled(step, shapes, donate_argnums=0)
        except Exception as error:  # of whatever class the compiler has; the others go on
            failures[norm] = clock.reason(error)
        else:
            built[norm] = Built(program, shapes, time.perf_counter() - start)
    return built, failures


def network_run(built: Built, x: jax.Array, labels: jax.Array) -> clock.Run:
    """Returns steps of a training from its start."""
    params, rest, memory = built.shapes[0]
    zeros = jax.tree.map(lambda a: jnp.asarray(np.zeros(a.shape, a.dtype)), memory)
    state = (clock.initial(params), clock.initial(rest), zeros)
    return clock.training_run(built.program, state, x, labels)


def network_rows(name: str, setting: Setting) -> Iterator[Row]:
    """Measures the training steps of a network, one dtype after the other."""
    network = network_of(name)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal(network.shape, np.float32))
    labels = jnp.asarray(generator.integers(0, 10, network.labels, np.int32))
    steps, lost = clock.attempt({d: functools.partial(compile_steps, network, d) for d in DTYPES})
    pace = setting.pace._replace(seconds=5 * setting.pace.seconds)
    for dtype in DTYPES:
        built, failures = steps[dtype] if dtype in steps else ({}, {"all": lost[dtype]})
        runs = {norm: network_run(found, x, labels) for norm, found in built.items()}
        times = clock.take_turns(runs, REFERENCE, pace)
        yield Row(
            page.NETWORKS,
            f"{name}, {'x'.join(map(str, network.shape))}",
            dtype,
            "step",
            times.seconds,
            times.ratios,
            times.spreads,
            {**failures, **times.failures},
            {},
            {norm: found.seconds for norm, found in built.items()},
            network.shape[0],
        )


def plan_of(smoke: bool, layers_only: bool) -> list[Job]:
    """Returns what is to be measured, the quickest and most wanted first."""
    shapes = SMOKE_SHAPES if smoke else SHAPES
    tested = SMOKE_SHAPES[:1] if smoke else TESTED
    jobs = [
        Job(
            f"{page.LAYERS} {','.join(map(str, shape))} {dtype}",
            page.LAYERS,
            EXPECTED[page.LAYERS],
            functools.partial(layer_rows, shape, dtype, shape in tested),
        )
        for shape in shapes
        for dtype in DTYPES
    ]
    for name in () if layers_only else SMOKE_BATCHES if smoke else BATCHES:
        rows = functools.partial(network_rows, name)
        jobs.append(Job(name, page.NETWORKS, EXPECTED.get(name, 0.0), rows))
    return jobs


def run(
    jobs: Sequence[Job], setting: Setting, end: float, save: Callable[[list[Row], list[str]], None]
) -> tuple[list[Row], list[str]]:
    """Measures what there is time for.

    Args:
      jobs: in their order.
      setting: for all of them.
      end: of the budget, on the clock of ``time.perf_counter``.
      save: is given the rows and the names of what is left out so far, after every row.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    for job in jobs:
        if time.perf_counter() + job.expected > end:
            left_out.append(job.name)
            continue
        if job.part == page.NETWORKS and setting.peer is not None:
            setting.peer.close()  # networks need the memory
            setting.peer = None
        start = time.perf_counter()
        try:
            for row in job.rows(setting):
                rows.append(row)
                save(rows, left_out)
        except Exception as error:  # of whatever class; the others go on
            failure = {"all": clock.reason(error)}
            rows.append(Row(job.part, job.name, "", "", {}, {}, {}, failure, {}, {}, 0))
            save(rows, left_out)
        print(f"{job.name}: {time.perf_counter() - start:.1f} s", flush=True)
    save(rows, left_out)
    return rows, left_out


def survey(pace: clock.Pace, smoke: bool) -> tuple[float, dict[str, str]]:
    """Returns the bandwidth of a copy, and what the page says of it and of the host."""
    bandwidth = clock.copy_bandwidth(1 << 16 if smoke else 1 << 30, pace)
    programs, _ = clock.attempt(
        {
            (mode, name): functools.partial(compile_layer, page.LAYERS, TINY, "float32", mode, name)
            for mode in (FORWARD, TRAINING)
            for name in NORMS
        }
    )
    variables = clock.initial(arguments(layer(REFERENCE, "float32"), TINY, "float32")[0])
    x, weights = clock.random_inputs(TINY, "float32", 2)
    runs = {
        f"{name}, {mode}": clock.layer_run(
            program, variables, [x], [weights] if mode == TRAINING else []
        )
        for (mode, name), program in programs.items()
    }
    times = clock.take_turns(runs, "", pace)
    starts = "; ".join(f"{name} {1e6 * found:.0f}" for name, found in times.seconds.items())
    return bandwidth, {
        "copy (read and written)": f"{bandwidth / 1e12:.3f} TB/s",
        "a step on a tiny input, in µs, below which no step of that layer can be seen": starts,
        "rounds": f"{pace.rounds} of {pace.seconds * 1e3:.0f} ms (networks: five times as long)",
    }


def start() -> argparse.Namespace:
    """Reads the command line, and ends the program where there is nothing to measure on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="a file for the tables, in Markdown")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    parser.add_argument("--budget", type=float, default=300, help="seconds; %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="each times every program once")
    parser.add_argument("--layers-only", action="store_true", help="no networks")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch")
    parser.add_argument("--only", default="", help="jobs whose name holds this, as ResNet-18")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, for tests on a CPU")
    given = parser.parse_args()
    # PyTorch needs memory of the same device. JAX reads this when it looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if jax.default_backend() == "cpu" and not given.smoke:
        sys.exit("JAX has no accelerator here; on a CPU there is --smoke only")
    return given


def main() -> None:
    """Measures, prints the tables and writes them."""
    began = time.perf_counter()
    given = start()
    # Its start, which imports PyTorch, takes seconds in which JAX's first programs are compiled.
    peer = None if given.no_torch else Peer("cpu" if given.smoke else "cuda")
    facts = page.about()

    def save(rows: list[Row], left_out: list[str]) -> None:
        if peer is not None and peer.version + peer.missing:
            facts["PyTorch"] = f"left out: {peer.missing}" if peer.missing else peer.version
        if given.write:
            write_text(given.write, page.document(facts, rows, left_out))
        if given.json:
            dicts = [row._asdict() for row in rows]
            write_json(given.json, {"about": facts, "rows": dicts, "left_out": left_out})

    try:
        pace = clock.Pace(given.rounds, 0.002 if given.smoke else 0.02)
        try:
            bandwidth, found = survey(pace, given.smoke)
        except Exception as error:  # then there are times without floors
            bandwidth, found = 0.0, {"copy": f"failed: {clock.reason(error)}"}
        facts.update(found)
        jobs = [j for j in plan_of(given.smoke, given.layers_only) if given.only in j.name]
        setting = Setting(pace, bandwidth, peer)
        rows, left_out = run(jobs, setting, began + given.budget, save)
    finally:
        if peer is not None:
            peer.close()
    facts["total"] = f"{time.perf_counter() - began:.0f} s"
    save(rows, left_out)
    print("\n" + page.document(facts, rows, left_out))


if __name__ == "__main__":
    main()
