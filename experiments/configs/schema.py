"""What an experiment is, as frozen dataclasses that hold no code.

A configuration is plain data: it can be written to JSON, read back, compared, and shrunk for a
smoke run with ``dataclasses.replace``.  The annotations are the only place that says which values
a setting may have: ``experiments.configs.overrides`` checks them with pydantic, and
``experiments.configs.flags`` shows them in ``--help``.  ``kind`` tells the members of a union
apart.
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Discriminator

from experiments.configs.data import DataConfig
from experiments.configs.ranges import Count, CountOrZero, NotNegative, Positive, Share

if TYPE_CHECKING:  # importing them takes JAX, for which --help must not wait
    from steinnorm.attacks.catalogue import AttackSettings
    from steinnorm.attacks.checks import CheckSettings

Statistics = Literal["running", "batch", "shrunk", "calibrated", "calibrated_streams", "none"]
"""Where a norm's statistics came from when a number was measured.

``running``: stored during training; ``batch``: the test batch's, by the norm's own rule;
``shrunk``: these, shrunk towards the stored ones; ``calibrated``: the test batch's own, as far as
clean training examples say that they are to be trusted, and ``calibrated_streams`` for batches of
like examples; ``none``: the norm uses no statistics of batches (group normalisation).
"""


@dataclasses.dataclass(frozen=True)
class ResNetModel:
    """A residual network with the stem for small images (``experiments.models.resnet``).

    Attributes:
      depth: 9, 18, 34, 50, 101 or 152; None takes ``stage_sizes`` instead.
      width: channels of the first stage; every later stage doubles them.  The published networks
        have 64.
      stage_sizes: basic blocks per stage, where there is no ``depth``.
    """

    depth: Literal[9, 18, 34, 50, 101, 152] | None = 9
    width: Count = 64
    stage_sizes: tuple[Count, ...] = ()
    kind: Literal["resnet"] = "resnet"


@dataclasses.dataclass(frozen=True)
class Cnn3dModel:
    """The paper's small 3-D network (``experiments.models.cnn3d``).

    Attributes:
      channels: of its strided convolutions.
      hidden: sizes of its dense layers; empty for one dense layer on the pooled features.
      pool: average over all positions before the dense layers, instead of flattening.
    """

    channels: tuple[Count, ...] = (3, 6, 6, 6)
    hidden: tuple[Count, ...] = (768, 16)
    pool: bool = False
    kind: Literal["cnn3d"] = "cnn3d"


@dataclasses.dataclass(frozen=True)
class HRNetModel:
    """A high-resolution network (``experiments.models.hrnet``).

    Attributes:
      size: ``paper`` (1.54 M parameters), ``w18`` or ``w48`` (the official ones), or ``smoke``.
      stem_strides: of the two convolutions of the stem; None is those that were published with
        the size.  The paper's code has (1, 1): all of the network at full resolution; the
        official networks have (2, 2), and their output is resized.
    """

    size: Literal["paper", "w18", "w48", "smoke"] = "paper"
    stem_strides: tuple[Count, Count] | None = None
    kind: Literal["hrnet"] = "hrnet"


ModelConfig = Annotated[ResNetModel | Cnn3dModel | HRNetModel, Discriminator("kind")]


@dataclasses.dataclass(frozen=True)
class AdversaryConfig:
    """Training on attacked inputs (Madry et al. 2018).

    Attributes:
      epsilon: radius of the ball, in units of the input range [0, 1].
      steps: gradient steps; 1 with ``random_start`` is FGSM with a random start.
      step_size: absolute; None means 2.5 * epsilon / steps.
      norm: of the ball, ``linf`` or ``l2``.
      random_start: start at a random point of the ball.
    """

    epsilon: Share
    steps: Count = 7
    step_size: Positive | None = None
    norm: Literal["linf", "l2"] = "linf"
    random_start: bool = True


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Stochastic gradient descent with Nesterov momentum.

    Attributes:
      epochs: passes over the training part.
      batch_size: examples per step, over all devices; what is left over at the end of an epoch is
        dropped.
      learning_rate: peak, reached after ``warmup_epochs``.
      schedule: after the warm-up: ``constant``, or ``cosine`` down to zero.
      warmup_epochs: epochs of linear increase of the learning rate.
      momentum: of the optimiser.
      weight_decay: coupled, as in PyTorch's SGD.
      decay_all: decay scales and biases too (the paper's code does), not only weights of two or
        more dimensions.
      clip_norm: largest global norm of the gradient; None for no limit.
      label_smoothing: share of a label that is spread over all classes.
      augment: mirror images left to right at random.
      shift: shift images at random by up to so many pixels in each direction; 0 for not.
      standardise: subtract the training part's channel means and divide by its standard
        deviations, inside the model (inputs and attacks stay in [0, 1]).
      compute_dtype: of activations; parameters, statistics and losses stay in float32.
      matmul_precision: of float32 products on accelerators, in training and evaluation: ``highest``
        is float32; ``default`` rounds the factors (to bfloat16 on a TPU, to TensorFloat-32 on a
        GPU); ``high`` is between them on a TPU.  Products of bfloat16 numbers do not change.
      statistics_momentum: share of the running statistics that a training step keeps.
      patience: stop after so many epochs without a better validation score; None for never.
      adversary: train on attacked inputs; None for clean ones.
    """

    epochs: Count
    batch_size: Count
    learning_rate: NotNegative
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_epochs: NotNegative = 1.0
    momentum: Share = 0.9
    weight_decay: NotNegative = 5e-4
    decay_all: bool = False
    clip_norm: Positive | None = None
    label_smoothing: Share = 0.0
    augment: bool = False
    shift: CountOrZero = 0
    standardise: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    statistics_momentum: Share = 0.9
    patience: Count | None = None
    adversary: AdversaryConfig | None = None


