"""CIFAR-10 with a residual network.

Commands: ``python -m experiments train cifar10 --workdir W --data-dir D`` and
``python -m experiments evaluate W``.  Preset ``paper``: the settings released with arXiv 2507.08261
(``attacks/cifar10_attack``).  Preset ``strong``: what a practitioner would train with.  Preset
``ablation``: smaller, for comparing many norms and seeds on a CPU, with more attacks.
"""

import dataclasses

from experiments.configs.data import Cifar10Data
from experiments.configs.presets.usual_attacks import FGSM, NOISE, PGD_RELEASED
from experiments.configs.schema import (
    SMOKE_CHECKS,
    AttackConfig,
    EvaluationConfig,
    ExperimentConfig,
    ResNetModel,
    Statistics,
    TrainConfig,
)

PRESETS = ("paper", "strong", "ablation")

_ATTACKS = (
    AttackConfig("gaussian", "gaussian", (0.1, 0.3), shown=(0.1,)),
    FGSM,
    PGD_RELEASED,
    AttackConfig("pgd", "pgd", (2 / 255, 8 / 255), steps=20, random_start=True, shown=(8 / 255,)),
    AttackConfig(
        "pgd-margin",
        "pgd",
        (2 / 255, 8 / 255),
        steps=20,
        random_start=True,
        loss="margin",
        shown=(8 / 255,),
    ),
)

_PGD = AttackConfig("pgd", "pgd", (2 / 255, 8 / 255), steps=50, random_start=True, shown=(2 / 255,))
# Noises at the paper's levels; PGD with steps until more change nothing, which the checks test.
_ABLATION_ATTACKS = (
    *NOISE,
    FGSM,
    PGD_RELEASED,
    _PGD,
    dataclasses.replace(_PGD, name="pgd-margin", loss="margin"),
    AttackConfig("autoattack", "autoattack", (2 / 255,), steps=100, shown=(2 / 255,)),
)

_ABLATION_STATISTICS: tuple[Statistics, ...] = ("running", "batch", "shrunk", "calibrated")

_PAPER = TrainConfig(
    epochs=5,
    batch_size=128,
    learning_rate=1e-3,
    schedule="constant",
    warmup_epochs=0.0,
    weight_decay=1e-4,
    decay_all=True,
    patience=5,
)
_STRONG = TrainConfig(
    epochs=30,
    batch_size=128,
    learning_rate=0.1,
    warmup_epochs=2.0,
    weight_decay=5e-4,
    label_smoothing=0.1,
    augment=True,
    shift=4,
    standardise=True,
    compute_dtype="bfloat16",
)


def get_config(preset: str = "paper", smoke: bool = False) -> ExperimentConfig:
    """Returns the configuration; ``smoke`` shrinks it until it only shows that all parts run."""
    paper = preset == "paper"
    if preset == "ablation":
        config = _ablation(get_config("strong"))
        return _smoke(config) if smoke else config
    config = ExperimentConfig(
        name="cifar10",
        preset=preset,
        dataset="CIFAR-10 (TensorFlow Datasets, prepared as array_record)",
        size="40,000 training, 10,000 validation and 10,000 test images, 32x32x3, 10 classes",
        expected_time="not measured in full; see experiments/README.md",
        task="classification",
        data=Cifar10Data(),
        model=ResNetModel(depth=9 if paper else 18),
        train=_PAPER if paper else _STRONG,
        evaluation=EvaluationConfig(batch_size=128, attacks=_ATTACKS),
    )
    return _smoke(config) if smoke else config


def _ablation(strong: ExperimentConfig) -> ExperimentConfig:
    return dataclasses.replace(
        strong,
        preset="ablation",
        size="10,000 training, 2,000 validation and 1,000 test images, 32x32x3, 10 classes",
        expected_time="a training 4 minutes on 2 idle CPU cores",
        data=Cifar10Data(train_examples=10_000, validation_share=0.04, test_examples=1000),
        model=ResNetModel(depth=9, width=16),
        train=dataclasses.replace(
            strong.train, epochs=10, warmup_epochs=1.0, compute_dtype="float32"
        ),
        evaluation=dataclasses.replace(
            strong.evaluation, attacks=_ABLATION_ATTACKS, statistics=_ABLATION_STATISTICS
        ),
    )


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    return dataclasses.replace(
        config,
        data=Cifar10Data(train_examples=64, test_examples=32),
        model=ResNetModel(depth=9, width=4),
        train=dataclasses.replace(config.train, epochs=2, batch_size=16, compute_dtype="float32"),
        evaluation=dataclasses.replace(config.evaluation, batch_size=16, checks=SMOKE_CHECKS),
    )
