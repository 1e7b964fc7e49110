"""What does SteinBatchNorm cost in training, against flax.linen.BatchNorm and PyTorch's layer?

Run with ``make bench``. For every shape the layers are timed in turn, so that each pair of times
comes from the same moment of a noisy machine, and the median of the pairs' ratios is printed,
with the temporary memory that XLA reserves, in sizes of the activation.
"""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from steinnorm.linen import SteinBatchNorm

SHAPES = [
    (64, 32, 32, 64),
    (64, 16, 16, 128),
    (64, 4, 4, 512),
    (8, 128, 256, 48),
    (4, 32, 32, 32, 16),
]
PAIRS = 15


def layers() -> dict[str, nn.Module]:
    """The layers to compare; the first is the reference."""
    training: dict[str, Any] = {"use_running_average": False}
    return {
        "flax": nn.BatchNorm(**training),
        "none": SteinBatchNorm(shrinkage="none", **training),
        "stein": SteinBatchNorm(shrinkage="stein", **training),
        "toward_running": SteinBatchNorm(shrinkage="toward_running", **training),
    }


def compile_step(layer: nn.Module, x: jax.Array) -> tuple[Callable[[], Any], float]:
    """Compiles forward, backward and the update of the running statistics.

    The loss is linear in y, with given weights: a loss that must keep y itself for its own
    gradient would charge that array to every layer.

    Returns:
      A function that runs one step, and the temporary memory in sizes of ``x``.
    """
    variables = layer.init(jax.random.key(0), x)
    statistics_before = variables["batch_stats"]
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def loss(params: Any, x: jax.Array, weights: jax.Array) -> Any:
        y, updated = layer.apply(
            {"params": params, "batch_stats": statistics_before}, x, mutable=["batch_stats"]
        )
        return jnp.sum(y * weights), updated

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    compiled = step.lower(variables["params"], x, weights).compile()
    analysis = compiled.memory_analysis()
    memory = math.nan if analysis is None else analysis.temp_size_in_bytes / x.nbytes
    return lambda: jax.block_until_ready(compiled(variables["params"], x, weights)), memory


def torch_step(shape: tuple[int, ...]) -> Callable[[], Any] | None:
    """PyTorch's own batch norm on the same numbers, channels second; None where not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    x = torch.randn(shape[0], shape[-1], *shape[1:-1], requires_grad=True)
    kind = torch.nn.BatchNorm3d if len(shape) == 5 else torch.nn.BatchNorm2d
    layer = kind(shape[-1])
    weights = torch.randn(x.shape)

    def step() -> None:
        x.grad = None
        (layer(x) * weights).sum().backward()

    return step


def seconds(step: Callable[[], Any]) -> float:
    """Wall-clock time of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(shape: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """Returns for every layer the median ratio to Flax's time, and the memory."""
    x = 1 + 2 * jax.random.normal(jax.random.key(0), shape)
    compiled = {name: compile_step(layer, x) for name, layer in layers().items()}
    steps = {name: step for name, (step, _) in compiled.items()}
    pytorch = torch_step(shape)
    if pytorch is not None:
        steps["torch"] = pytorch
    for step in steps.values():
        step()
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(PAIRS)]
    ratios = {
        name: statistics.median(times[name] / times["flax"] for times in rounds) for name in steps
    }
    print(
        f"{shape!s:20} flax {statistics.median(t['flax'] for t in rounds) * 1e3:6.1f} ms   "
        + "   ".join(
            f"{name} {ratios[name]:.2f}"
            + (f" (mem {compiled[name][1]:.2f})" if name in compiled else "")
            for name in steps
        ),
        flush=True,
    )
    return {name: (ratios[name], compiled[name][1] if name in compiled else 0) for name in steps}


def main() -> None:
    """Prints the table."""
    print(
        f"Training step of one layer on {jax.default_backend()}: time over flax.linen.BatchNorm's "
        f"(median of {PAIRS} pairs);\nmem: temporaries in sizes of the activation."
    )
    results = [measure(shape) for shape in SHAPES]
    for name in results[0]:
        mean = math.exp(statistics.mean(math.log(r[name][0]) for r in results))
        print(
            f"{name:15} geometric mean of ratios {mean:.2f}, largest memory "
            f"{max(r[name][1] for r in results):.2f}"
        )
    if "torch" not in results[0]:
        print("PyTorch: not installed, left out (pip install torch==2.13.0).")


if __name__ == "__main__":
    main()
