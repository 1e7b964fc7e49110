"""Which data set is read, and how; plain data, whose import loads no library but pydantic."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Discriminator

from experiments.configs.ranges import Count, CountOrZero, ShareButNotAll


@dataclasses.dataclass(frozen=True)
class DigitsData:
    """scikit-learn's digits: bundled, no folder needed.

    Attributes:
      train_examples: size of the training part; the rest of the images are left out.
      test_examples: size of the test part.
      split_seed: seed of the stratified split.  It is the same for every run, so that runs with
        different norms and seeds are compared on the same test images.
    """

    train_examples: Count = 1297
    test_examples: Count = 500
    split_seed: CountOrZero = 0
    kind: Literal["digits"] = "digits"


@dataclasses.dataclass(frozen=True)
class Cifar10Data:
    """CIFAR-10 as prepared by TensorFlow Datasets, read without TensorFlow.

    Attributes:
      train_examples: size of the training part, out of what validation leaves; None is all.
      validation_share: of the 50,000 training images, kept back to choose weights by.
      test_examples: size of the test part; None is all 10,000.
      split_seed: seed of the random order from which the parts are taken.
    """

    train_examples: Count | None = None
    validation_share: ShareButNotAll = 0.2
    test_examples: Count | None = None
    split_seed: CountOrZero = 6
    kind: Literal["cifar10"] = "cifar10"


@dataclasses.dataclass(frozen=True)
class VolumesData:
    """NIfTI volumes with a table ``path,label[,site][,split][,subject]``.

    Attributes:
      shape: (depth, height, width) that every volume is brought to.
      table: file name of the table, in the data folder.
      fit: how volumes are brought to ``shape``: ``resample`` (linear) or ``crop`` (about the
        centre, padded with the lowest value where the volume is smaller).
      normalise: per volume: ``percentile`` (1st and 99th to 0 and 1, clipped), ``minmax`` (lowest
        and highest to 0 and 1) or ``none`` (values must lie in [0, 1], as FA maps do).
      harmonise: remove differences between sites (ComBat), fitted on the training part only.
      split: ``table``: as the table's column ``split`` says, where it has one; ``drawn``: by
        subject with ``split_seed``, whatever the table says.
      validation_share: of the subjects, where the parts are drawn.
      test_share: of the subjects, where the parts are drawn.
      train_examples: size of the training part; None is all of it.
      split_seed: of the split by subject, and of the choice of ``train_examples``.
    """

    shape: tuple[Count, Count, Count] = (128, 128, 64)
    table: str = "participants.csv"
    fit: Literal["resample", "crop"] = "resample"
    normalise: Literal["percentile", "minmax", "none"] = "percentile"
    harmonise: bool = False
    split: Literal["table", "drawn"] = "table"
    validation_share: ShareButNotAll = 0.2
    test_share: ShareButNotAll = 0.2
    train_examples: Count | None = None
    split_seed: CountOrZero = 0
    kind: Literal["volumes"] = "volumes"


@dataclasses.dataclass(frozen=True)
class CityscapesData:
    """Images and label maps in the folder layout of Cityscapes.

    Attributes:
      shape: (height, width) that frames are resized to: images bilinear with antialiasing, labels
        nearest.
      validation: ``folder``: the folder ``val`` is for validation and ``test`` for the test;
        ``split``: as the paper does, a share of ``train`` is for validation and ``val`` is for
        the test (the official test labels are not public).
      labels: which label files are read, ``gtFine/.../*_gtFine_LABELS.png``: ``labelIds`` (0 to
        33) or ``trainIds`` (0 to 18 and 255, files ``*_gtFine_labelTrainIds.png``).
      validation_share: share of ``train`` that ``split`` keeps for validation.
      train_examples: size of the training part; None is all of it.
      split_seed: of the share, and of the choice of ``train_examples``.
    """

    shape: tuple[Count, Count] = (256, 512)
    validation: Literal["folder", "split"] = "split"
    labels: Literal["labelIds", "trainIds"] = "labelIds"
    validation_share: ShareButNotAll = 0.2
    train_examples: Count | None = None
    split_seed: CountOrZero = 0
    kind: Literal["cityscapes"] = "cityscapes"


DataConfig = Annotated[
    DigitsData | Cifar10Data | VolumesData | CityscapesData, Discriminator("kind")
]
