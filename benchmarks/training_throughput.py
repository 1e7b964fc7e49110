"""How many images per second does a ResNet-9 train on, with SteinBatchNorm and without?

Run with ``python -m benchmarks.training_throughput``.  One step is forward, backward and SGD with
Nesterov momentum, float32, on random 32x32 images.  Every round times each network once, in turn,
so that a ratio is of two steps from the same moment of a noisy machine; the table has the medians.
All but one row are compiled with ``experiments.training.xla_options``, as ``train`` does it.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.models.norms import NormFactory, norm_factory
from experiments.models.resnet import ResNet
from experiments.training.xla_options import compiler_options

Step = Callable[[], Any]

REFERENCE = "flax.nnx.BatchNorm"
CLASSES = 10
STAGES = 4
MOMENTUM = 0.9
LEARNING_RATE = 0.01


def norms() -> dict[str, NormFactory]:
    """The norms to compare; the first is the reference."""
    return {
        REFERENCE: nnx.BatchNorm,
        "SteinBatchNorm stein": norm_factory("stein"),
        "SteinBatchNorm none": norm_factory("batch"),
        "SteinBatchNorm toward_running": norm_factory("toward_running"),
    }


def batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (size, 32, 32, 3) and labels."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((size, 32, 32, 3), dtype=np.float32)
    return images, generator.integers(0, CLASSES, size, dtype=np.int32)


def jax_step(
    norm: NormFactory,
    width: int,
    images: np.ndarray,
    labels: np.ndarray,
    options: dict[str, str],
) -> Step:
    """Returns a function that takes one training step, compiled with options at its first call."""
    model = ResNet(
        norm,
        channels_in=3,
        outputs=CLASSES,
        width=width,
        stage_sizes=(1,) * STAGES,
        rngs=nnx.Rngs(0),
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    optimiser = optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    x, y = jnp.asarray(images), jnp.asarray(labels)

    def loss_fn(params: Any, rest: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), y)
        return jnp.mean(losses), nnx.split(model, nnx.Param, ...)[2]  # type: ignore[misc]

    @functools.partial(jax.jit, compiler_options=options)
    def update(params: Any, rest: Any, optimiser_state: Any) -> Any:
        gradients, rest = jax.grad(loss_fn, has_aux=True)(params, rest)
        updates, optimiser_state = optimiser.update(gradients, optimiser_state, params)
        return optax.apply_updates(params, updates), rest, optimiser_state

    state = [(params, rest, optimiser.init(params))]

    def step() -> None:
        state[0] = jax.block_until_ready(update(*state[0]))

    return step


def torch_network(torch: Any, width: int) -> Any:
    """The same network of PyTorch's own layers."""
    nn = torch.nn

    def conv_norm(channels_in: int, channels_out: int, size: int, stride: int) -> list[Any]:
        conv = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)
        return [conv, nn.BatchNorm2d(channels_out)]

    class Block(nn.Module):  # type: ignore[name-defined]
        """Two convolutions added to the input."""

        def __init__(self, channels_in: int, channels_out: int, stride: int):
            super().__init__()
            self.main = nn.Sequential(
                *conv_norm(channels_in, channels_out, 3, stride),
                nn.ReLU(),
                *conv_norm(channels_out, channels_out, 3, 1),
            )
            project = stride != 1 or channels_in != channels_out
            layers = conv_norm(channels_in, channels_out, 1, stride) if project else []
            self.shortcut = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.main(x) + self.shortcut(x))

    layers = [*conv_norm(3, width, 3, 1), nn.ReLU(), Block(width, width, 1)]
    layers += [Block(width * 2 ** (s - 1), width * 2**s, 2) for s in range(1, STAGES)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(width * 2 ** (STAGES - 1), CLASSES))


def torch_step(torch: Any, layout: str, width: int, images: np.ndarray, labels: np.ndarray) -> Step:
    """The same step in PyTorch; ``layout`` is the name of one of its memory formats."""
    layout = getattr(torch, layout)
    network = torch_network(torch, width).to(memory_format=layout)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    y = torch.from_numpy(labels).long()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True
    )

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()

    return step


def make_steps(size: int, width: int) -> dict[str, Step]:
    """One step per row of the table."""
    images, labels = batch(size)
    options = compiler_options(images.ndim, jax.default_backend())
    steps = {name: jax_step(norm, width, images, labels, options) for name, norm in norms().items()}
    if options:
        steps["SteinBatchNorm stein, XLA's defaults"] = jax_step(
            norm_factory("stein"), width, images, labels, {}
        )
    if importlib.util.find_spec("torch") is None:
        return steps
    torch = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    for layout in ("channels_last", "contiguous_format"):
        steps[f"PyTorch BatchNorm2d, {layout}"] = torch_step(torch, layout, width, images, labels)
    return steps


def seconds(step: Step) -> float:
    """Wall-clock time of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def table(steps: dict[str, Step], size: int, pairs: int) -> str:
    """Times the steps in turn, ``pairs`` rounds, and returns the table in Markdown."""
    for step in steps.values():
        step()
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(pairs)]
    lines = ["| network | images/s | speed over flax.nnx.BatchNorm |", "|---|---:|---:|"]
    for name in steps:
        speed = size / statistics.median(times[name] for times in rounds)
        ratio = statistics.median(times[REFERENCE] / times[name] for times in rounds)
        lines.append(f"| {name} | {speed:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--pairs", type=int, default=5, help="rounds; each times every network")
    arguments = parser.parse_args()
    steps = make_steps(arguments.batch, arguments.width)
    print(
        f"ResNet-9 of width {arguments.width}, batch {arguments.batch}, float32, "
        f"{jax.default_backend()}, {os.cpu_count()} cores, medians of {arguments.pairs} rounds\n"
    )
    print(table(steps, arguments.batch, arguments.pairs))
    if not any(name.startswith("PyTorch") for name in steps):
        print("\nPyTorch: not installed, left out (pip install torch==2.13.0).")


if __name__ == "__main__":
    main()
