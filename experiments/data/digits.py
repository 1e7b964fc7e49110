"""The 8x8 handwritten digits that scikit-learn ships: real images, no download.

1,797 images of the digits 0 to 9 from the test part of the UCI set "Optical Recognition of
Handwritten Digits" (Alpaydin & Kaynak 1998); values are whole numbers from 0 to 16.
"""

import dataclasses

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.config import ConfigError, DataConfig

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Images and labels, split.

    Attributes:
      train_images: (N, H, W, C) float32 in [0, 1].
      train_labels: (N,) int32.
      test_images: (M, H, W, C) float32 in [0, 1], in random order: with test-batch statistics
        batches sorted by class would be another experiment.
      test_labels: (M,) int32.
      classes: number of classes.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int


def load(config: DataConfig) -> ImageData:
    """Loads and splits the digits, with the same share of each class in both parts.

    Args:
      config: sizes of the parts and the seed of the split.

    Raises:
      ConfigError: the parts need more images than there are.
    """
    images, labels = load_digits(return_X_y=True)
    wanted = config.train_examples + config.test_examples
    if wanted > len(images):
        raise ConfigError(f"the digits have {len(images)} images; {wanted} were asked for")
    train_x, test_x, train_y, test_y = train_test_split(
        (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1),
        labels.astype(np.int32),
        train_size=config.train_examples,
        test_size=config.test_examples,
        random_state=config.split_seed,
        stratify=labels,
    )
    return ImageData(train_x, train_y, test_x, test_y, CLASSES)
