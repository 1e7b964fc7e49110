"""The configurations by name; each module has ``PRESETS`` and ``get_config(preset, smoke)``."""

from types import ModuleType

from experiments.configs.presets import cifar10, cityscapes, digits, volumes
from experiments.configs.schema import ExperimentConfig
from experiments.errors import ConfigError

_CONFIGS: dict[str, ModuleType] = {
    "digits": digits,
    "cifar10": cifar10,
    "volumes": volumes,
    "cityscapes": cityscapes,
}


def config_names() -> tuple[str, ...]:
    """Returns the names that ``load`` knows."""
    return tuple(_CONFIGS)


def preset_names(name: str) -> tuple[str, ...]:
    """Returns the presets of a configuration, the default first.

    Args:
      name: one of ``config_names()``.

    Raises:
      ConfigError: there is none of that name; the message lists those there are.
    """
    return _module(name).PRESETS


def load(name: str, preset: str | None = None, *, smoke: bool = False) -> ExperimentConfig:
    """Returns the configuration of that name.

    Args:
      name: one of ``config_names()``.
      preset: one of ``preset_names(name)``; None is the first.
      smoke: tiny network and few examples, so that it trains in seconds.

    Raises:
      ConfigError: there is none; the message lists those there are.
    """
    module = _module(name)
    preset = preset or module.PRESETS[0]
    if preset not in module.PRESETS:
        raise ConfigError(
            f"unknown preset {preset!r} of {name}; expected one of {', '.join(module.PRESETS)}"
        )
    return module.get_config(preset, smoke)


def _module(name: str) -> ModuleType:
    if name not in _CONFIGS:
        raise ConfigError(f"unknown config {name!r}; expected one of {', '.join(_CONFIGS)}")
    return _CONFIGS[name]
