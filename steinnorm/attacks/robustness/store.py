"""Where an evaluation keeps what it has measured, and what of it may be used again."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness.identity import Fingerprint, recognised
from steinnorm.attacks.robustness.names import CHECKS, PER_EXAMPLE, PICTURES, PLOT, is_ours, stem


class Store:
    """Files with results per example, or none at all.

    Args:
      out: the evaluation's folder; None for nowhere.
    """

    def __init__(self, out: Path | None):
        self._out = out
        self._folder = None if out is None else out / PER_EXAMPLE

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

    def tidy(
        self,
        own: Iterable[tuple[str, float]],
        identity: dict[str, Any],
        digests: Sequence[str],
        *,
        complete: bool,
    ) -> None:
        """Removes what an earlier call wrote of another evaluation, and this one's figures.

        Results of other attacks and radii stay where they are of the same model, data and settings.
        Files that such a call did not write are left alone.

        Args:
          own: attacks and radii of this evaluation, whose pictures are made anew.
          identity: what all results of this evaluation depend on.
          digests: of its batches.
          complete: whether these are all batches.
        """
        if self._out is None or self._folder is None:
            return
        kept = set()
        for path in sorted(self._folder.glob("*.npz")):
            found = PerExample.read(path)
            if found is None or path != self._path(found.about):
                continue
            both = min(found.batches, len(digests))
            same = found.about.get("identity") == identity
            same &= tuple(found.digests[:both]) == tuple(digests[:both])
            if same and not (complete and found.batches > len(digests)):
                kept.add(path.stem)
            else:
                path.unlink()
        kept -= {stem(*key) for key in own}
        for path in [self._out / PLOT, *(self._out / PICTURES).glob("*.png")]:
            if path.stem not in kept and is_ours(path):
                path.unlink()
        _remove_checks(self._out / CHECKS, identity, digests)

    def _path(self, about: dict[str, Any]) -> Path:
        assert self._folder is not None
        return self._folder / (stem(about["attack"], about["epsilon"]) + ".npz")


def _remove_checks(path: Path, identity: dict[str, Any], digests: Sequence[str]) -> None:
    """Removes what the checks of another evaluation found."""
    try:
        theirs = json.loads(path.read_text())["identity"]
        same = all(theirs[name] == value for name, value in identity.items())
        if not (same and theirs["first"] in digests):
            path.unlink()
    except (OSError, ValueError, KeyError, TypeError):
        return
