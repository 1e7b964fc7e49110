"""The attacks that every experiment can be measured under, by name, with the usual budgets."""

import dataclasses

from experiments.config import NOISES, AttackConfig, ConfigError

_L2 = "-l2"
_LINF_RADII = (8 / 255,)
_L2_RADII = (0.5,)
_RMS = (0.1,)

_ATTACKS = (
    AttackConfig("fgsm", "fgsm", ()),
    AttackConfig("pgd", "pgd", (), steps=20, random_start=True),
    AttackConfig("pgd-margin", "pgd", (), steps=20, random_start=True, loss="margin"),
    AttackConfig("apgd", "apgd", (), steps=100),
    AttackConfig("apgd-dlr", "apgd", (), steps=100, loss="dlr"),
    AttackConfig("apgd-margin", "apgd", (), steps=100, loss="margin"),
    AttackConfig("apgd-t", "apgd", (), steps=100, loss="targeted_dlr"),
    AttackConfig("fab-t", "fab", (), steps=100),
    AttackConfig("square", "square", ()),
    AttackConfig("autoattack", "autoattack", (), steps=100),
    AttackConfig("segpgd", "segpgd", (), steps=20, random_start=True),
    AttackConfig("sea", "sea", (), steps=300),
)
_KNOWN = {attack.name: attack for attack in _ATTACKS}


def names() -> tuple[str, ...]:
    """The names that ``by_name`` knows, without their ``-l2`` forms."""
    return (*NOISES, *_KNOWN)


def by_name(name: str) -> AttackConfig:
    """The attack of that name, at a usual strength.

    Args:
      name: one of ``names()``; an attack's (not a noise's) may end in ``-l2``: the Euclidean ball.

    Raises:
      ConfigError: there is none; the message lists those there are.
    """
    if name in NOISES:
        return AttackConfig(name, name, _RMS)  # type: ignore[arg-type]
    known = _KNOWN.get(name.removesuffix(_L2))
    if known is None:
        raise ConfigError(
            f"unknown attack {name!r}; there are {', '.join(names())}, and all but the noises "
            f"also with {_L2} behind"
        )
    if name.endswith(_L2):
        return dataclasses.replace(known, name=name, norm="l2", epsilons=_L2_RADII)
    return dataclasses.replace(known, epsilons=_LINF_RADII)
