"""Reads evaluated work folders, and refuses those whose numbers cannot be compared."""

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from experiments.configs.overrides import differences
from experiments.configs.schema import NOISES
from experiments.errors import ConfigError
from experiments.models.norms import NORMS
from experiments.report import provenance
from experiments.report.labels import REFERENCE, SOURCE_NAMES, THREAT_MODELS, Column, Source
from experiments.report.measures import of_task
from experiments.report.provenance import Provenance
from experiments.report.splits import SPLIT_SEED, parts_note, test_per_training
from experiments.results import CLEAN, CONVERGENCE, WORST, Check, LoggedStep, Row, logged_steps

_TUNED = "train.learning_rate"
"""What may differ between norms, each of which may have it tuned."""

_ROWS = pydantic.TypeAdapter(list[Row])
_CHECKS = pydantic.TypeAdapter(list[Check])


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All runs of one configuration.

    Attributes:
      name: of the configuration.
      preset: which of its presets.
      dataset: in words.
      metrics: that stand in tables and plots, the first being the most important.
      rows: of all runs.
      checks: likewise.
      places: (norm, seed) -> its work folder.
      histories: norm and logged training steps of each run whose log is there.
      shown: columns of the short table, as the configuration names them.
      notes: what a reader should know about how the runs differ.
      test_per_training: test examples per training example, where each seed drew its own parts of
        the data; None where all seeds have the same.
      controls: rows of batch norm's other runs, narrower or shorter, a list for each run.
      control_names: the settings in which these differ, as ``model.width=12``.
    """

    name: str
    preset: str
    dataset: str
    metrics: tuple[str, ...]
    rows: list[Row]
    checks: list[Check]
    places: dict[tuple[str, int], Path]
    histories: list[tuple[str, list[LoggedStep]]]
    shown: list[Column]
    notes: list[str]
    test_per_training: float | None = None
    controls: Sequence[list[Row]] = ()
    control_names: Sequence[str] = ()

    @property
    def runs(self) -> list[list[Row]]:
        """The rows of each run."""
        found: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.norm, row.seed), []).append(row)
        return list(found.values())


class _Folder(NamedTuple):
    """One work folder as it was read."""

    root: Path
    settings: dict[str, Any]
    provenance: Provenance
    rows: list[Row]
    checks: list[Check]
    data_notes: list[str]


def read(roots: Sequence[Path], controls: Sequence[Path] = ()) -> list[Experiment]:
    """Reads the experiments in work folders of ``evaluate``, ``compare`` or ``demo``, by name.

    Their runs are in the order of norms and seeds, whatever that of the folders.

    Args:
      roots: the folders, in any order; one that is named twice counts once.
      controls: work folders of batch norm's other runs, besides those that are in the folders of
        comparisons.

    Raises:
      ConfigError: a folder without results, files that cannot be read, or numbers that cannot be
        compared: of other settings, on another number of examples, or of one run twice.
    """
    if not roots:
        raise ConfigError("name at least one work folder of an evaluation")
    runs = _by_name([folder for root in roots for folder in _folders_in(root)])
    others = _by_name([*controls, *(folder for root in roots for folder in controls_in(root))])
    if unknown := [folder for name in others if name not in runs for folder in others[name]]:
        raise ConfigError(f"{unknown[0].root} is a control of no run in this report")
    return [_merged(runs[name], others.get(name, [])) for name in sorted(runs)]


def controls_in(root: Path) -> list[Path]:
    """Returns the work folders of a comparison's controls: what is measured of them."""
    return [path.parent for path in sorted((root / "controls").glob("*/*/results.json"))]


def _by_name(roots: Sequence[Path]) -> dict[str, list[_Folder]]:
    """Reads work folders, each once; returns those of each configuration in the usual order."""
    by_name: dict[str, list[_Folder]] = {}
    for root in {root.resolve(): root for root in roots}.values():
        folder = _read(root)
        by_name.setdefault(folder.settings["name"], []).append(folder)
    return {name: sorted(folders, key=_place) for name, folders in by_name.items()}


def _folders_in(root: Path) -> list[Path]:
    """Returns the work folders of the runs of a demo; else the folder itself."""
    runs = [path.parent for path in sorted((root / "runs").glob("*/results.json"))]
    is_demo = bool(runs) and not (root / "config.json").exists()
    return runs if is_demo else [root]


def _read(root: Path) -> _Folder:
    if not (root / "results.json").exists():
        raise ConfigError(
            f"{root} has no results.json; measure it with python -m experiments evaluate "
            f"{shlex.quote(str(root))}"
        )
    content = _json(root / "config.json")
    if not isinstance(content, dict):
        raise ConfigError(f"{root / 'config.json'} cannot be read: it is not an object")
    # A training's settings stand beside norm and seed; those of the demo are the whole file.
    settings = content.get("config", content)
    wanted = ("name", "preset", "task")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(n), str) for n in wanted):
        raise ConfigError(f"{root / 'config.json'} is not the settings of an experiment")
    rows = [_with_threat_model(row) for row in _validated(_ROWS, root / "results.json")]
    has_checks = (root / "checks.json").exists()
    checks = _validated(_CHECKS, root / "checks.json") if has_checks else []
    _check_rows(root, settings["name"], rows)
    return _Folder(
        root,
        settings,
        Provenance.of(root, content),
        rows,
        checks,
        [str(note) for note in content.get("data_notes") or ()],
    )


