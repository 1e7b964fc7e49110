"""How many examples per second does the loader make, and how many does a step take?

Run with ``python -m benchmarks.loading``.  Arrays of the real shapes hold random numbers; decoding
happens once, before training, and is not part of it.  The loader runs alone here, in its threads.
"""

import argparse
import time

import numpy as np

from experiments.configs.overrides import resolve
from experiments.data.augment import Augmentation
from experiments.data.batches import TrainBatches, ahead
from experiments.data.examples import Examples

CASES = (
    ("cifar10", "strong", (10_000, 32, 32, 3), np.uint8),
    ("volumes", "hippocampus", (156, 48, 64, 48, 1), np.float32),
    ("volumes", "paper", (64, 128, 128, 64, 1), np.float32),
    ("cityscapes", "camvid", (367, 192, 256, 3), np.uint8),
    ("cityscapes", "strong", (200, 256, 512, 3), np.uint8),
)


def rate(name: str, preset: str, shape: tuple[int, ...], dtype: type, least: float) -> float:
    """Examples per second over at least so many seconds."""
    config = resolve(name, preset=preset)
    generator = np.random.default_rng(0)
    inputs: np.ndarray = generator.integers(0, 2, shape).astype(dtype)
    labels = shape[1:-1] if config.task == "segmentation" else ()
    targets = generator.integers(0, 2, (shape[0], *labels)).astype(np.uint8)
    train = config.train
    batches = TrainBatches(
        Examples(inputs, targets),
        train.batch_size,
        seed=0,
        augmentation=Augmentation(train.augment, train.shift),
    )
    iterator = ahead(batches, range(10**6))
    for _ in range(8):  # what was made ahead while nobody was waiting
        next(iterator)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < least:
        next(iterator)
        count += train.batch_size
    return count / (time.perf_counter() - start)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row")
    least = parser.parse_args().seconds
    print("| config | shape | augmented | loader, examples/s |\n|---|---|---|---:|")
    for name, preset, shape, dtype in CASES:
        train = resolve(name, preset=preset).train
        augmented = "yes" if train.augment or train.shift else "no"
        speed = rate(name, preset, shape, dtype, least)
        print(f"| {name} {preset} | {shape[1:]} | {augmented} | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
