"""Times programs on the device that JAX has: compiled side by side, run in turn."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Run = Callable[[int], None]
"""Takes so many steps, and returns when the device has finished the last."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Pace(NamedTuple):
    """How long is measured.

    Attributes:
      rounds: each times every program once, in an order that rotates.
      seconds: of one program in a round.
    """

    rounds: int
    seconds: float


class Times(NamedTuple):
    """What was measured of programs that ran in turn.

    Attributes:
      seconds: of a step, the median over the rounds.
      ratios: the median over the rounds of a program's time over the reference's.
      spreads: half of the rounds' ratios lie between these two.
      failures: what stopped the others.
    """

    seconds: dict[str, float]
    ratios: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    failures: dict[str, str]


def reason(error: BaseException) -> str:
    """Returns an error as one short line."""
    text = f"{type(error).__name__}: {error}".strip()
    return " ".join(text.split())[:300]


def attempt(functions: Mapping[K, Callable[[], T]]) -> tuple[dict[K, T], dict[K, str]]:
    """Calls functions side by side, as compilers wait for one core each.

    Returns:
      The results, and the reasons of those that failed.
    """
    results: dict[K, T] = {}
    failures: dict[K, str] = {}
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        futures = {key: pool.submit(function) for key, function in functions.items()}
        for key, future in futures.items():
            try:
                results[key] = future.result()
            except Exception as error:  # of whatever class the compiler has; the others go on
                failures[key] = reason(error)
    return results, failures


def take_turns(runs: Mapping[str, Run], reference: str, pace: Pace) -> Times:
    """Times programs in rounds.

    Args:
      runs: by name.
      reference: the name to which ratios are taken; there are none where it failed.
      pace: how long.
    """
    steps: dict[str, int] = {}
    failures: dict[str, str] = {}
    for name, run in runs.items():
        try:
            steps[name] = _steps(run, pace.seconds)
        except Exception as error:  # as out of memory
            failures[name] = reason(error)
    names = list(steps)
    rounds: list[dict[str, float]] = []
    for index in range(pace.rounds if names else 0):
        first = index % len(names)
        turn = names[first:] + names[:first]
        rounds.append({name: _timed(runs[name], steps[name]) for name in turn})
    seconds = {name: statistics.median(found[name] for found in rounds) for name in names}
    compared = names if reference in names else []
    each = {name: [found[name] / found[reference] for found in rounds] for name in compared}
    ratios = {name: statistics.median(found) for name, found in each.items()}
    spreads = {
        name: (float(np.quantile(found, 0.25)), float(np.quantile(found, 0.75)))
        for name, found in each.items()
    }
    return Times(seconds, ratios, spreads, failures)


def _steps(run: Run, seconds: float) -> int:
    """Warms up, and returns how many steps take about that time."""
    run(1)
    run(2)
    return max(1, min(1000, round(seconds / _timed(run, 3))))


def _timed(run: Run, steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def layer_run(
    program: Callable[..., Any], variables: Any, inputs: Sequence[jax.Array], more: Sequence[Any]
) -> Run:
    """Returns steps of a program that keeps nothing, on inputs that take turns."""

    def run(steps: int) -> None:
        result = None
        for index in range(steps):
            # The result before is let go, and its memory used again.
            result = program(variables, inputs[index % len(inputs)], *more)
        jax.block_until_ready(result)

    return run


def training_run(program: Callable[..., Any], state: Any, x: jax.Array, labels: jax.Array) -> Run:
    """Returns steps of a training, each with the state of the one before, which it gives up."""
    held = [state]

    def run(steps: int) -> None:
        loss = None
        for _ in range(steps):
            held[0], loss = program(held[0], x, labels)
        jax.block_until_ready(loss)  # all that a step returns is ready together

    return run


def copy_bandwidth(bytes_read: int, pace: Pace) -> float:
    """Returns the bytes per second, read and written, of a program that adds one to an array."""
    x = jnp.zeros(bytes_read // 4, jnp.float32)
    program = jax.jit(lambda _, x: x + 1).lower(None, x).compile()
    times = take_turns({"copy": layer_run(program, None, [x], [])}, "copy", pace)
    if times.failures:
        raise RuntimeError(times.failures["copy"])
    return 2 * x.nbytes / times.seconds["copy"]


def random_inputs(shape: tuple[int, ...], dtype: str, count: int) -> list[jax.Array]:
    """Returns arrays with a mean of 1 and a deviation of 2, made on the device."""

    @jax.jit
    def make(key: jax.Array) -> jax.Array:
        values: jax.Array = jax.random.normal(key, shape, jnp.dtype(dtype))
        return 1 + 2 * values

    return [make(key) for key in jax.random.split(jax.random.key(0), count)]


def initial(shapes: Any) -> Any:
    """Returns arrays for the shapes of parameters and statistics, as they are at the start.

    Made by the host, as compilers take seconds over the random numbers of every shape of kernel.
    """
    # One block again and again: what the numbers are does not change how long a step takes.
    block = np.random.default_rng(0).standard_normal(1 << 16, np.float32)

    def fill(path: Any, like: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "'kernel'" in name:
            deviation = math.sqrt(2 / math.prod(like.shape[:-1]))
            values = np.resize(np.float32(deviation) * block, like.shape)
        else:
            ones = "'scale'" in name or "'var'" in name
            values = np.full(like.shape, 1 if ones else 0, np.float32)
        return jnp.asarray(values, like.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)