def _with_threat_model(row: Row) -> Row:
    """Adds what earlier versions left out of clean rows measured without any attack."""
    shared = Source(row.statistics).is_shared and not row.threat_model
    return dataclasses.replace(row, threat_model="joint") if shared else row


def _place(folder: _Folder) -> tuple[int, int]:
    return min((NORMS.index(row.norm), row.seed) for row in folder.rows)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError as error:
        raise ConfigError(f"{path.parent} has no {path.name}: is it a work folder?") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _finite(text: str) -> float:
    """Returns a number of a JSON file; Python's reader also takes NaN and infinity for numbers."""
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def _validated(adapter: pydantic.TypeAdapter[Any], path: Path) -> Any:
    try:
        return adapter.validate_python(_json(path))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path} cannot be read: {where}: {first['msg']}") from error


def _check_rows(root: Path, name: str, rows: Sequence[Row]) -> None:
    if not rows:
        raise ConfigError(f"{root / 'results.json'} holds no rows")
    for row in rows:
        for value, known in (
            (row.config, (name,)),
            (row.norm, NORMS),
            (row.statistics, tuple(SOURCE_NAMES)),
            (row.threat_model, THREAT_MODELS),
        ):
            if value not in known:
                raise ConfigError(
                    f"{root / 'results.json'} has a row of {value!r}; expected "
                    f"{'one of ' if len(known) > 1 else ''}{', '.join(filter(None, known))}"
                )


def _merged(folders: Sequence[_Folder], controls: Sequence[_Folder]) -> Experiment:
    first = folders[0]
    _check_settings(folders)
    _check_once(folders)
    _check_controls(first, controls)
    _check_alike([*folders, *controls])
    rows = [row for folder in folders for row in folder.rows]
    present = {row.metric for row in rows}
    ratio = test_per_training(first.settings, rows[0].n)
    metrics = [m for m in of_task(first.settings["task"]) if m in present]
    return Experiment(
        name=first.settings["name"],
        preset=first.settings["preset"],
        dataset=first.settings.get("dataset", ""),
        metrics=tuple(metrics) or tuple(sorted(present)),
        rows=rows,
        checks=[check for folder in folders for check in folder.checks],
        places={(row.norm, row.seed): folder.root for folder in folders for row in folder.rows},
        histories=list(_histories(folders)),
        shown=_shown(first.settings.get("evaluation") or {}),
        notes=_notes(folders),
        test_per_training=ratio if len(_split_seeds(folders)) > 1 else None,
        controls=[folder.rows for folder in controls],
        control_names=_control_names(first, controls),
    )


def _check_settings(folders: Sequence[_Folder]) -> None:
    """Refuses other settings; norms may have their own learning rates, seeds their own parts.

    Runs may be checked otherwise: their numbers do not depend on it, and reports say so.
    """
    of_seed: dict[int, _Folder] = {}
    for other in folders:
        for first in (folders[0], of_seed.setdefault(_seed(other), other)):
            free = {_TUNED: _norm(first) != _norm(other), SPLIT_SEED: _seed(first) != _seed(other)}
            different = [
                f"{where} is {ours!r} and {theirs!r}"
                for where, ours, theirs in differences(first.settings, other.settings)
                if not free.get(where) and not where.startswith(provenance.OF_CHECKS)
            ]
            if different:
                raise ConfigError(
                    f"{first.root} and {other.root} cannot be compared: {'; '.join(different)}. "
                    "Give them to reports of their own"
                )


def _check_controls(first: _Folder, controls: Sequence[_Folder]) -> None:
    """Refuses controls of another norm, or on other data or under other attacks than the runs."""
    for control in controls:
        if _norm(control) != REFERENCE:
            raise ConfigError(f"{control.root} is a control; its norm must be {REFERENCE}")
        different = [
            f"{where} is {ours!r} and {theirs!r}"
            for where, ours, theirs in differences(first.settings, control.settings)
            if where.split(".")[0] in ("preset", "task", "data", "evaluation")
            and where != SPLIT_SEED
            and not where.startswith(provenance.OF_CHECKS)
        ]
        if different:
            raise ConfigError(
                f"{control.root} is no control of {first.root}: {'; '.join(different)}"
            )


