"""The 8x8 handwritten digits that scikit-learn ships: real images, no download.

1,797 images of the digits 0 to 9 from the test part of the UCI set "Optical Recognition of
Handwritten Digits" (Alpaydin & Kaynak 1998); values are whole numbers from 0 to 16.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.configs.data import DigitsData
from experiments.data.examples import Dataset, Examples
from experiments.errors import ConfigError

CLASSES = 10


def load(config: DigitsData) -> Dataset:
    """Loads and splits the digits, with the same share of each class in both parts.

    Args:
      config: sizes of the parts and the seed of the split.

    Returns:
      Inputs (N, 8, 8, 1) float32 in [0, 1], labels (N,) int32; no validation part.

    Raises:
      ConfigError: the parts need more images than there are.
    """
    images, labels = load_digits(return_X_y=True)
    wanted = config.train_examples + config.test_examples
    if wanted > len(images) or min(config.train_examples, config.test_examples) < CLASSES:
        raise ConfigError(
            f"the digits have {len(images)} images of {CLASSES} classes, but the settings ask for "
            f"{config.train_examples} for training and {config.test_examples} for the test"
        )
    train_x, test_x, train_y, test_y = train_test_split(
        (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1),
        labels.astype(np.int32),
        train_size=config.train_examples,
        test_size=config.test_examples,
        random_state=config.split_seed,
        stratify=labels,
    )
    return Dataset(
        train=Examples(train_x, train_y),
        validation=Examples(train_x[:0], train_y[:0]),
        test=Examples(test_x, test_y),
        classes=CLASSES,
        class_names=tuple(str(digit) for digit in range(CLASSES)),
    )
