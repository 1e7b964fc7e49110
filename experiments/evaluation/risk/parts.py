"""The parts of the measurement, each kept in a file of its own, so that a stopped one goes on."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import steinnorm
from experiments.errors import ConfigError
from experiments.evaluation.risk import (
    correlated,
    counterexamples,
    feature_maps,
    independent,
    lipschitz,
    perturbed,
    variance_constant,
)
from experiments.evaluation.risk.monte_carlo import Progress, Row
from experiments.evaluation.risk.networks import Networks
from steinnorm.attacks.code_digest import code_digest
from steinnorm.attacks.files import write_json

_OF_NUMBERS: dict[str, Callable[[int, bool, Progress], list[Row]]] = {
    "counterexamples": counterexamples.measure,
    "independent": independent.measure,
    "map": independent.measure_map,
    "correlated": correlated.measure,
    "perturbed": perturbed.measure,
}
_OF_NETWORKS: dict[str, Callable[[Networks, int, bool, Progress], list[Row]]] = {
    "maps": feature_maps.measure,
    "fraction": variance_constant.measure,
    "lipschitz": lipschitz.measure,
}
NAMES = (*_OF_NUMBERS, *_OF_NETWORKS)
"""The parts, in the order in which they are measured."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What decides the numbers of a part.

    Attributes:
      seed: of everything.
      smoke: whether it is only to be seen that all parts run.
      code: a hash of the code that the numbers depend on.
    """

    seed: int
    smoke: bool
    code: str = ""

    @classmethod
    def of(cls, seed: int, smoke: bool) -> "Request":
        """Returns the request with the hash of this code.

        The code is the library's and that of the experiments but the commands and the report.
        """
        here = Path(__file__).parents[2]
        folders = ("configs", "data", "evaluation", "models", "tasks", "training")
        library = Path(steinnorm.__file__).parent
        return cls(seed, smoke, code_digest(library, *(here / name for name in folders)))


def chosen(names: str) -> tuple[str, ...]:
    """Returns the parts that a list with commas names, in their own order; all of an empty one.

    Raises:
      ConfigError: there is no such part; the message lists those there are.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise ConfigError(f"parts must be some of {', '.join(NAMES)}; got {', '.join(unknown)}")
    return tuple(name for name in NAMES if name in wanted or not wanted)


def place(folder: Path, name: str) -> Path:
    """Returns the file of a part."""
    return folder / "parts" / f"{name}.json"


def finished(folder: Path, name: str, request: Request) -> list[Row] | None:
    """Returns the rows of a part that was measured with the same request; None otherwise."""
    found = _read(place(folder, name))
    return found["rows"] if found and found["request"] == dataclasses.asdict(request) else None


def _read(path: Path) -> dict[str, Any] | None:
    """Returns what a part's file holds; None where there is none, or it is none of ours."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) and {"request", "rows"} <= set(found) else None


def measure(
    folder: Path, name: str, request: Request, networks: Networks, progress: Progress
) -> list[Row]:
    """Measures a part and writes its file; returns its rows.

    Args:
      folder: of the results.
      name: one of ``NAMES``.
      request: what decides the numbers.
      networks: for the parts on real images.
      progress: is told how far it is.
    """
    began = time.perf_counter()
    if name in _OF_NUMBERS:
        rows = _OF_NUMBERS[name](request.seed, request.smoke, progress)
    else:
        rows = _OF_NETWORKS[name](networks, request.seed, request.smoke, progress)
    content = {
        "request": dataclasses.asdict(request),
        "seconds": round(time.perf_counter() - began, 1),
        "rows": rows,
    }
    write_json(place(folder, name), content)
    return rows
