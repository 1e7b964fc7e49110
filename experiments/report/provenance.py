"""What the runs of a report were made with: settings, versions, machines, commits, time."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.configs import presets
from experiments.configs.overrides import differences
from experiments.errors import ConfigError

OF_CHECKS = "evaluation.checks."
"""How paths of the checks' settings begin."""

_PACKAGES = ("jax", "jaxlib", "flax")


class Provenance(NamedTuple):
    """That of one run; what an earlier version did not note is empty.

    Attributes:
      versions: package -> version.
      machine: devices and processor.
      commit: of this repository, when the training began.
      seconds: that a comparison spent on it; None where none noted it.
    """

    versions: Mapping[str, str]
    machine: str
    commit: str
    seconds: float | None

    @classmethod
    def of(cls, root: Path, content: Mapping[str, Any]) -> "Provenance":
        """Reads that of a work folder, whose ``config.json`` has that content."""
        return cls(
            content.get("versions") or {},
            content.get("machine") or "",
            content.get("git_commit") or "",
            _seconds(root / "comparison.json"),
        )


def _seconds(path: Path) -> float | None:
    try:
        found = json.loads(path.read_text()).get("seconds")
    except (OSError, ValueError, AttributeError):
        return None
    return float(found) if isinstance(found, int | float) else None


def notes(runs: Sequence[Provenance]) -> Iterator[str]:
    """Yields what a reader of their numbers should know, a sentence each."""
    made = {
        ", ".join(f"{name} {run.versions.get(name, 'unknown')}" for name in _PACKAGES)
        + f" on {run.machine or 'a machine that is not recorded'}"
        for run in runs
    }
    yield f"Trained with {'; and with '.join(sorted(made))}."
    commits = dict.fromkeys(run.commit[:12] for run in runs if run.commit)
    if commits:
        some = "" if all(run.commit for run in runs) else ", some not recorded"
        yield f"Trained at commit{'s' * (len(commits) > 1)} {', '.join(commits)}{some}."
    seconds = [run.seconds for run in runs if run.seconds is not None]
    if len(seconds) == len(runs):
        yield (
            f"Training and measuring took {min(seconds):.0f} to {max(seconds):.0f} s a run, beside "
            "whatever else the machine did and without what was interrupted."
        )


def changed_settings(settings: Mapping[str, Any], said_elsewhere: Collection[str]) -> str:
    """Returns a sentence on what is not as in the preset, in the words of ``--set``.

    Of data, model and training: attacks stand in the tables with their own settings.

    Args:
      settings: of the runs, as ``config.json`` holds them.
      said_elsewhere: paths that are left out.

    Returns:
      The sentence; empty where nothing was changed, or this version has no preset of that name.
    """
    try:
        preset = presets.load(settings["name"], settings["preset"])
    except ConfigError:
        return ""
    usual = json.loads(json.dumps(dataclasses.asdict(preset)))  # with lists, as files have them
    changed = [
        f"{where}={json.dumps(ours)}"
        for group in ("data", "model", "train")
        for where, _, ours in differences(usual[group], settings.get(group), group)
        if where not in said_elsewhere and _is_in(settings, where)
    ]
    return f"Other than in the preset: `{' '.join(changed)}`." if changed else ""


def different_checks(settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a sentence on each setting of the checks that is not the same in all runs.

    Args:
      settings: of each run, as ``config.json`` holds them.
    """
    values: dict[str, dict[str, None]] = {}
    for one in settings:
        for where, first, theirs in differences(settings[0], one):
            if where.startswith(OF_CHECKS):
                values.setdefault(where, {json.dumps(first): None})[json.dumps(theirs)] = None
    for where, found in values.items():
        yield (
            f"The runs were not checked alike: `{where}` is {' in some and '.join(found)} in others"
            " (what each check found: checks.json)."
        )


def _is_in(settings: Any, where: str) -> bool:
    """Whether there is such a setting; runs of earlier versions have not all of today's."""
    for name in where.split("."):
        if not isinstance(settings, dict) or name not in settings:
            return False
        settings = settings[name]
    return True