def _control_names(first: _Folder, controls: Sequence[_Folder]) -> list[str]:
    """Returns in which settings controls differ from the runs, each once."""
    changes = (
        ", ".join(
            f"{where}={theirs}"
            for where, _, theirs in differences(first.settings, control.settings)
            if where != SPLIT_SEED and not where.startswith(provenance.OF_CHECKS)
        )
        for control in controls
    )
    return list(dict.fromkeys(changes))


def _split_seeds(folders: Sequence[_Folder]) -> list[Any]:
    return list(dict.fromkeys((f.settings.get("data") or {}).get("split_seed") for f in folders))


def _norm(folder: _Folder) -> str:
    return folder.rows[0].norm


def _seed(folder: _Folder) -> int:
    return folder.rows[0].seed


def _histories(folders: Sequence[_Folder]) -> Iterator[tuple[str, list[LoggedStep]]]:
    """Yields norm and log of each training; those of a demo of earlier versions are not there."""
    for folder in folders:
        steps = logged_steps(folder.root / "metrics.jsonl")
        if steps:
            yield _norm(folder), steps


def _shown(evaluation: dict[str, Any]) -> list[Column]:
    """Returns the columns of the short table that a configuration names, clean first."""
    attacks = evaluation.get("attacks") or ()
    columns = [Column(CLEAN)]
    for attack in attacks:
        order = "" if attack["kind"] in NOISES else attack["norm"]
        columns += [Column(attack["name"], epsilon, order) for epsilon in attack["shown"]]
    orders = dict.fromkeys(a["norm"] for a in attacks if a["kind"] not in NOISES)
    radii = evaluation.get("shown_worst") or ()
    return columns + [Column(WORST, epsilon, order) for epsilon in radii for order in orders]


def _check_once(folders: Sequence[_Folder]) -> None:
    """Refuses the same run twice, which would count as two seeds."""
    seen: dict[tuple[Any, ...], Path] = {}
    for folder in folders:
        for row in folder.rows:
            key = (row.metric, row.norm, row.seed, _source(row), _column(row), row.steps)
            if key in seen:
                where = f"in {seen[key]} and in {folder.root}"
                if seen[key] == folder.root:
                    where = f"twice in {folder.root}"
                raise ConfigError(
                    f"norm {row.norm}, seed {row.seed}, {_source(row).name} statistics, "
                    f"{_column(row).name} stands {where}; each run counts once"
                )
            seen[key] = folder.root


def _check_alike(folders: Sequence[_Folder]) -> None:
    """Refuses rows of one column that are not of the same attack on the same examples.

    Of volumes split by subject, each seed's test part may have another size.
    """
    drawn = len(_split_seeds(folders)) > 1
    seen: dict[tuple[Any, ...], tuple[Row, Path]] = {}
    for folder in folders:
        for row, name in itertools.product(folder.rows, ("n", "steps", "step_size")):
            steps = row.steps if row.attack == CONVERGENCE else None
            seed = row.seed if drawn and name == "n" else None
            key = (name, seed, row.metric, _source(row), _column(row), steps)
            other, place = seen.setdefault(key, (row, folder.root))
            mine, theirs = getattr(row, name), getattr(other, name)
            if mine != theirs:
                what = {"n": "test examples"}.get(name, name)
                raise ConfigError(
                    f"{_column(row).name} with {_source(row).name} statistics was measured "
                    f"with {theirs} {what} in {place} and {mine} in {folder.root}; evaluate "
                    "all runs alike"
                )


def _source(row: Row) -> Source:
    return Source(row.statistics, row.threat_model)


def _column(row: Row) -> Column:
    return Column(row.attack, row.epsilon, row.norm_order)


def _notes(folders: Sequence[_Folder]) -> list[str]:
    runs = [folder.provenance for folder in folders]
    names = dict.fromkeys(name for run in runs for name in run.versions)
    notes = [
        # Those that all runs share: where seeds draw their parts, how large these are differs.
        *(note for note in folders[0].data_notes if all(note in f.data_notes for f in folders)),
        *provenance.notes(runs),
    ]
    rates: dict[float, dict[str, None]] = {}
    for folder in folders:
        rate = (folder.settings.get("train") or {}).get("learning_rate", math.nan)
        rates.setdefault(rate, {})[_norm(folder)] = None
    said = {SPLIT_SEED, *([_TUNED] if len(rates) > 1 else [])}
    if changed := provenance.changed_settings(folders[0].settings, said):
        notes.append(changed)
    notes += provenance.different_checks([folder.settings for folder in folders])
    if len(rates) > 1:
        each = "; ".join(f"{rate:g}: {', '.join(norms)}" for rate, norms in rates.items())
        notes.append(f"The learning rates differ. {each}.")
    if len(_split_seeds(folders)) > 1:
        ratio = test_per_training(folders[0].settings, folders[0].rows[0].n)
        notes.append(parts_note(ratio))
    for name in names:
        found = sorted({str(run.versions.get(name, "unknown")) for run in runs})
        if len(found) > 1:
            notes.append(f"The runs were trained with different versions of {name}: {found}.")
    return notes
