"""What a comparison notes of a run: whose code, whether trained, what measured, how long."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.commands.evaluation_request import Request
from experiments.errors import ConfigError
from experiments.evaluation.identity import code_version
from experiments.training.folder import RunSettings, check_same, read_settings
from steinnorm.attacks.files import write_json


class MadeRun:
    """The note in a run's folder of which code makes it, and of what was measured.

    Args:
      folder: of the run.
    """

    def __init__(self, folder: Path):
        self._folder, self._path = folder, folder / "comparison.json"

    @property
    def by(self) -> str:
        """Returns the version of the code that began the run; "" where none has.

        Raises:
          ConfigError: the folder holds a training that no comparison has made.
        """
        if self._path.exists():
            return str(self._read()["code"])
        if (self._folder / "code.txt").exists():
            return "a demo of an earlier version"
        if (self._folder / "config.json").exists():
            raise ConfigError(
                f"{self._folder} holds a training that no comparison has made; choose another "
                "--workdir"
            )
        return ""

    def missing(self, settings: RunSettings, wanted: Request, *, one_code: bool) -> list[Request]:
        """Returns what is to be measured: nothing where that is done.

        Where the weights are gone, all is measured anew that once was, so that nothing is lost.

        Args:
          settings: of the run.
          wanted: what the command asks for.
          one_code: it is measured anew where it may be of other code.

        Raises:
          ConfigError: the run was made with other settings.
        """
        if not self.by or not (self._folder / "results.json").exists():
            return [wanted]
        check_same(self._folder, read_settings(self._folder), settings)
        known = self._known()
        # What must be of one code goes through `train` and `evaluate`, which know versions too.
        if wanted in known and not one_code:
            return []
        if (self._folder / "checkpoints").exists():
            return [wanted]
        return list(dict.fromkeys([*known, wanted]))

    @property
    def has_weights(self) -> bool:
        """Returns whether the weights of a whole training are there."""
        found = self._read() if self._path.exists() else {}
        # A comparison of an earlier version says nothing: then results tell that it was finished.
        trained = found.get("trained", (self._folder / "results.json").exists())
        return bool(trained) and (self._folder / "checkpoints").exists()

    def begin(self) -> None:
        """Notes that this code makes the run, where no other has begun it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        found = self._read() if self._path.exists() else {"measured": []}
        trained = self.has_weights
        if not trained:
            found["seconds"] = 0.0  # all of it is made anew
        write_json(self._path, {"code": self.by or code_version(), **found, "trained": trained})

    def trained(self) -> None:
        """Notes that its training is finished."""
        write_json(self._path, {**self._read(), "trained": True})

    def measured(self, request: Request) -> None:
        """Notes what was measured; several commands may each measure something else."""
        if request not in self._known():
            found = self._read()
            fields = dataclasses.asdict(request)  # without the twin, which goes with the run
            write_json(self._path, {**found, "measured": [*found["measured"], fields]})

    def took(self, seconds: float) -> None:
        """Notes time that was spent on the run, besides that which is noted already.

        Nothing where none is: an earlier version began the run, and its time is not known.
        """
        found = self._read()
        if "seconds" in found:
            write_json(self._path, {**found, "seconds": found["seconds"] + seconds})

    def _known(self) -> list[Request]:
        """Returns what was measured."""
        measured = self._read()["measured"]
        return [Request(**{**one, "changes": tuple(one.get("changes", ()))}) for one in measured]

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {"code": self.by, "measured": []}
        try:
            content = json.loads(self._path.read_text())
            optional = {name: content[name] for name in ("trained", "seconds") if name in content}
            return {"code": content["code"], "measured": content["measured"], **optional}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} is damaged; remove the folder to make the run anew"
            ) from error
