"""The work folder of one training: its settings, its log, its checkpoints.

::

    config.json      settings, versions, git commit; written once
    data_dir.txt     where the data were on this machine
    metrics.jsonl    one line per logged step and per validation
    checkpoints/     the two newest and the best (``experiments.training.checkpoints``)
    damaged/         checkpoints that could not be read, where there were any
    tensorboard/     event files, where they were asked for
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import jax
import pydantic

from experiments.configs.overrides import check, differences, explained, unknown_fields
from experiments.configs.schema import ExperimentConfig
from experiments.errors import ConfigError
from experiments.results import read_log
from steinnorm.attacks.files import naming, write_bytes, write_json, write_text

_DATA_DIR = "data_dir.txt"
_PACKAGES = ("steinnorm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All that decides a training's result, besides the data and the code.

    Attributes:
      config: the experiment.
      norm: one of ``experiments.models.norms.NORMS``.
      seed: of the weights and of the order of the examples.
    """

    config: ExperimentConfig
    norm: str
    seed: int


_SETTINGS = pydantic.TypeAdapter(RunSettings)


class RunFolder:
    """Writes the files of one training; use as a context manager.

    Only the first process writes; one command at a time may hold the folder.

    Args:
      root: the work folder.
      settings: of the training.
      data_dir: where its data are; noted for the evaluation.
      writes: whether this process writes.
    """

    def __init__(
        self, root: Path, settings: RunSettings, data_dir: Path | None, *, writes: bool = True
    ):
        self.root, self._data_dir = root, data_dir
        self._settings, self._writes = settings, writes
        # The system lets go of the lock when the process ends, however it ends; the library's
        # fallback for file systems without locks would outlive a killed process.
        self._lock = filelock.FileLock(self.root / ".lock", fallback_to_soft=False)

    def __enter__(self) -> Self:
        if not self._writes:
            return self
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise ConfigError(f"{self.root} is in use by another command") from error
        except (OSError, NotImplementedError) as error:  # the second without locks
            why = getattr(error, "strerror", "") or error
            raise ConfigError(f"cannot use {self.root} as a work folder: {why}") from error
        try:
            self._check_settings()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    @property
    def checkpoints(self) -> Path:
        """Returns the folder of the checkpoints."""
        return self.root / "checkpoints"

    def log(self, line: dict[str, Any]) -> None:
        """Adds a line to ``metrics.jsonl``."""
        if self._writes:
            path = self.root / "metrics.jsonl"
            with naming(path), path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drops log lines later than ``step``: they will be written again.

        A line that a kill cut short goes with them.
        """
        path = self.root / "metrics.jsonl"
        if not self._writes or not path.exists():
            return
        lines = read_log(path)
        kept = [line for line in lines if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def begin(self, *, anew: bool, data_notes: Sequence[str] = ()) -> None:
        """Writes ``config.json``, once data and model are known to be good.

        Args:
          anew: there is no checkpoint to go on from, so nothing of an earlier try counts.
          data_notes: what there is to say of the data that were loaded.
        """
        if not self._writes:
            return
        path = self.root / "config.json"
        content = {
            **dataclasses.asdict(self._settings),
            "versions": versions(),
            "machine": machine(),
            "git_commit": git_commit(),
            "data_notes": list(data_notes),
        }
        if anew:
            self.rewind(0)
        elif path.exists():
            content = json.loads(path.read_text())  # versions and commit of its beginning
        write_json(path, content)
        # Apart from the settings, which may be published. A path may be no UTF-8.
        place = os.fsencode(self._data_dir.absolute()) if self._data_dir else b""
        write_bytes(self.root / _DATA_DIR, place + b"\n")

    def _check_settings(self) -> None:
        if not (self.root / "config.json").exists():
            return
        # Also refuses a file of this name that is somebody else's.
        found = read_settings(self.root)
        if any(self.checkpoints.glob("[0-9]*")):  # else nothing was trained with these settings
            check_same(self.root, found, self._settings)


def check_same(root: Path, found: RunSettings, wanted: RunSettings) -> None:
    """Refuses a work folder of other settings than those that are wanted.

    Args:
      root: the work folder.
      found: its settings.
      wanted: those of the command.

    Raises:
      ConfigError: saying which differ.
    """
    different = [
        f"{where} is {theirs!r} there, {ours!r} here"
        for where, theirs, ours in differences(
            dataclasses.asdict(found), dataclasses.asdict(wanted)
        )
    ]
    if different:
        raise ConfigError(
            f"{root} holds a training with other settings: {'; '.join(different)}. "
            "Choose another --workdir, or repeat the command with the settings of that one"
        )


def read_settings(root: Path) -> RunSettings:
    """Returns the settings of the training in a work folder.

    Raises:
      ConfigError: there is none, or it is damaged or of another version of this program.
    """
    path = root / "config.json"
    try:
        text = path.read_text()
        content = {name: json.loads(text)[name] for name in ("config", "norm", "seed")}
        settings = _SETTINGS.validate_python(content)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{root} is not the work folder of a training: it has no config.json; make one with "
            "python -m experiments train CONFIG --workdir DIR"
        ) from error
    except pydantic.ValidationError as error:
        raise ConfigError(
            f"{path} is of another version of this program, or damaged: "
            f"{explained(error, RunSettings)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        # ValueErrors come of text that is no UTF-8 or no JSON, the last two of other fields.
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    unknown = unknown_fields(content, dataclasses.asdict(settings))
    if unknown:
        raise ConfigError(
            f"{path} has settings that this version does not know: {', '.join(unknown)}"
        )
    check(settings.config)
    return settings


def data_dir_of(root: Path) -> Path | None:
    """Returns the folder that the training in a work folder read its data from, or None.

    Raises:
      ConfigError: what is noted there is no path.
    """
    path = root / _DATA_DIR
    if path.exists():
        found = os.fsdecode(path.read_bytes().strip())
        if "\0" in found:
            raise ConfigError(f"{path} is damaged: it holds no path; name the data by --data-dir")
    else:  # of an earlier version, or copied without it
        found = json.loads((root / "config.json").read_text()).get("data_dir")
    return Path(found) if found else None


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine() -> str:
    """Returns what the numbers were made on, in words: the kind of devices, CPU and cores."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{devices}; {(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


def git_commit() -> str:
    """Returns the commit of this code, ``-dirty`` where files differ from it; "" outside git."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        # Without locks: a status that is cut off would leave one behind, which stops git.
        changed = git(
            "--no-optional-locks",
            "status",
            "--porcelain",
            "--untracked-files=no",
            ".",
            "../steinnorm",
        )
    except OSError:  # there is no git
        return ""
    return f"{commit}-dirty" if commit and changed else commit
