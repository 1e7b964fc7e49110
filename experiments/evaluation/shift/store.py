"""Per-example results of one network, a file per condition; an interrupted run goes on from them.

``DIR/measured/NETWORK/CORRUPTION-SEVERITY.npz`` is written anew, whole or not at all.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from flax import nnx

import steinnorm
from experiments.data.examples import Examples
from experiments.evaluation.identity import weights_digest
from experiments.evaluation.shift.plan import Cell, Condition, Plan
from steinnorm.attacks.code_digest import code_digest
from steinnorm.attacks.files import write_bytes

Results = dict[Cell, np.ndarray]
"""What is kept of each example, by cell."""

_ABOUT = "about"
_ROOMS = ("data", "models", "tasks", "evaluation")


def identity(
    model: nnx.Module,
    parts: tuple[Examples, Examples],
    calibration_examples: int,
    order: np.ndarray,
    plan: Plan,
) -> dict[str, Any]:
    """Returns all that results depend on besides condition and cell, as JSON gives it back.

    To be called where ``devices.products`` says how the network computes.

    Args:
      model: the trained network.
      parts: the training part, from which calibration examples are drawn, and the examples that
        are measured.
      calibration_examples: at most so many.
      order: those of sorted batches.
      plan: its seed counts.
    """
    data = hashlib.sha256(np.ascontiguousarray(order).data)
    for part in parts:
        data.update(np.ascontiguousarray(part.inputs).data)
        data.update(np.ascontiguousarray(part.targets).data)
    own = Path(__file__).parents[2]
    return {
        "weights": weights_digest(model),
        "data": data.hexdigest(),
        "calibration_examples": calibration_examples,
        "seed": plan.seed,
        "platform": jax.default_backend(),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        # Reports and commands are left out: they change nothing about what was measured.
        "code": code_digest(Path(steinnorm.__file__).parent, *(own / room for room in _ROOMS)),
        "versions": [module.__version__ for module in (steinnorm, jax, flax)],
    }


class Store:
    """The results of one network.

    Args:
      folder: where they lie.
      about: ``identity``; results of another one count as not there.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self._folder, self._about = folder, about

    def load(self, condition: Condition) -> Results:
        """Returns what was measured of a condition; nothing where a file cannot be read."""
        try:
            with np.load(self._path(condition)) as file:
                about = json.loads(str(file[_ABOUT]))
                if about["identity"] != self._about:
                    return {}
                return {Cell(*cell): file[str(i)] for i, cell in enumerate(about["cells"])}
        except Exception:  # no file, or a damaged one, which raises many errors
            return {}

    def save(self, condition: Condition, results: Results) -> None:
        """Writes all that is known of a condition."""
        about = {"identity": self._about, "cells": [list(cell) for cell in results]}
        file = io.BytesIO()
        arrays: dict[str, Any] = {str(i): a for i, a in enumerate(results.values())}
        np.savez_compressed(file, **{_ABOUT: np.array(json.dumps(about)), **arrays})
        write_bytes(self._path(condition), file.getvalue())

    def missing(self, condition: Condition, wanted: Iterable[Cell]) -> list[Cell]:
        """Returns the wanted cells that were not measured yet."""
        found = self.load(condition)
        return [cell for cell in wanted if cell not in found]

    def _path(self, condition: Condition) -> Path:
        return self._folder / f"{condition.corruption}-{condition.severity}.npz"
