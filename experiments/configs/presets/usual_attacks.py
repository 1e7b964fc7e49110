"""Attacks that several configurations have, at the strengths of the paper's image experiments."""

from experiments.configs.schema import NOISES, AttackConfig

NOISE = tuple(AttackConfig(name, name, (0.1, 0.3), shown=(0.1,)) for name in NOISES)  # type: ignore[arg-type]
FGSM = AttackConfig("fgsm", "fgsm", (0.03,), shown=(0.03,))
PGD_RELEASED = AttackConfig(
    "pgd-released",
    "pgd",
    (0.03,),
    steps=5,
    step_size=1 / 255,
    random_start=True,
    short_reach=True,
    shown=(0.03,),
)
"""As released with the paper: its steps do not cross the ball."""
