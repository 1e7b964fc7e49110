"""From a name and the flags of a command to a complete configuration."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import pydantic

from experiments.configs import presets
from experiments.configs.schema import AdversaryConfig, ExperimentConfig, ResNetModel
from experiments.errors import ConfigError

_CONFIG = pydantic.TypeAdapter(ExperimentConfig)
_GROUPS = ("data", "model", "train", "evaluation")


def resolve(
    name: str,
    *,
    preset: str | None = None,
    smoke: bool = False,
    epochs: int | None = None,
    train_examples: int | None = None,
    overrides: Sequence[str] = (),
) -> ExperimentConfig:
    """The configuration of that name with changes.

    Args:
      name: as in ``presets.config_names()``.
      preset: of that configuration; None is its first.
      smoke: shrink it first; the changes come after.
      epochs: short for ``train.epochs``.
      train_examples: short for ``data.train_examples``.
      overrides: ``path=value``, as ``train.learning_rate=0.05`` or ``data.shape=[64,64,32]``;
        values are JSON, or words where they are not.

    Raises:
      ConfigError: an unknown name, an unknown field (the message lists the fields there are), a
        value of the wrong type or out of range.
    """
    content: dict[str, Any] = dataclasses.asdict(presets.load(name, preset, smoke=smoke))
    for path, number in (("train.epochs", epochs), ("data.train_examples", train_examples)):
        if number is not None:
            _put(content, path, number)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set needs FIELD=VALUE, as train.epochs=10; got {override!r}")
        _put(content, path.strip(), _value(text.strip()))
    try:
        config = _CONFIG.validate_python(content)
    except pydantic.ValidationError as error:
        raise ConfigError(_told(error, content)) from error
    unknown = unknown_fields(content, dataclasses.asdict(config))
    if unknown:
        raise ConfigError(f"unknown settings: {', '.join(unknown)}")
    _check(config)
    return config


def unknown_fields(content: Any, known: Any, where: str = "") -> list[str]:
    """Paths of what nested dictionaries have and ``known`` has not; pydantic drops it silently."""
    if not isinstance(content, dict) or not isinstance(known, dict):
        return []
    found: list[str] = []
    for name, value in content.items():
        path = f"{where}.{name}" if where else name
        found += unknown_fields(value, known[name], path) if name in known else [path]
    return found


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets a field of nested dictionaries."""
    *parents, last = path.split(".")
    if path.split(".", maxsplit=1)[0] not in _GROUPS:
        raise ConfigError(f"unknown setting {path!r}; the groups are {', '.join(_GROUPS)}")
    place: Any = content
    for depth, name in enumerate(parents):
        if not isinstance(place, dict) or not isinstance(place.get(name), dict):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"{path}: there is no group of settings called {where}; one that is null is given "
                'as a whole first, as train.adversary={"epsilon": 0.03}'
            )
        place = place[name]
    if path == "train.adversary" and isinstance(value, dict):
        value = {**_ADVERSARY, **value}
    if last not in place or last == "kind":
        fields = ", ".join(sorted(field for field in place if field != "kind"))
        raise ConfigError(f"unknown setting {path!r}; there are: {fields}")
    place[last] = value


_ADVERSARY = {
    field.name: field.default
    for field in dataclasses.fields(AdversaryConfig)
    if field.default is not dataclasses.MISSING
}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _told(error: pydantic.ValidationError, content: dict[str, Any]) -> str:
    """The first of pydantic's complaints that is about the kind of thing that was given."""

    def fits(found: Any) -> bool:
        # Of a union every member complains; the name of its class stands behind the field's.
        field, member = str(found["loc"][0]), str(found["loc"][1:2] and found["loc"][1])
        value = content.get(field)
        kind = str(value.get("kind", "")) if isinstance(value, dict) else ""
        return not member[:1].isupper() or member.lower().startswith(kind)

    errors = error.errors()
    first = next(filter(fits, errors), errors[0])
    path = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper())
    return f"{path}: {first['msg']}; got {first['input']!r}"


def _check(config: ExperimentConfig) -> None:
    """Ranges that the types do not say."""
    train = config.train
    adversary = train.adversary
    limits: list[tuple[str, float | None, float, float]] = [
        ("train.epochs", train.epochs, 1, float("inf")),
        ("train.batch_size", train.batch_size, 1, float("inf")),
        ("train.learning_rate", train.learning_rate, 0, float("inf")),
        ("train.warmup_epochs", train.warmup_epochs, 0, float("inf")),
        ("train.momentum", train.momentum, 0, 1),
        ("train.weight_decay", train.weight_decay, 0, float("inf")),
        ("train.label_smoothing", train.label_smoothing, 0, 1),
        ("train.shift", train.shift, 0, float("inf")),
        ("train.statistics_momentum", train.statistics_momentum, 0, 1),
        ("train.patience", train.patience, 1, float("inf")),
        ("train.clip_norm", train.clip_norm, 0, float("inf")),
        ("data.train_examples", config.data.train_examples, 1, float("inf")),
        ("evaluation.batch_size", config.evaluation.batch_size, 1, float("inf")),
    ]
    if adversary:
        limits += [
            ("train.adversary.epsilon", adversary.epsilon, 0, 1),
            ("train.adversary.steps", adversary.steps, 1, float("inf")),
        ]
    if isinstance(config.model, ResNetModel):
        limits.append(("model.width", config.model.width, 1, float("inf")))
        if config.model.depth is None and not config.model.stage_sizes:
            raise ConfigError("model.stage_sizes must name blocks where model.depth is null")
    shape = getattr(config.data, "shape", ())
    limits += [("data.shape", size, 1, float("inf")) for size in shape]
    for path, value, low, high in limits:
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            wanted = f"at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
            raise ConfigError(f"{path} must be {wanted}; got {value}")
