"""Is a 3-D convolution on this device faster by patches than as XLA has it?

Run with ``python -m benchmarks.convolution3d``.  Each round times both forms, forward and both
gradients, one after the other; the table has the medians and the median of the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.models.convolution import LAYOUT, convolve3d

# Batch, depth, height, width, channels in; channels out: the hippocampus and the paper's network.
SHAPES = (
    ((26, 32, 48, 32, 1), 16),
    ((26, 16, 24, 16, 16), 32),
    ((26, 8, 12, 8, 32), 64),
    ((4, 128, 128, 64, 1), 3),
    ((4, 64, 64, 32, 3), 6),
)


def gradients(convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Both gradients of a convolution with stride 2, compiled."""

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = convolve(x, kernel, (2,) * 3, [(1, 1)] * 3, dimension_numbers=LAYOUT)
        return jnp.sum(jnp.sin(y))

    return jax.jit(jax.grad(total, argnums=(0, 1)))


def seconds(function: Callable[..., Any], *arguments: jax.Array) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="rounds")
    pairs = parser.parse_args().pairs
    print("| input | kernels | XLA's own, ms | by patches, ms | ratio |\n|---|---:|---:|---:|---:|")
    for shape, kernels in SHAPES:
        x = jax.random.normal(jax.random.key(0), shape)
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, shape[-1], kernels))
        forms = [gradients(lax.conv_general_dilated), gradients(convolve3d)]
        for form in forms:
            jax.block_until_ready(form(x, kernel))
        rounds = [[seconds(form, x, kernel) for form in forms] for _ in range(pairs)]
        own, patches = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        print(f"| {shape} | {kernels} | {own:.0f} | {patches:.0f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