NOISES = ("gaussian", "uniform", "rademacher", "truncated_gaussian", "clipped_cauchy")
"""Kinds of ``AttackConfig`` that follow no gradient and have no ball."""


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """One row family of the table: an attack at one or several strengths.

    Attributes:
      name: what the results call it.
      kind: which function of ``steinnorm.attacks`` runs it.
      epsilons: strengths in units of the image range [0, 1]; for noise, the root mean square.
      norm: of the ball, ``linf`` or ``l2`` (not for noise).
      steps: gradient steps per run (``pgd``, ``apgd``, ``fab``, ``autoattack``, ``segpgd``,
        ``sea``).
      step_size: absolute, in units of the image range; None means 2.5 * epsilon / steps (``pgd``
        and ``segpgd``).
      random_start: start at a random point of the ball (``pgd`` and ``segpgd``).
      restarts: runs, of which the worst is kept (``pgd``, ``apgd``, ``fab`` and ``segpgd``).
      loss: what the attack increases, a name that ``steinnorm.attacks`` knows (``fgsm``,
        ``pgd``, ``apgd``).
      queries: looks at the model (``square``, ``autoattack``).
      short_reach: this attack is known not to cross its ball (as released with the paper), so
        the warning about it is not wanted.
      shown: the strengths that stand in the short table; the files have them all.
    """

    name: str
    kind: Literal[
        "gaussian",
        "uniform",
        "rademacher",
        "truncated_gaussian",
        "clipped_cauchy",
        "fgsm",
        "pgd",
        "apgd",
        "fab",
        "square",
        "autoattack",
        "segpgd",
        "sea",
    ]
    epsilons: tuple[NotNegative, ...]
    norm: Literal["linf", "l2"] = "linf"
    steps: Count = 1
    step_size: Positive | None = None
    random_start: bool = False
    restarts: Count = 1
    loss: str = "cross_entropy"
    queries: Count = 5000
    short_reach: bool = False
    shown: tuple[NotNegative, ...] = ()

    @property
    def has_ball(self) -> bool:
        """Whether there is an attacker: noise has none, nor have clean inputs."""
        return self.kind not in NOISES

    @property
    def settings(self) -> "AttackSettings":
        """The attack as the library knows it, without ball and strengths."""
        from steinnorm.attacks.catalogue import AttackSettings  # noqa: PLC0415

        names = [field.name for field in dataclasses.fields(AttackSettings)]
        return AttackSettings(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class ChecksConfig:
    """How the evaluation is tested itself (``steinnorm.attacks.checks``), and on which batch.

    A smoke run has few steps and queries, and one direction and difference step.

    Attributes:
      steps: of PGD, each of 2.5 * epsilon / steps; it is also run with twice as many.
      restarts: of PGD, against a single one; with 1 this check is not applicable.
      square_queries: looks of Square at the model; with 0 this check is not applicable.
      tolerance: share of the labels by which one attack may be ahead of another.
      zero_gradient_share: largest share of the examples whose gradient may be zero or rounding.
      gradient_error: largest median relative error of the gradient against differences.
      directions: random directions of these differences; there are three fixed ones besides.
      difference_steps: largest changes of an input value, in widths of the box; the most
        favourable one decides.
      examples: of the test part, attacked as one batch; no more than a test batch has.
      norm: of the ball, ``linf`` or ``l2``.
      epsilon: radius of the ball, in units of the inputs.  Where the attacks leave less than a
        tenth of the clean accuracy there, or it is not measured, the checks are made where
        nearest to half of it is left: where nothing is, they could tell nothing.
    """

    # The defaults of the library's settings, without its import; a test compares them.
    steps: Count = 20
    restarts: Count = 5
    square_queries: CountOrZero = 1000
    tolerance: NotNegative = 0.01
    zero_gradient_share: NotNegative = 0.02
    gradient_error: NotNegative = 0.05
    directions: CountOrZero = 4
    difference_steps: tuple[Positive, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    examples: CountOrZero = 128
    norm: Literal["linf", "l2"] = "linf"
    epsilon: NotNegative = 8 / 255

    @property
    def settings(self) -> "CheckSettings":
        """The library's part."""
        from steinnorm.attacks.checks import CheckSettings  # noqa: PLC0415

        # The losses are those of the attacks, which are settings of their own.
        names = {field.name for field in dataclasses.fields(CheckSettings)} - {"losses"}
        return CheckSettings(**{name: getattr(self, name) for name in names})


SMOKE_CHECKS = ChecksConfig(
    examples=25,
    steps=2,
    restarts=2,
    square_queries=4,
    directions=1,
    difference_steps=(1e-3,),
)
"""Shows that all checks run; says nothing."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the test part.

    Attributes:
      batch_size: test examples per batch.  Under ``batch`` statistics the result depends on it.
      independent_batch_size: the same with statistics under which no example depends on its batch,
        where a larger one keeps a GPU busier and changes nothing but random numbers; None is
        ``batch_size``.
      attacks: measured besides the clean score.
      statistics: sources of statistics, each measured in full.
      calibration_examples: for calibrated statistics, how many examples of the training part they
        are calibrated on, at most; as many means and variances of examples as that say what is
        usual to a few percent.
      shown_worst: radii at which the worst of all attacks stands in the short table.
      checks: how the evaluation itself is tested, wherever there are attacks.
    """

    batch_size: Count
    attacks: tuple[AttackConfig, ...] = ()
    statistics: tuple[Statistics, ...] = ("running", "batch")
    calibration_examples: Count = 4096
    shown_worst: tuple[NotNegative, ...] = ()
    checks: ChecksConfig = dataclasses.field(default_factory=ChecksConfig)
    independent_batch_size: Count | None = None


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, complete.

    Attributes:
      name: the configuration's name, as in ``results.json``.
      preset: which of its presets.
      dataset: in words, for ``list``.
      size: numbers of examples and their shape, in words.
      expected_time: on the machine named in it, in words.
      task: what the network answers: ``classification`` (K logits), ``binary`` (one logit) or
        ``segmentation`` (K logits per pixel).
      data: examples and split.
      model: the network.
      train: the optimisation.
      evaluation: what is measured afterwards.
    """

    name: str
    preset: str
    dataset: str
    size: str
    expected_time: str
    task: Literal["classification", "binary", "segmentation"]
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    evaluation: EvaluationConfig


GROUPS = ("data", "model", "train", "evaluation")
"""The fields of ``ExperimentConfig`` that are groups of settings; the others describe it."""
