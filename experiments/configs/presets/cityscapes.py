"""Street scenes in the layout of Cityscapes, segmented by a high-resolution network.

Commands: ``python -m experiments train cityscapes --workdir W --data-dir D`` and
``python -m experiments evaluate W``.  Preset ``paper``: the settings released with arXiv 2507.08261
(``attacks/cityscapes_attack``).  Preset ``strong``: the official HRNetV2-W18, trained from scratch.
Preset ``camvid``: the paper's network on CamVid in the same layout, for two CPU cores.
"""

import dataclasses

from experiments.configs.data import CityscapesData
from experiments.configs.presets.usual_attacks import FGSM
from experiments.configs.schema import (
    NOISES,
    SMOKE_CHECKS,
    AttackConfig,
    ChecksConfig,
    EvaluationConfig,
    ExperimentConfig,
    HRNetModel,
    TrainConfig,
)

PRESETS = ("paper", "strong", "camvid")

_PAPER = TrainConfig(
    epochs=1,
    batch_size=16,
    learning_rate=5e-4,
    schedule="constant",
    warmup_epochs=0.0,
    weight_decay=0.0,
    statistics_momentum=0.99,
    patience=5,
)
_STRONG = TrainConfig(
    epochs=200,
    batch_size=16,
    learning_rate=0.05,
    warmup_epochs=2.0,
    weight_decay=5e-4,
    augment=True,
    shift=16,
    standardise=True,
    compute_dtype="bfloat16",
)
_CAMVID = TrainConfig(
    epochs=16,
    batch_size=8,
    learning_rate=0.1,
    warmup_epochs=1.0,
    weight_decay=5e-4,
    augment=True,
    shift=8,
    standardise=True,
)


# After the released code: noise of these sigmas, PGD in steps of a fifth of the radius without a
# random start.  SegPGD and SEA are what such a PGD is too weak for.
_ATTACKS = (
    AttackConfig("clipped_cauchy", "clipped_cauchy", (10 / 255, 77 / 255), shown=(77 / 255,)),
    AttackConfig("gaussian", "gaussian", (10 / 255, 77 / 255), shown=(77 / 255,)),
    FGSM,
    AttackConfig("pgd-released", "pgd", (0.03,), steps=5, step_size=0.03 / 5, shown=(0.03,)),
    AttackConfig("segpgd", "segpgd", (0.03,), steps=20, random_start=True, shown=(0.03,)),
)
# All noises at those sigmas; radii at which something is left, and SEA at the smaller.
_CAMVID_ATTACKS = (
    *(AttackConfig(name, name, (10 / 255, 77 / 255), shown=(77 / 255,)) for name in NOISES),  # type: ignore[arg-type]
    FGSM,
    AttackConfig("pgd-released", "pgd", (0.03,), steps=5, step_size=0.03 / 5, shown=(0.03,)),
    AttackConfig("segpgd", "segpgd", (0.003, 0.01), steps=20, random_start=True, shown=(0.003,)),
    AttackConfig("sea", "sea", (0.003,), steps=300, shown=(0.003,)),
)
_CHECKS = ChecksConfig(examples=8, epsilon=0.03, steps=20, restarts=2, square_queries=100)


def get_config(preset: str = "paper", smoke: bool = False) -> ExperimentConfig:
    """Returns the configuration; ``smoke`` shrinks it until it only shows that all parts run."""
    cityscapes = ExperimentConfig(
        name="cityscapes",
        preset=preset,
        dataset="Cityscapes (leftImg8bit and gtFine), 19 classes, void ignored",
        size="2,380 training and 595 validation frames (`train`), 500 test frames (`val`), 256x512",
        expected_time="not measured: Cityscapes needs a registration",
        task="segmentation",
        data=CityscapesData(),
        model=HRNetModel(),
        train=_PAPER,
        evaluation=EvaluationConfig(batch_size=16, attacks=_ATTACKS, checks=_CHECKS),
    )
    presets = {
        "paper": cityscapes,
        "strong": dataclasses.replace(
            cityscapes,
            size="2,975 training and validation on the 500 frames of `val`, 256x512",
            model=HRNetModel(size="w18"),
            train=_STRONG,
        ),
        "camvid": dataclasses.replace(
            cityscapes,
            dataset="CamVid in the layout of Cityscapes, 11 of the 19 classes, void ignored",
            size="367 training, 101 validation and 233 test frames, 192x256",
            expected_time="see experiments/README.md",
            data=CityscapesData(shape=(192, 256), validation="folder"),
            model=HRNetModel(stem_strides=(2, 2)),
            train=_CAMVID,
            evaluation=dataclasses.replace(cityscapes.evaluation, attacks=_CAMVID_ATTACKS),
        ),
    }
    return _smoke(presets[preset]) if smoke else presets[preset]


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    assert isinstance(config.data, CityscapesData)  # for mypy
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, shape=(32, 48), train_examples=8),
        model=HRNetModel(size="smoke"),
        train=dataclasses.replace(
            config.train, epochs=2, batch_size=4, shift=0, compute_dtype="float32"
        ),
        evaluation=dataclasses.replace(config.evaluation, batch_size=4, checks=SMOKE_CHECKS),
    )
