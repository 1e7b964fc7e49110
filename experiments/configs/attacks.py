"""The attacks of ``steinnorm.attacks.catalogue``, at strengths that are usual for images."""

import dataclasses

from experiments.configs.schema import AttackConfig
from experiments.errors import ConfigError
from steinnorm.attacks import catalogue

_L2 = "-l2"
_LINF_RADII = (8 / 255,)
_L2_RADII = (0.5,)
_RMS = (0.1,)


def names() -> tuple[str, ...]:
    """Returns the names that ``by_name`` knows, without their ``-l2`` forms."""
    return catalogue.names()


def by_name(name: str) -> AttackConfig:
    """Returns the attack of that name, at a usual strength.

    Args:
      name: one of ``names()``; an attack's (not a noise's) may end in ``-l2``: the Euclidean ball.

    Raises:
      ConfigError: there is none; the message lists those there are.
    """
    plain = name.removesuffix(_L2)
    known = catalogue.by_name(plain) if plain in catalogue.names() else None
    if known is None or (plain != name and not known.has_ball):
        raise ConfigError(
            f"unknown attack {name!r}; there are {', '.join(names())}, and all but the noises "
            f"also with {_L2} at the end"
        )
    settings = dataclasses.asdict(known) | {"name": name}
    if not known.has_ball:
        return AttackConfig(epsilons=_RMS, **settings)
    if plain != name:
        return AttackConfig(epsilons=_L2_RADII, norm="l2", **settings)
    return AttackConfig(epsilons=_LINF_RADII, **settings)
