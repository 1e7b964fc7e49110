"""Per-example results of one attack at one strength, in a file each: what tables are made from.

``WORKDIR/evaluation/STATISTICS-ATTACK-EPSILON.npz`` is written anew, whole, as batches are done, so
that an evaluation which was stopped goes on where it was.
"""

import dataclasses
from pathlib import Path
from typing import Any, Self

from experiments.configs.schema import AttackConfig
from experiments.results import ResultKey
from steinnorm.attacks.per_example import SHOWN, PerExample, Values

__all__ = ["SHOWN", "PerExampleResults", "Values", "describe", "load", "load_all", "path_of"]


class PerExampleResults(PerExample):
    """Results whose ``about`` is what ``describe`` makes; read it through the properties.

    ``summary`` is what the task (``experiments.tasks``) keeps of each example.
    """

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Returns the results in a file; None where there is none, or one that cannot be read.

        Args:
          path: of the file.
        """
        found = super().read(path)
        try:
            return found if found is not None and found.key and found.identity else None
        except KeyError:  # a file of another program, or of a version that described less
            return None

    @property
    def key(self) -> ResultKey:
        """What was measured."""
        return ResultKey.of(self.about)

    @property
    def attack(self) -> AttackConfig:
        """The attack with its settings, without its strengths."""
        return AttackConfig(epsilons=(), **self.about["attack_settings"])

    @property
    def identity(self) -> dict[str, Any]:
        """All that the numbers depend on besides the key and the attack: weights, data, code."""
        return self.about["identity"]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, for pictures; empty where they have none."""
        return self.about.get("class_names") or []

    @property
    def is_complete(self) -> bool:
        """Whether all examples are there."""
        return len(self) == self.identity["measured"]

    def save(self, workdir: Path) -> None:
        """Writes the file of these results, whole or not at all."""
        self.write(path_of(workdir, self.key))


def describe(
    key: ResultKey, attack: AttackConfig, identity: dict[str, Any], class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the ``about`` of results, as JSON gives it back.

    Args:
      key: what is measured.
      attack: with all its settings; its strengths do not count.
      identity: as ``experiments.evaluation.identity`` makes it, and ``measured``, the number of
        examples that there will be.
      class_names: for pictures; may be empty.
    """
    settings = dataclasses.asdict(attack)
    for name in ("epsilons", "shown"):
        del settings[name]
    return {
        **dataclasses.asdict(key),
        "class_names": list(class_names),
        "attack_settings": settings,
        "identity": identity,
    }


def path_of(workdir: Path, key: ResultKey) -> Path:
    """Returns where the results of this key lie."""
    # All digits: radii that agree in the first ones would share a file, and one would be lost.
    epsilon = repr(float(key.epsilon)).removesuffix(".0")
    parts = [key.statistics, key.threat_model, key.attack, epsilon]
    return workdir / "evaluation" / ("-".join(part for part in parts if part) + ".npz")


def load(workdir: Path, key: ResultKey) -> PerExampleResults | None:
    """Returns the results of this key; None where there are none, or none that can be read."""
    found = PerExampleResults.read(path_of(workdir, key))
    return found if found is not None and found.key == key else None


def load_all(workdir: Path) -> list[PerExampleResults]:
    """Returns all results of an evaluation that can be read, in the order of their files' names."""
    paths = sorted((workdir / "evaluation").glob("*.npz"))
    return [found for path in paths if (found := PerExampleResults.read(path)) is not None]
