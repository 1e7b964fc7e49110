"""The demo: every norm on scikit-learn's digits, attacked.

Command: ``python -m experiments demo --workdir runs/demo``.  After arXiv 2507.08261, in small: its
released attack settings (FGSM, and a PGD of 5 steps of 1/255 in a ball of 7.65/255) stand beside a
PGD that can cross its ball.  Digits of 8x8 pixels in 17 grey levels stand more than photographs
do, so the radii go up to 0.2 of the image range.
"""

import dataclasses

from experiments.configs.data import DigitsData
from experiments.configs.schema import (
    SMOKE_CHECKS,
    AttackConfig,
    ChecksConfig,
    EvaluationConfig,
    ExperimentConfig,
    ResNetModel,
    TrainConfig,
)

PRESETS = ("demo",)

_RADII = (0.03, 0.07, 0.12, 0.2)

_ATTACKS = (
    AttackConfig("gaussian", "gaussian", (0.15, 0.3), shown=(0.3,)),
    AttackConfig("fgsm", "fgsm", _RADII, shown=(0.12,)),
    AttackConfig(
        "pgd-released",
        "pgd",
        (0.03,),  # 7.65 / 255
        steps=5,
        step_size=1 / 255,
        random_start=True,
        short_reach=True,
        shown=(0.03,),
    ),
    AttackConfig("pgd", "pgd", _RADII, steps=10, random_start=True, shown=(0.07, 0.12)),
    # The same with the other loss.  The cross-entropy weighs an image by how wrong it already is;
    # where images share their statistics, those that have fallen then steer the whole batch.
    # Batch norm with test-batch statistics kept 38 % at radius 0.12 under it, 9 % under the margin.
    AttackConfig("pgd-margin", "pgd", _RADII, steps=10, random_start=True, loss="margin"),
)


_CHECKS = ChecksConfig(epsilon=0.07, steps=10, restarts=3, square_queries=200)


def get_config(preset: str = "demo", smoke: bool = False) -> ExperimentConfig:
    """Returns the configuration; ``smoke`` shrinks it until it only shows that all parts run."""
    config = ExperimentConfig(
        name="digits",
        preset=preset,
        dataset="scikit-learn's digits (UCI optical recognition of handwritten digits)",
        size="1,297 training and 500 test images, 8x8x1, 10 classes",
        expected_time="4 to 6 min for 8 norms x 2 seeds on 2 CPU cores",
        task="classification",
        data=DigitsData(),
        model=ResNetModel(depth=None, width=8, stage_sizes=(1, 1)),
        train=TrainConfig(epochs=12, batch_size=64, learning_rate=0.1),
        evaluation=EvaluationConfig(
            batch_size=100, attacks=_ATTACKS, shown_worst=(0.07, 0.12), checks=_CHECKS
        ),
    )
    return _smoke(config) if smoke else config


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    attacks = tuple(
        dataclasses.replace(
            attack,
            epsilons=attack.epsilons[:1],
            shown=attack.epsilons[:1],
            steps=min(attack.steps, 2),
        )
        for attack in config.evaluation.attacks
    )
    evaluation = dataclasses.replace(
        config.evaluation,
        batch_size=25,
        attacks=attacks,
        shown_worst=_RADII[:1],
        checks=SMOKE_CHECKS,
    )
    return dataclasses.replace(
        config,
        data=DigitsData(train_examples=128, test_examples=50),
        model=ResNetModel(depth=None, width=4, stage_sizes=(1,)),
        train=dataclasses.replace(config.train, epochs=2, batch_size=32),
        evaluation=evaluation,
    )
