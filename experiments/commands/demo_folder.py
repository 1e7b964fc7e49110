"""The work folder of the demo: what is written, where, and never by halves."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Self

import flax
import jax

import steinnorm
from experiments.configs.schema import ExperimentConfig
from experiments.errors import ConfigError
from experiments.results import Check, LoggedStep, Row
from steinnorm.attacks.code_digest import code_digest
from steinnorm.attacks.files import write_json


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of one norm and one seed.

    Attributes:
      norm: its norm.
      seed: its seed.
      seconds: wall-clock time of training and evaluation, compilation included.
      rows: what was measured.
      history: the training steps that were kept.
      checks: of the evaluation.
    """

    norm: str
    seed: int
    seconds: float
    rows: list[Row]
    history: list[LoggedStep]
    checks: list[Check] = dataclasses.field(default_factory=list)


class WorkFolder:
    """Reads and writes the files of one command."""

    def __init__(self, root: Path, config: ExperimentConfig):
        self.root = root
        self._fingerprint = _fingerprint(config)

    @classmethod
    def open(cls, root: Path, config: ExperimentConfig) -> Self:
        """Makes the folder where there is none and notes the configuration in it.

        Raises:
          ConfigError: the folder cannot be made.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use {root} as a work folder: {error.strerror}") from error
        write_json(root / "config.json", dataclasses.asdict(config))
        return cls(root, config)

    def save(self, run: Run) -> None:
        """Keeps a finished run."""
        content = {
            "config": self._fingerprint,
            "norm": run.norm,
            "seed": run.seed,
            "seconds": run.seconds,
            "rows": [dataclasses.asdict(row) for row in run.rows],
            "history": [dataclasses.asdict(row) for row in run.history],
            "checks": [dataclasses.asdict(check) for check in run.checks],
        }
        write_json(self._path(run.norm, run.seed), content)

    def load(self, norm: str, seed: int) -> Run | None:
        """The finished run, or None where there is none, or one of another configuration."""
        try:
            content = json.loads(self._path(norm, seed).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if content.get("config") != self._fingerprint:
            return None
        return Run(
            norm=content["norm"],
            seed=content["seed"],
            seconds=content["seconds"],
            rows=[Row(**row) for row in content["rows"]],
            history=[LoggedStep(**row) for row in content["history"]],
            checks=[Check(**check) for check in content["checks"]],
        )

    def _path(self, norm: str, seed: int) -> Path:
        return self.root / "runs" / f"{norm}-{seed}.json"


def _fingerprint(config: ExperimentConfig) -> str:
    """Changes with all that a result depends on: settings, code and versions, not descriptions."""
    settings = dataclasses.asdict(config)
    settings["code"] = code_digest(Path(steinnorm.__file__).parent, Path(__file__).parents[1])
    settings["versions"] = [m.__version__ for m in (steinnorm, jax, flax)]
    for description in ("dataset", "size", "expected_time"):
        del settings[description]
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
