"""From a name and the flags of a command to a complete configuration."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic

from experiments.configs import annotations, presets
from experiments.configs.schema import (
    GROUPS,
    AdversaryConfig,
    EvaluationConfig,
    ExperimentConfig,
    ResNetModel,
)
from experiments.errors import ConfigError

_DESCRIPTIONS = ("dataset", "size", "expected_time")
_CONFIG = pydantic.TypeAdapter(ExperimentConfig)
_EVALUATION = pydantic.TypeAdapter(EvaluationConfig)
_OF_EVALUATION = "evaluation"
_WORDS = {"None": None, "True": True, "False": False}


def resolve(
    name: str,
    *,
    preset: str | None = None,
    smoke: bool = False,
    settings: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    train_examples: int | None = None,
    overrides: Sequence[str] = (),
) -> ExperimentConfig:
    """Returns the configuration of that name with changes.

    Args:
      name: as in ``presets.config_names()``.
      preset: of that configuration; None is its first.
      smoke: shrink it first; the changes come after, in the order of the arguments here.
      settings: path -> value, as ``experiments.configs.flags`` reads them.
      epochs: short for ``train.epochs``.
      train_examples: short for ``data.train_examples``.
      overrides: ``path=value``, as ``train.learning_rate=0.05`` or ``data.shape=[64,64,32]``;
        values as in ``read_value``.

    Raises:
      ConfigError: an unknown name, an unknown field (the message lists the fields there are), a
        value of the wrong type or out of range.
    """
    content: dict[str, Any] = dataclasses.asdict(presets.load(name, preset, smoke=smoke))
    for path, value in (settings or {}).items():
        _put(content, path, value)
    for path, number in (("train.epochs", epochs), ("data.train_examples", train_examples)):
        if number is not None:
            _put(content, path, number)
    _put_all(content, overrides)
    try:
        config = _CONFIG.validate_python(content)
    except pydantic.ValidationError as error:
        raise ConfigError(explained(error)) from error
    _refuse_unknown(content, config)
    check(config)
    return config


def changed_evaluation(known: EvaluationConfig, overrides: Sequence[str]) -> EvaluationConfig:
    """Returns the settings of an evaluation with changes.

    Args:
      known: the settings.
      overrides: as of ``resolve``, of the group ``evaluation`` only.

    Raises:
      ConfigError: as of ``resolve``, or a setting of another group.
    """
    for override in overrides:
        group = override.partition("=")[0].partition(".")[0].strip()
        if group in GROUPS and group != _OF_EVALUATION:
            raise ConfigError(
                f"--set {override}: {group} is a part of the training, and this network is trained "
                f"already; name a setting of {_OF_EVALUATION}, as evaluation.checks.steps=40"
            )
    content = {_OF_EVALUATION: dataclasses.asdict(known)}
    _put_all(content, overrides)
    try:
        found = _EVALUATION.validate_python(content[_OF_EVALUATION])
    except pydantic.ValidationError as error:
        raise ConfigError(explained(error, EvaluationConfig, _OF_EVALUATION)) from error
    _refuse_unknown(content[_OF_EVALUATION], found, _OF_EVALUATION)
    return found


def read_value(text: str) -> Any:
    """Returns the value that a text of the command line means.

    Args:
      text: JSON (``0.05``, ``true``, ``null``, ``[64,64,32]``), one of ``None``, ``True`` and
        ``False``, or else a word.
    """
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also of thousands of digits or brackets
        return text


def check(config: ExperimentConfig) -> None:
    """Checks what several settings must agree on; each alone is checked by its annotation.

    Raises:
      ConfigError: they do not.
    """
    model = config.model
    if isinstance(model, ResNetModel) and model.depth is None and not model.stage_sizes:
        raise ConfigError("model.stage_sizes must name blocks where model.depth is null")


def explained(
    error: pydantic.ValidationError, group: type = ExperimentConfig, where: str = ""
) -> str:
    """Returns the first complaint about settings in one line: field, wanted, given.

    Args:
      error: of a validation.
      group: the dataclass that was validated.
      where: the path of that group.
    """
    first = error.errors()[0]
    names, annotation = annotations.locate(group, first["loc"])
    path = ".".join(map(str, [where, *names] if where else names))
    if first["type"] in annotations.OUT_OF_RANGE:
        finite = "finite and " if first["type"] == "finite_number" else ""
        wanted = f"{finite}{annotations.range_of(annotation)}"
        return f"{path} must be {wanted}; got {first['input']}"
    return f"{path}: {first['msg']}; got {first['input']!r}"


def differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields path and both values where two nested settings differ; descriptions do not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one | other:
            if name not in _DESCRIPTIONS:
                path = f"{where}.{name}".strip(".")
                yield from differences(one.get(name), other.get(name), path)
    elif one != other:
        yield where, one, other


def unknown_fields(content: Any, known: Any, where: str = "") -> list[str]:
    """Returns paths of what nested dictionaries have and ``known`` has not.

    Pydantic drops such fields without a word.
    """
    if not isinstance(content, dict) or not isinstance(known, dict):
        return []
    found: list[str] = []
    for name, value in content.items():
        path = f"{where}.{name}" if where else name
        found += unknown_fields(value, known[name], path) if name in known else [path]
    return found


def check_path(config: ExperimentConfig, path: str) -> None:
    """Checks that a configuration has a setting.

    Args:
      config: the configuration.
      path: as ``train.epochs``.

    Raises:
      ConfigError: there is none; the message lists those there are.
    """
    _put(dataclasses.asdict(config), path, None)


def _refuse_unknown(content: Any, config: Any, where: str = "") -> None:
    unknown = unknown_fields(content, dataclasses.asdict(config), where)
    if unknown:
        raise ConfigError(f"unknown settings: {', '.join(unknown)}")


def _put_all(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets fields of nested dictionaries, each given as ``path=value``."""
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set needs FIELD=VALUE, as train.epochs=10; got {override!r}")
        _put(content, path.strip(), read_value(text.strip()))


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets a field of nested dictionaries."""
    *parents, last = path.split(".")
    if path.split(".", maxsplit=1)[0] not in GROUPS:
        raise ConfigError(f"unknown setting {path!r}; the groups are {', '.join(GROUPS)}")
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
