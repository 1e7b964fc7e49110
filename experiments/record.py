"""The work folder of a command that makes many runs: what is written, where, and never by halves.

::

    config.json          the configuration, with the command's other settings
    runs/NORM-SEED.json  one finished run: its rows and its training history
    results.json         the rows of all runs
    checks.json          the checks of all evaluations
    table.csv, table.md, accuracy.png, shrinkage.png   made from these
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Self

import flax
import jax

import steinnorm
from experiments.config import ExperimentConfig
from experiments.errors import ConfigError
from experiments.files import write_json
from experiments.train import LogRow
from steinnorm.attacks._code import code_digest


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
      config: the experiment's name.
      norm: one of ``experiments.models.norms.NORMS``.
      seed: of the weights and the order of the training images.
      statistics: ``running``, ``batch``, ``shrunk`` or ``none``: whose the norm used.
      attack: ``clean`` or the attack's name.
      epsilon: the attack's strength in units of the image range; 0 for clean images, the root
        mean square for noise.
      metric: what ``value`` is.
      value: the number.
      n: over how many test images.
      ci_low: lower end of the 95 % interval over these images: Wilson's for an accuracy, the
        bootstrap's for all else.
      ci_high: upper end.
      norm_order: of the attack's ball, ``linf`` or ``l2``; empty where there is no ball.
      steps: gradient steps; 0 where there are none.
      step_size: absolute; 0 where there are no steps.
      max_norm: the largest change of an image that was found, in ``norm_order``.
      min: the smallest value of the images as they were attacked; None where that was not kept.
      max: the largest.
      nan_count: how many values are not finite.
      zero_gradients: images whose gradient was all zero in the last step.
      threat_model: of a model whose answer for an image depends on its batch: ``joint`` (the
        attacker owns the batch), ``independent`` (each image attacked, its batch fixed) or
        ``companion`` (only the others are attacked); empty where there is nothing to choose.
      over: of a worst case, the attacks it was taken over, separated by commas.
    """

    config: str
    norm: str
    seed: int
    statistics: str
    attack: str
    epsilon: float
    metric: str
    value: float
    n: int
    ci_low: float
    ci_high: float
    norm_order: str = ""
    steps: int = 0
    step_size: float = 0.0
    max_norm: float = 0.0
    min: float | None = None
    max: float | None = None
    nan_count: int | None = None
    zero_gradients: int = 0
    threat_model: str = ""
    over: str = ""


@dataclasses.dataclass(frozen=True)
class Check:
    """A test of the evaluation itself (after Carlini et al. 2019).

    Attributes:
      config: the experiment's name.
      norm: of the model.
      seed: of the model.
      statistics: whose the norm used.
      name: of the check.
      verdict: ``PASS``, ``FAIL`` or ``not applicable``.
      value: the number that decided; None where there is none.
      detail: what the number is, its limit, and on how many examples it was measured, in words.
    """

    config: str
    norm: str
    seed: int
    statistics: str
    name: str
    verdict: str
    value: float | None
    detail: str


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
    history: list[LogRow]
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
            "history": [row._asdict() for row in run.history],
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
            history=[LogRow(**row) for row in content["history"]],
            checks=[Check(**check) for check in content["checks"]],
        )

    def _path(self, norm: str, seed: int) -> Path:
        return self.root / "runs" / f"{norm}-{seed}.json"


def _fingerprint(config: ExperimentConfig) -> str:
    """Changes with all that a result depends on: settings, code and versions, not descriptions."""
    settings = dataclasses.asdict(config)
    settings["code"] = code_digest(Path(steinnorm.__file__).parent, Path(__file__).parent)
    settings["versions"] = [m.__version__ for m in (steinnorm, jax, flax)]
    for description in ("dataset", "size", "expected_time"):
        del settings[description]
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
