"""What an experiment is, as frozen dataclasses that hold no code.

A configuration is plain data: it can be written to JSON, compared, hashed and shrunk for a smoke
run with ``dataclasses.replace``.
"""

import dataclasses
from typing import Literal

Statistics = Literal["running", "batch", "none"]
"""Where a norm's statistics came from when a number was measured.

``running``: stored during training; ``batch``: the test batch's own; ``none``: the norm uses
neither (group normalisation).
"""


class ConfigError(ValueError):
    """What the user asked for cannot be run; the message says what was expected."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split.

    Attributes:
      train_examples: size of the training part; the rest of the images are left out.
      test_examples: size of the test part.
      split_seed: seed of the stratified split.  It is the same for every run, so that runs with
        different norms and seeds are compared on the same test images.
    """

    train_examples: int
    test_examples: int
    split_seed: int = 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A residual network (see ``experiments.models.resnet``).

    Attributes:
      width: channels of the first stage; every later stage doubles them.
      stage_sizes: residual blocks per stage.
      statistics_momentum: share of the running statistics that a training step keeps.
    """

    width: int
    stage_sizes: tuple[int, ...]
    statistics_momentum: float = 0.9


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Stochastic gradient descent with Nesterov momentum and a cosine schedule.

    Attributes:
      epochs: passes over the training images.
      batch_size: images per step; what is left over at the end of an epoch is dropped.
      learning_rate: peak, reached after ``warmup_epochs``.
      momentum: of the optimiser.
      weight_decay: on every weight with two or more dimensions.
      warmup_epochs: epochs of linear increase of the learning rate.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """One row family of the table: an attack at one or several strengths.

    Attributes:
      name: what the results call it.
      kind: which function of ``experiments.attacks`` runs it.
      epsilons: strengths in units of the image range [0, 1]; for noise, the root mean square.
      norm: of the ball, ``linf`` or ``l2`` (gradient attacks only).
      steps: gradient steps (``pgd`` only).
      step_size: absolute, in units of the image range; None means 2.5 * epsilon / steps.
      random_start: start at a random point of the ball (``pgd`` only).
      loss: what the attack increases, ``cross_entropy`` or ``margin``.
      short_reach: this attack is known not to cross its ball (as released with the paper), so
        the warning about it is not wanted.
      shown: the strengths that stand in the short table; the files have them all.
    """

    name: str
    kind: Literal["gaussian", "fgsm", "pgd"]
    epsilons: tuple[float, ...]
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 1
    step_size: float | None = None
    random_start: bool = False
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    short_reach: bool = False
    shown: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the test images.

    Attributes:
      batch_size: test images per batch.  Under ``batch`` statistics the result depends on it.
      statistics: sources of statistics, each measured in full.
      attacks: measured besides the clean accuracy.
      shown_strongest: radii at which the strongest attack stands in the short table.
    """

    batch_size: int
    attacks: tuple[AttackConfig, ...]
    statistics: tuple[Statistics, ...] = ("running", "batch")
    shown_strongest: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, complete.

    Attributes:
      name: the configuration's name, as in ``results.json``.
      dataset: in words, for ``list``.
      size: numbers of images and their shape, in words.
      expected_time: on the machine named in it, in words.
      data: images and split.
      model: the network.
      train: the optimisation.
      evaluation: what is measured afterwards.
    """

    name: str
    dataset: str
    size: str
    expected_time: str
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    evaluation: EvaluationConfig
