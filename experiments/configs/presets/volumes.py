"""Brain volumes, two classes, with a small 3-D network.

Commands: ``python -m experiments train volumes --workdir W --data-dir D`` and
``python -m experiments evaluate W``.  Preset ``paper``: FA maps of 128x128x64 voxels and the
network of arXiv 2507.08261; of its PPMI experiment only the network was released, so the
optimisation is that of its other experiments.  Preset ``hippocampus``: MRI crops of the
hippocampus (Medical Segmentation Decathlon, Task04), small enough for a laptop.
"""

import dataclasses

from experiments.configs.data import VolumesData
from experiments.configs.presets.usual_attacks import FGSM, NOISE, PGD_RELEASED
from experiments.configs.schema import (
    SMOKE_CHECKS,
    AttackConfig,
    ChecksConfig,
    Cnn3dModel,
    EvaluationConfig,
    ExperimentConfig,
    TrainConfig,
)

PRESETS = ("paper", "hippocampus")

_ATTACKS = (
    AttackConfig("gaussian", "gaussian", (0.1,), shown=(0.1,)),
    FGSM,
    AttackConfig("pgd", "pgd", (0.03,), steps=20, random_start=True, shown=(0.03,)),
)

_PAPER = TrainConfig(
    epochs=50,
    batch_size=16,
    learning_rate=1e-3,
    schedule="constant",
    warmup_epochs=0.0,
    weight_decay=1e-4,
    decay_all=True,
    patience=5,
)
_HIPPOCAMPUS = TrainConfig(
    epochs=30,
    batch_size=26,
    learning_rate=0.005,
    warmup_epochs=2.0,
    weight_decay=5e-3,
    augment=True,
    shift=1,
    standardise=True,
)
# As on CIFAR-10, and at a smaller radius besides.
_HIPPOCAMPUS_ATTACKS = (
    *NOISE,
    FGSM,
    PGD_RELEASED,
    AttackConfig("pgd", "pgd", (0.003, 0.01, 0.03), steps=50, random_start=True, shown=(0.003,)),
    AttackConfig("autoattack", "autoattack", (0.003,), steps=100, shown=(0.003,)),
)

_CHECKS = ChecksConfig(epsilon=0.03, square_queries=300)


def get_config(preset: str = "paper", smoke: bool = False) -> ExperimentConfig:
    """Returns the configuration; ``smoke`` shrinks it until it only shows that all parts run."""
    if preset == "paper":
        config = ExperimentConfig(
            name="volumes",
            preset=preset,
            dataset="fractional-anisotropy maps as NIfTI files with a table (PPMI in the paper)",
            size="any number, brought to 128x128x64x1, 2 classes",
            expected_time="not measured: PPMI is not public",
            task="binary",
            data=VolumesData(normalise="none"),
            model=Cnn3dModel(),
            train=_PAPER,
            evaluation=EvaluationConfig(batch_size=16, attacks=_ATTACKS, checks=_CHECKS),
        )
    else:
        config = ExperimentConfig(
            name="volumes",
            preset=preset,
            dataset="Hippocampus MRI (Medical Segmentation Decathlon, Task04), small against large",
            size="156 training, 52 validation and 52 test volumes, 48x64x48x1, 2 classes",
            expected_time="see experiments/README.md",
            task="binary",
            # Larger than every volume, so that nothing of what the label measures is cut off.  The
            # price: the padding shows the size of the crop, which is related to the label.
            data=VolumesData(shape=(48, 64, 48), fit="crop"),
            model=Cnn3dModel(channels=(16, 32, 64), hidden=()),
            train=_HIPPOCAMPUS,
            evaluation=EvaluationConfig(
                batch_size=26, attacks=_HIPPOCAMPUS_ATTACKS, checks=_CHECKS
            ),
        )
    return _smoke(config) if smoke else config


def _smoke(config: ExperimentConfig) -> ExperimentConfig:
    assert isinstance(config.data, VolumesData)  # for mypy
    assert isinstance(config.model, Cnn3dModel)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, shape=(16, 16, 16), train_examples=16, normalise="percentile"
        ),
        model=Cnn3dModel(channels=(4,), hidden=config.model.hidden[1:]),
        train=dataclasses.replace(config.train, epochs=2, batch_size=8),
        evaluation=dataclasses.replace(config.evaluation, batch_size=8, checks=SMOKE_CHECKS),
    )
