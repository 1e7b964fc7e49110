"""Per-example results of one attack at one strength, in a file each: what tables are made from.

``WORKDIR/evaluation/STATISTICS-ATTACK-EPSILON.npz`` is written anew, whole, after every batch, so
that an evaluation which was stopped goes on with the next one.
"""

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from experiments.files import write_bytes

SHOWN = 8
"""How many of the first images are kept as they were attacked, for pictures."""

_SUMMARY, _SHOWN = "summary/", "shown/"


class Values(NamedTuple):
    """What the attacked inputs consist of.

    Attributes:
      min: the smallest value.
      max: the largest value.
      nan_count: how many values are not finite.
    """

    min: float
    max: float
    nan_count: int

    @classmethod
    def of(cls, inputs: np.ndarray) -> "Values":
        """Those of a batch (k, ...)."""
        return cls(float(inputs.min()), float(inputs.max()), int((~np.isfinite(inputs)).sum()))

    def merged(self, other: "Values") -> "Values":
        """Those of two batches together."""
        low, high = min(self.min, other.min), max(self.max, other.max)
        return Values(low, high, self.nan_count + other.nan_count)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One attack at one strength on the first examples of the test part, in their order.

    Attributes:
      about: what was measured: ``config``, ``norm``, ``seed``, ``statistics``, ``threat_model``,
        ``attack``, ``epsilon``, ``norm_order``, ``class_names``; and all that numbers depend on:
        ``attack_settings``, the fields of an ``AttackConfig`` but its strengths, and ``identity``,
        of which ``weights`` is a digest and ``measured`` the number of examples there will be.
      summary: what the task keeps of each example, such as ``right`` (N,); see
        ``experiments.tasks``.
      distance: (N,) change of each example, in ``norm_order``; 0 where there is no ball.
      batch: (N,) number of the test batch that the example was in.
      values: of the inputs as they were attacked.
      zero_gradients: examples whose gradient was all zero in the attack's last step.
      shown: of the first examples, ``x`` and ``x_adv`` (k, ..., C) float32 in [0, 1], ``y`` and
        ``prediction`` (k,) or (k, H, W) integers, the prediction being that for ``x_adv``.
    """

    about: dict[str, Any]
    summary: dict[str, np.ndarray]
    distance: np.ndarray
    batch: np.ndarray
    values: Values
    zero_gradients: int = 0
    shown: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def is_complete(self) -> bool:
        """Whether all examples are there."""
        return len(self) == self.about["identity"]["measured"]

    @property
    def batches(self) -> int:
        """How many test batches are done."""
        return int(self.batch[-1]) + 1 if len(self) else 0

    def extended(self, more: Self) -> "Cell":
        """This with the results of the next batch behind it."""
        joined = {n: np.concatenate([v, more.summary[n]]) for n, v in self.summary.items()}
        shown = {
            name: np.concatenate([value, more.shown[name]])[:SHOWN]
            for name, value in self.shown.items()
        }
        return Cell(
            about=self.about,
            summary=joined,
            distance=np.concatenate([self.distance, more.distance]),
            batch=np.concatenate([self.batch, more.batch]),
            values=self.values.merged(more.values),
            zero_gradients=self.zero_gradients + more.zero_gradients,
            shown=shown,
        )

    def save(self, workdir: Path) -> Path:
        """Writes the file of this cell, whole or not at all; its path."""
        buffer = io.BytesIO()
        numbers = {"zero_gradients": self.zero_gradients, "values": self.values._asdict()}
        np.savez_compressed(
            buffer,
            about=np.array(json.dumps(self.about)),
            numbers=np.array(json.dumps(numbers)),
            distance=self.distance,
            batch=self.batch,
            **{_SUMMARY + name: value for name, value in self.summary.items()},  # type: ignore[arg-type]
            **{_SHOWN + name: value for name, value in self.shown.items()},  # type: ignore[arg-type]
        )
        path = path_of(workdir, self.about)
        write_bytes(path, buffer.getvalue())
        return path


def path_of(workdir: Path, about: dict[str, Any]) -> Path:
    """Where the cell with this description lies."""
    threat_model = about.get("threat_model") or ""
    parts = [about["statistics"], threat_model, about["attack"], f"{about['epsilon']:.6g}"]
    return workdir / "evaluation" / ("-".join(part for part in parts if part) + ".npz")


def load(path: Path) -> Cell | None:
    """The cell in a file; None where there is none, or one that cannot be read."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        numbers = json.loads(str(arrays["numbers"]))
        return Cell(
            about=json.loads(str(arrays["about"])),
            summary=_under(_SUMMARY, arrays),
            distance=arrays["distance"],
            batch=arrays["batch"],
            values=Values(**numbers["values"]),
            zero_gradients=numbers["zero_gradients"],
            shown=_under(_SHOWN, arrays),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def load_all(workdir: Path) -> list[Cell]:
    """All cells of an evaluation that can be read, in the order of their names."""
    paths = sorted((workdir / "evaluation").glob("*.npz"))
    return [cell for path in paths if (cell := load(path)) is not None]


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
