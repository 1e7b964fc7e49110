"""The experiments by name.  Each module has one ``get_config(smoke=False)``."""

from experiments.config import ExperimentConfig
from experiments.configs import digits

_CONFIGS = {"digits": digits.get_config}


def names() -> tuple[str, ...]:
    """The names that ``by_name`` knows."""
    return tuple(_CONFIGS)


def by_name(name: str, *, smoke: bool = False) -> ExperimentConfig:
    """The configuration of that name; ``smoke`` shrinks it to seconds.

    Raises:
      ValueError: there is none; the message lists those there are.
    """
    if name not in _CONFIGS:
        raise ValueError(f"unknown config {name!r}; expected one of {', '.join(_CONFIGS)}")
    return _CONFIGS[name](smoke=smoke)
