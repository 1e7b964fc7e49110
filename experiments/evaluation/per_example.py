"""Per-example results of one attack at one strength, in a file each: what tables are made from.

``WORKDIR/evaluation/STATISTICS-ATTACK-EPSILON.npz`` is written anew, whole, after every batch, so
that an evaluation which was stopped goes on with the next one.
"""

from pathlib import Path
from typing import Any

from steinnorm.attacks.per_example import SHOWN, PerExample, Values

__all__ = ["SHOWN", "Cell", "Values", "load", "load_all", "path_of"]


class Cell(PerExample):
    """Results of which ``about`` says in which run they were measured.

    ``about`` has ``config``, ``norm``, ``seed``, ``statistics``, ``threat_model``, ``attack``,
    ``epsilon``, ``norm_order``, ``class_names``; and all that numbers depend on:
    ``attack_settings``, the fields of an ``AttackConfig`` but its strengths, and ``identity``, of
    which ``weights`` is a digest and ``measured`` the number of examples there will be.
    ``summary`` is what ``experiments.tasks`` keeps of each example.
    """

    @property
    def is_complete(self) -> bool:
        """Whether all examples are there."""
        return len(self) == self.about["identity"]["measured"]

    def save(self, workdir: Path) -> Path:
        """Writes the file of this cell, whole or not at all; its path."""
        path = path_of(workdir, self.about)
        self.write(path)
        return path


def path_of(workdir: Path, about: dict[str, Any]) -> Path:
    """Where the cell with this description lies."""
    threat_model = about.get("threat_model") or ""
    parts = [about["statistics"], threat_model, about["attack"], f"{about['epsilon']:.6g}"]
    return workdir / "evaluation" / ("-".join(part for part in parts if part) + ".npz")


def load(path: Path) -> Cell | None:
    """The cell in a file; None where there is none, or one that cannot be read."""
    return Cell.read(path)


def load_all(workdir: Path) -> list[Cell]:
    """All cells of an evaluation that can be read, in the order of their names."""
    paths = sorted((workdir / "evaluation").glob("*.npz"))
    return [cell for path in paths if (cell := load(path)) is not None]
