"""The files with per-example results of an evaluation, and their reuse."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness.identity import Fingerprint, recognise_model
from steinnorm.attacks.robustness.names import (
    CHECKS,
    PER_EXAMPLE,
    PICTURES,
    PLOT,
    file_stem,
    is_written_here,
)


class Store:
    """Files with per-example results.

    Args:
      out: folder of the evaluation; None for no files.
    """

    def __init__(self, out: Path | None):
        self._out = out
        self._folder = None if out is None else out / PER_EXAMPLE

    @property
    def has_folder(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def model(self, fingerprint: Fingerprint) -> tuple[str, bool]:
        """Returns the model's name, and whether the folder belonged to another model before."""
        assert self._folder is not None
        return recognise_model(fingerprint, self._folder / "model.npz")

    def load(self, about: dict[str, Any]) -> PerExample | None:
        """Returns stored results of the same measurement; None if there are none.

        Args:
          about: description of the measurement; if its ``attack_settings`` are None, the attack
            cannot be identified and nothing is loaded.
        """
        if self._folder is None or about["attack_settings"] is None:
            return None
        stored = PerExample.read(self._path(about))
        usable = stored is not None and stored.about == about
        return stored if usable and len(stored.digests) == stored.batches else None  # type: ignore[union-attr]

    def save(self, results: PerExample) -> None:
        """Writes results atomically."""
        if self._folder is not None:
            results.write(self._path(results.about))

    def remove_outdated(
        self,
        own: Iterable[tuple[str, float]],
        identity: dict[str, Any],
        digests: Sequence[str],
        *,
        complete: bool,
    ) -> None:
        """Removes results of other evaluations, and the figures of this one.

        Results of other attacks and radii are kept if model, data and settings are the same. Files
        that no evaluation wrote are kept as well.

        Args:
          own: attacks and radii of this evaluation, whose pictures are made again.
          identity: everything that all results of this evaluation depend on.
          digests: hashes of its batches.
          complete: whether these are all batches.
        """
        if self._out is None or self._folder is None:
            return
        kept = set()
        for path in sorted(self._folder.glob("*.npz")):
            stored = PerExample.read(path)
            if stored is None or path != self._path(stored.about):
                continue
            common = min(stored.batches, len(digests))
            same = stored.about.get("identity") == identity
            same &= tuple(stored.digests[:common]) == tuple(digests[:common])
            if same and not (complete and stored.batches > len(digests)):
                kept.add(path.stem)
            else:
                path.unlink()
        kept -= {file_stem(*key) for key in own}
        for path in [self._out / PLOT, *(self._out / PICTURES).glob("*.png")]:
            if path.stem not in kept and is_written_here(path):
                path.unlink()
        _remove_checks(self._out / CHECKS, identity, digests)

    def _path(self, about: dict[str, Any]) -> Path:
        assert self._folder is not None
        return self._folder / (file_stem(about["attack"], about["epsilon"]) + ".npz")


def _remove_checks(path: Path, identity: dict[str, Any], digests: Sequence[str]) -> None:
    """Removes the results of another evaluation's checks."""
    try:
        stored = json.loads(path.read_text())["identity"]
        same = all(stored[name] == value for name, value in identity.items())
        if not (same and stored["first"] in digests):
            path.unlink()
    except (OSError, ValueError, KeyError, TypeError):
        return
