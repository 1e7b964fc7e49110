"""Where an evaluation keeps what it has measured, and what of it may be used again."""

import re
from pathlib import Path
from typing import Any

from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness.identity import Fingerprint, recognised

FOLDER = "per_example"


class Store:
    """Files with results per example, or none at all.

    Args:
      out: the evaluation's folder; None for nowhere.
    """

    def __init__(self, out: Path | None):
        self._folder = None if out is None else out / FOLDER

    @property
    def is_kept(self) -> bool:
        """Whether anything is written."""
        return self._folder is not None

    def model(self, fingerprint: Fingerprint) -> tuple[str, bool]:
        """Returns the model's name, and whether the folder was another one's before."""
        assert self._folder is not None
        return recognised(fingerprint, self._folder / "model.npz")

    def load(self, about: dict[str, Any]) -> PerExample | None:
        """Returns what was measured of just this; None where there is nothing.

        Args:
          about: what is measured; without ``attack_settings`` nobody can tell.
        """
        if self._folder is None or about["attack_settings"] is None:
            return None
        found = PerExample.read(self._path(about))
        usable = found is not None and found.about == about
        return found if usable and len(found.digests) == found.batches else None  # type: ignore[union-attr]

    def save(self, results: PerExample) -> None:
        """Writes results, whole or not at all."""
        if self._folder is not None:
            results.write(self._path(results.about))

    def _path(self, about: dict[str, Any]) -> Path:
        assert self._folder is not None
        name = re.sub(r"[^\w.+-]", "_", about["attack"])
        return self._folder / f"{name}-{about['epsilon']:.9g}.npz"
