"""Times whole training steps with and without ``experiments.training.xla_options``.

Run with ``python -m benchmarks.compiler_options``.  Each round times a step without and with them,
one after the other; the table has medians and the median of the ratios, and the largest difference
between the two results.
"""

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import tasks
from experiments.configs.overrides import resolve
from experiments.data.batches import Batch
from experiments.data.examples import Examples
from experiments.models.build import build
from experiments.training.step import TrainState, _train_step, optimiser, split_model
from experiments.training.xla_options import compiler_options

FLOAT32 = "train.compute_dtype=float32"
# Name, arguments of resolve(), shape of one input.  The last is the one that they are not for.
CASES: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    (
        "ResNet-9, width 16",
        {
            "name": "cifar10",
            "preset": "strong",
            "overrides": ["model.depth=9", "model.width=16", FLOAT32],
        },
        (32, 32, 3),
    ),
    (
        "ResNet-9, width 64",
        {"name": "cifar10", "preset": "strong", "overrides": ["model.depth=9", FLOAT32]},
        (32, 32, 3),
    ),
    ("HRNet, camvid", {"name": "cityscapes", "preset": "camvid"}, (192, 256, 3)),
    ("3-D CNN, hippocampus", {"name": "volumes", "preset": "hippocampus"}, (48, 64, 48, 1)),
)


def compiled(settings: dict[str, Any], shape: tuple[int, ...]) -> tuple[list[Any], tuple[Any, ...]]:
    """The step without and with the options, and its arguments."""
    config = resolve(**settings)
    size = config.train.batch_size
    generator = np.random.default_rng(0)
    inputs = generator.random((size, *shape), np.float32)
    labels = shape[:-1] if config.task == "segmentation" else ()
    targets = generator.integers(0, 2, (size, *labels), np.int32)
    task = tasks.create(config.task, 10)
    examples = Examples(inputs, targets)
    model = build(
        config.model, "stein", config.train, examples=examples, outputs=task.outputs, seed=0
    )
    graphdef, params, rest = split_model(model)
    transformation = optimiser(config.train, 10)
    state = TrainState(params, rest, transformation.init(params))
    batch = Batch(jnp.asarray(inputs), jnp.asarray(targets), jnp.ones(size, bool))
    step = functools.partial(_train_step, task, transformation, graphdef)
    forms = [
        jax.jit(step, compiler_options=options).lower(state, batch).compile()
        for options in (None, compiler_options(4, "cpu") or None)
    ]
    return forms, (state, batch)


def seconds(function: Any, arguments: tuple[Any, ...]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="rounds")
    pairs = parser.parse_args().pairs
    print("| step | plain, examples/s | with options | ratio of times | largest difference |")
    print("|---|---:|---:|---:|---:|")
    for name, settings, shape in CASES:
        forms, arguments = compiled(settings, shape)
        results = [form(*arguments) for form in forms]
        gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), *results)
        rounds = [[seconds(form, arguments) for form in forms] for _ in range(pairs)]
        size = len(arguments[1].real)
        plain, fast = (size / statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        worst = max(jax.tree.leaves(gaps))
        print(f"| {name} | {plain:.1f} | {fast:.1f} | {ratio:.2f} | {worst:.1e} |", flush=True)


if __name__ == "__main__":
    main()
