"""The 8x8 handwritten digits that scikit-learn ships: real images, no download.

1,797 images of the digits 0 to 9 from the test part of the UCI set "Optical Recognition of
Handwritten Digits" (Alpaydin & Kaynak 1998); values are whole numbers from 0 to 16.
"""

import dataclasses
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiments.configs.data import DigitsData
from experiments.data.cache import Allocate, cached
from experiments.data.examples import Dataset, Examples
from experiments.errors import ConfigError

CLASSES = 10


def load(config: DigitsData, cache_dir: Path | None = None) -> Dataset:
    """Loads and splits the digits, with the same share of each class in both parts.

    Args:
      config: sizes of the parts and the seed of the split.
      cache_dir: where the parts are kept for the next time: scikit-learn takes a second to import.

    Returns:
      Inputs (N, 8, 8, 1) float32 in [0, 1], labels (N,) int32; no validation part.

    Raises:
      ConfigError: the parts need more images than there are.
    """
    versions = {name: version(name) for name in ("scikit-learn", "numpy")}
    key = {"config": dataclasses.asdict(config), "versions": versions}
    parts = cached(cache_dir, "digits", key, lambda allocate: _split(config, allocate))
    train = Examples(parts["train_images"], parts["train_labels"])
    return Dataset(
        train=train,
        validation=Examples(train.inputs[:0], train.targets[:0]),
        test=Examples(parts["test_images"], parts["test_labels"]),
        classes=CLASSES,
        class_names=tuple(str(digit) for digit in range(CLASSES)),
    )


def _split(config: DigitsData, allocate: Allocate) -> None:
    """Reads and splits the images that scikit-learn ships."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - not needed once that is cached
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    images, labels = load_digits(return_X_y=True)
    wanted = config.train_examples + config.test_examples
    if wanted > len(images) or min(config.train_examples, config.test_examples) < CLASSES:
        raise ConfigError(
            f"the digits have {len(images)} images of {CLASSES} classes, but the settings ask for "
            f"{config.train_examples} for training and {config.test_examples} for the test"
        )
    parts = train_test_split(
        (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1),
        labels.astype(np.int32),
        train_size=config.train_examples,
        test_size=config.test_examples,
        random_state=config.split_seed,
        stratify=labels,
    )
    names = ("train_images", "test_images", "train_labels", "test_labels")
    for name, part in zip(names, parts, strict=True):
        allocate(name, part.shape, part.dtype)[:] = part
