"""The result of an evaluation, and the files made from it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steinnorm.attacks._warnings import warn
from steinnorm.attacks.checks import Finding
from steinnorm.attacks.files import write_bytes, write_json, write_text
from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness.names import PICTURES, PLOT, file_stem
from steinnorm.attacks.robustness.rows import NONE, WORST, Key, Row
from steinnorm.attacks.robustness.tables import (
    as_json,
    checks_text,
    csv_table,
    markdown_table,
    terminal_table,
)

_ROUNDING = 1e-6  # relative; 0.1 becomes 0.10000000149 in float32


@dataclasses.dataclass(frozen=True)
class Robustness:
    """The result of an evaluation; ``print`` shows it as a table.

    Attributes:
      rows: the clean accuracy (attack ``none``), every attack at every radius, and ``worst`` for
        every radius: the worst of all attacks for each example, or for each batch as a whole if
        logits depend on the batch.
      checks: findings of the checks; empty if none were made.
      curve: accuracy by the number of PGD's steps, on the examples of the checks.
      per_example: per-example results by attack and radius, including ``worst``.
      settings: norm, bounds, seed and batch dependence.
      out: folder of the files; None if there are none.
      missing: what is not finished, as text; empty if everything is.
    """

    rows: list[Row]
    checks: tuple[Finding, ...]
    curve: dict[int, float]
    per_example: Mapping[Key, PerExample]
    settings: dict[str, Any]
    out: Path | None = None
    missing: str = ""

    def row(self, attack: str, epsilon: float = 0.0) -> Row:
        """Returns the row of an attack at a radius.

        Args:
          attack: name of the attack; ``none`` for clean inputs.
          epsilon: the radius, as given to ``evaluate_robustness``, up to the rounding of float32.

        Raises:
          KeyError: there is no such row; the message lists the existing ones.
        """
        epsilon = float(epsilon)
        rows = [row for row in self.rows if row.attack == attack]
        nearest = min(rows, key=lambda row: abs(row.epsilon - epsilon), default=None)
        if nearest is not None and math.isclose(nearest.epsilon, epsilon, rel_tol=_ROUNDING):
            return nearest
        # With more digits than the tolerance has, so that no existing row looks like this one.
        raise KeyError(
            f"no row {attack!r} at {epsilon:.9g}; there are "
            + ", ".join(f"{row.attack} at {row.epsilon:.9g}" for row in self.rows)
        )

    def __str__(self) -> str:
        """Returns a short table."""
        settings = self.settings
        what = "pixel accuracy" if self.rows[0].metric == "pixel_accuracy" else "accuracy"
        head = f"{what} of {self.rows[0].n} examples, {settings['norm']} ball"
        lines = [head, *self.notes, terminal_table(self.rows), checks_text(self.checks)]
        return "\n".join(lines)

    @property
    def notes(self) -> list[str]:
        """Remarks about the table: unfinished parts, and intervals that are too narrow."""
        notes = [f"incomplete: {self.missing}"] if self.missing else []
        if self.settings["batch_dependent"]:
            notes.append(
                "logits depend on the batch: the attacker changes it as a whole, and the intervals "
                "are too narrow, because they assume independent examples"
            )
        return notes

    def __repr__(self) -> str:
        """Returns the same table, without any pixels."""
        return str(self)


def write_tables(result: Robustness) -> None:
    """Writes ``results.json``, ``table.csv``, ``table.md`` and ``settings.json``.

    Args:
      result: a result with a folder.
    """
    out = result.out
    assert out is not None
    write_json(out / "results.json", [as_json(row) for row in result.rows])
    write_text(out / "table.csv", csv_table(result.rows))
    write_text(out / "table.md", markdown_table(result.rows, result.checks, result.notes))
    write_json(out / "settings.json", {**result.settings, "complete": not result.missing})


def write_figures(result: Robustness, class_names: Sequence[str]) -> None:
    """Writes ``accuracy.png``, and pictures of the first examples into ``pictures``.

    Args:
      result: a result with a folder.
      class_names: names of the classes for the pictures; may be empty.

    Warns:
      UserWarning: matplotlib is not installed, so no figures are written.
    """
    out = result.out
    assert out is not None
    try:
        # Imported here, so that evaluations without figures do not need it.
        from steinnorm.attacks.robustness import pictures, plots  # noqa: PLC0415
    except ImportError as error:
        warn(
            f"no plot and no pictures were written, because matplotlib is missing ({error}): "
            'pip install "steinnorm[plots]" and repeat the call with the same folder, which uses '
            "the results there"
        )
        return
    write_bytes(out / PLOT, plots.accuracy_plot(result.rows))
    clean = result.per_example[NONE, 0.0]
    for (name, epsilon), results in result.per_example.items():
        if name in (NONE, WORST) or not pictures.are_images(results):
            continue
        norm_order = result.row(name, epsilon).norm_order
        png = pictures.picture(results, clean, result.settings["bounds"], class_names, norm_order)
        write_bytes(out / PICTURES / (file_stem(name, epsilon) + ".png"), png)
