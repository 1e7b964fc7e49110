"""The paired difference of two networks on the same examples."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist

import numpy as np

from experiments.evaluation import per_example as cells
from experiments.evaluation.aggregate import WORST
from experiments.evaluation.per_example import Cell
from experiments.results import Row

Places = Mapping[tuple[str, int], Path]
"""(Norm, seed) -> work folder of its evaluation."""


def difference_interval(
    right: np.ndarray, reference: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of a difference of two shares on the same examples (Agresti & Min 2005).

    As in McNemar's test only the examples count on which the two disagree.  Half an example is
    added to each cell of the 2x2 table, so that the interval has a width where there is none.

    Args:
      right: (N,) bool.
      reference: (N,) bool, of the same examples in the same order.
      confidence: coverage, in (0, 1).

    Returns:
      Lower and upper end of share(right) - share(reference), within [-1, 1].
    """
    if right.shape != reference.shape:
        raise ValueError(f"{right.shape} examples against {reference.shape}")
    gained = float(np.sum(right & ~reference)) + 0.5
    lost = float(np.sum(~right & reference)) + 0.5
    n = len(right) + 2.0
    centre = (gained - lost) / n
    spread = math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return max(-1.0, centre - half), min(1.0, centre + half)


class PairedResults:
    """Results per example of many runs, read when they are asked for.

    Args:
      places: where the runs of one experiment lie.
    """

    def __init__(self, places: Places):
        self._places = places
        self._right = functools.lru_cache(maxsize=None)(self._read)

    def interval(self, row: Row, reference: Row) -> tuple[float, float] | None:
        """Of the difference in accuracy; None without both results per example."""
        if row.metric != "accuracy":
            return None
        right, other = self._right(row), self._right(reference)
        if right is None or other is None or len(right) != len(other):
            return None
        return difference_interval(right, other)

    def _read(self, row: Row) -> np.ndarray | None:
        place = self._places.get((row.norm, row.seed))
        if place is None:
            return None
        if row.attack == WORST:
            found = [c for c in cells.load_all(place) if _is_behind(row, c)]
        else:
            cell = cell_of(row, place)
            found = [cell] if cell else []
        parts = [c.summary["right"] for c in found if "right" in c.summary]
        if not parts or len({len(part) for part in parts}) > 1:
            return None
        right = np.all(parts, axis=0)
        # A cell of an earlier evaluation is not what the row was made of; nor is the worst of each
        # example, where the attacker had to take the worst of each batch.
        same = len(right) == row.n and math.isclose(float(np.mean(right)), row.value, abs_tol=1e-9)
        return right if same else None


def _is_behind(row: Row, cell: Cell) -> bool:
    """Whether a cell is of an attack that the worst of all was chosen from."""
    names = ("config", "norm", "seed", "statistics", "threat_model", "epsilon", "norm_order")
    return bool(row.norm_order) and all(cell.about.get(n) == getattr(row, n) for n in names)


def cell_of(row: Row, workdir: Path) -> Cell | None:
    """The results per example behind a row; None where there are none.

    Args:
      row: of one attack at one strength.
      workdir: of its evaluation.
    """
    about = {
        name: getattr(row, name)
        for name in ("config", "norm", "seed", "statistics", "threat_model", "attack", "epsilon")
    }
    # Clean scores that were measured without any attack have no threat model in their file's name.
    for threat_model in dict.fromkeys((row.threat_model, "")):
        cell = cells.load(cells.path_of(workdir, {**about, "threat_model": threat_model}))
        wanted = {**about, "threat_model": threat_model}
        if cell is not None and all(cell.about.get(n) == v for n, v in wanted.items()):
            return cell
    return None
