"""Trains, evaluates and reports several norms with several seeds: one command, one table."""

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments.commands import evaluate, report, train
from experiments.commands.console import Display
from experiments.commands.evaluation_request import Request, plans_for, settings_for
from experiments.commands.made_run import MadeRun
from experiments.commands.sharing import claimed, share
from experiments.configs import overrides
from experiments.configs.data import CityscapesData, DataConfig, VolumesData
from experiments.configs.schema import ExperimentConfig
from experiments.errors import ConfigError
from experiments.evaluation.compiled_programs import release_where_many
from experiments.evaluation.identity import code_version
from experiments.models.norms import NORMS
from experiments.report import REFERENCE, measure, of_task, read
from experiments.results import CLEAN
from experiments.training.folder import RunSettings, read_settings

_CHECKS = "evaluation.checks."


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
      configs: norm -> its configuration; norms may differ in their training's settings.
      seeds: number of seeds, from 0 up.
      request: what is measured of each run; ``twin`` is filled in.
      controls: name -> configuration of other trainings of plain batch norm, narrower or shorter,
        with which norms are compared at the same clean score.
      requests: norm -> what is measured of its runs instead.
      data_dir: the data set; None where the configuration needs none.
      cache_dir: decoded data, shared by all runs.
      split_per_seed: each seed draws its own parts of the data, volumes by subject.
      one_code: runs that other code has made are made anew.  Otherwise they stay: hours of
        training are not thrown away for a change that may have nothing to do with them.
      checkpoint_at_epochs: see ``train``.
      log_every: see ``train``.
    """

    configs: Mapping[str, ExperimentConfig]
    seeds: int
    request: Request
    controls: Mapping[str, ExperimentConfig] = dataclasses.field(default_factory=dict)
    requests: Mapping[str, Request] = dataclasses.field(default_factory=dict)
    data_dir: Path | None = None
    cache_dir: Path | None = None
    split_per_seed: bool = False
    one_code: bool = False
    checkpoint_at_epochs: bool = True
    log_every: int = 20

    def runs(self) -> list["_Run"]:
        """Returns all runs in their order: all norms of a seed before the next seed.

        So what is there when time runs out is a table.
        """
        # Plain batch norm first: of each seed it is what the others are compared with.
        ordered = sorted(self.configs, key=lambda norm: norm != REFERENCE)
        found = []
        for seed in range(self.seeds):
            for norm in ordered:
                place = Path("runs", f"{norm}-{seed}")
                found.append(_Run(place, self._of_seed(self.configs[norm], seed), norm, seed))
            for name, config in self.controls.items():
                place = Path("controls", name, f"{REFERENCE}-{seed}")
                found.append(_Run(place, self._of_seed(config, seed), REFERENCE, seed, name))
        return found

    def _of_seed(self, config: ExperimentConfig, seed: int) -> ExperimentConfig:
        if not self.split_per_seed:
            return config
        drawn: dict[str, Any] = {"split_seed": seed}
        if isinstance(config.data, VolumesData):
            drawn["split"] = "drawn"
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **drawn))

    def request_of(self, norm: str) -> Request:
        """Returns what is measured of a norm's runs."""
        return self.requests.get(norm, self.request)


class _Run(NamedTuple):
    """One training and its evaluation.

    Attributes:
      place: its folder, relative to that of the comparison.
      config: its settings.
      norm: of its network.
      seed: of its training.
      control: the name of the control that it belongs to; empty for none.
    """

    place: Path
    config: ExperimentConfig
    norm: str
    seed: int
    control: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.norm}{f' ({self.control})' * bool(self.control)}, seed {self.seed}"


def configs(
    name: str, preset: str | None, smoke: bool, norms: Sequence[str], changes: Sequence[str]
) -> dict[str, ExperimentConfig]:
    """Returns the configuration of each norm.

    Args:
      name: as in ``presets.config_names()``.
      preset: of that configuration; None is its first.
      smoke: shrink it first.
      norms: which.
      changes: ``FIELD=VALUE``, for all, or ``NORM:FIELD=VALUE``.

    Raises:
      ConfigError: an unknown name or field, a value out of range, or a norm that is not compared.
    """
    check_names(norms)
    for change in changes:
        owner, colon, _ = change.partition("=")[0].partition(":")
        if colon and owner not in norms:
            raise ConfigError(
                f"--set {change}: {owner!r} is none of the norms that are compared: "
                f"{', '.join(norms)}"
            )
    return {
        norm: overrides.resolve(name, preset=preset, smoke=smoke, overrides=_of(norm, changes))
        for norm in norms
    }


def requests(
    request: Request, norms: Collection[str], changes: Sequence[str]
) -> dict[str, Request]:
    """Returns what is measured of each norm's runs where settings of the checks are changed.

    They are a part of what is asked for, so that finished runs are checked anew with them.

    Args:
      request: what is measured but for that.
      norms: which.
      changes: as of ``configs``.
    """
    found = {}
    for norm in norms:
        of_checks = [c.strip() for c in _of(norm, changes) if c.strip().startswith(_CHECKS)]
        if of_checks:
            found[norm] = dataclasses.replace(request, changes=tuple(of_checks))
    return found


def _of(norm: str, changes: Sequence[str]) -> list[str]:
    """Returns the changes that are for a norm, without its name."""
    found = []
    for change in changes:
        owner, colon, _ = change.partition("=")[0].partition(":")
        if not colon or owner == norm:
            found.append(change.removeprefix(f"{norm}:"))
    return found


def controls(
    name: str, preset: str | None, smoke: bool, changes: Sequence[str], each: Sequence[str]
) -> dict[str, ExperimentConfig]:
    """Returns the configuration of each control, by the setting in which it differs.

    Args:
      name: as in ``presets.config_names()``.
      preset: of that configuration; None is its first.
      smoke: shrink it first.
      changes: as of ``configs``; those of batch norm count too.
      each: ``FIELD=VALUE``, one for each control.

    Raises:
      ConfigError: an unknown field, a value out of range, or a control that is as the norms are.
    """
    found = {}
    of_batch = _of(REFERENCE, changes)
    usual = overrides.resolve(name, preset=preset, smoke=smoke, overrides=of_batch)
    for change in each:
        wanted = [*of_batch, change]
        config = overrides.resolve(name, preset=preset, smoke=smoke, overrides=wanted)
        if config == usual:
            raise ConfigError(f"--control {change}: that is what batch norm has in the comparison")
        if (config.data, config.evaluation) != (usual.data, usual.evaluation):
            raise ConfigError(
                f"--control {change}: a control has the data and attacks of the other runs; name "
                "a setting of the model or of the training, as model.width=12"
            )
        found[re.sub(r"[^\w.=-]+", "-", change)] = config
    return found


def run(workdir: Path, comparison: Comparison, *, display: Display | None = None) -> None:
    """Runs ``train`` and ``evaluate`` for each norm and seed, and ``report`` on the whole folder.

    The work folders are ``runs/NORM-SEED`` and ``controls/NAME/batch-SEED``; the report lies above
    them.  What is finished there is reused, also where nothing but its results is left: an
    interrupted comparison goes on where it stopped.  Several processes with the same arguments
    share the runs, and each writes the report once all of them are done.

    Args:
      workdir: of the comparison; made where there is none.
      comparison: what is compared.
      display: where to print and to show bars; standard output by default.

    Raises:
      ConfigError: an unknown norm, no seed, or a folder that cannot be used.
    """
    _check(workdir, comparison)
    runs = comparison.runs()
    display = display or Display()
    with display:
        with display.bar("all runs", len(runs)) as bar:
            done: set[Path] = set()

            def attempt(one: _Run) -> bool:
                if not _is_finished(workdir, comparison, one):
                    with claimed(workdir, one.place) as mine:
                        to_come = {run.place for run in runs} - done
                        if not mine or _needs_twin(workdir, one, to_come):
                            return False
                        bar.note(one.name)
                        _one(workdir, comparison, one, display.inside())
                        release_where_many()
                done.add(one.place)
                bar.advance()
                clean = _clean_score(workdir / one.place, one.config.task)
                display.say(f"[{runs.index(one) + 1}/{len(runs)}] {one.name}: {clean}")
                return True

            def on_wait(waiting: Sequence[_Run]) -> None:
                bar.note(f"waiting for other processes, which are at the last {len(waiting)} runs")

            share(runs, attempt, on_wait)
        with claimed(workdir, "report", wait=True):
            _report(workdir, comparison, runs, display.console)


def _report(workdir: Path, comparison: Comparison, runs: Sequence[_Run], console: Console) -> None:
    """Reports on all runs of the folder, those of earlier commands too where they go together."""
    folders = [workdir / one.place for one in runs if not one.control]
    controls = [workdir / one.place for one in runs if one.control]
    if not comparison.one_code:  # there what is left of an earlier command may be of other code
        try:
            read([workdir])
        except ConfigError as problem:
            console.print(
                "The report is of this command's runs alone: with those of earlier commands in "
                f"{workdir} they are no one table ({problem})",
                highlight=False,
                markup=False,
            )
        else:
            folders, controls = [workdir], []
    report.run(folders, workdir, controls=controls, console=console)


def _is_finished(workdir: Path, comparison: Comparison, one: _Run) -> bool:
    """Returns whether nothing is left to do, which needs no claim: others may be at more."""
    if comparison.one_code:
        return False  # it may be of other code, with other settings, and is made anew then
    wanted = comparison.request_of(one.norm)
    made = MadeRun(workdir / one.place)
    return not made.missing(_settings(workdir, one), wanted, one_code=False)


def _settings(workdir: Path, one: _Run) -> RunSettings:
    """Returns the settings of a run, whose checks are those that it was begun with.

    A check says itself what it was made with, and no other number depends on it. So other defaults
    in a later version make no other run; what the command names is a part of its request.
    """
    config = one.config
    if (workdir / one.place / "config.json").exists():
        checks = read_settings(workdir / one.place).config.evaluation.checks
        evaluation = dataclasses.replace(config.evaluation, checks=checks)
        config = dataclasses.replace(config, evaluation=evaluation)
    return RunSettings(config, one.norm, one.seed)


def _needs_twin(workdir: Path, one: _Run, to_come: Set[Path]) -> bool:
    """Returns whether batch norm with the same seed is to be trained first, of the runs to come."""
    twin = _twin(one.place, one)
    return twin != one.place and twin in to_come and not MadeRun(workdir / twin).has_weights


def _twin(folder: Path, one: _Run) -> Path:
    """Returns the folder of the same seed's batch norm: attacks on it are tried on others."""
    return folder.with_name(f"{REFERENCE}-{one.seed}")


def _one(workdir: Path, comparison: Comparison, one: _Run, display: Display) -> None:
    """Trains and evaluates one norm with one seed, unless that is done."""
    folder = workdir / one.place
    made = MadeRun(folder)
    if comparison.one_code and made.by not in ("", code_version()):
        shutil.rmtree(folder)
    settings = _settings(workdir, one)
    wanted = comparison.request_of(one.norm)
    requests = made.missing(settings, wanted, one_code=comparison.one_code)
    if not requests:
        return
    made.begin()
    begun = time.monotonic()
    train.run(
        settings.config,
        train.Places(folder, comparison.data_dir, comparison.cache_dir),
        norm=one.norm,
        seed=one.seed,
        checkpoint_at_epochs=comparison.checkpoint_at_epochs,
        log_every=comparison.log_every,
        display=display,
    )
    made.trained()
    made.took(time.monotonic() - begun)
    twin = _twin(folder, one)
    has_twin = one.norm != REFERENCE and MadeRun(twin).has_weights
    if has_twin:
        theirs = read_settings(twin).config
        of_ours = dataclasses.replace(theirs, evaluation=settings.config.evaluation)
        has_twin = of_ours == settings.config
    for request in requests:
        begun = time.monotonic()
        evaluate.run(
            folder,
            dataclasses.replace(request, twin=twin if has_twin else None),
            data_dir=comparison.data_dir,
            cache_dir=comparison.cache_dir,
            display=display,
        )
        made.measured(request)
        made.took(time.monotonic() - begun)


def _clean_score(folder: Path, task: str) -> str:
    """Returns the clean scores of a run in words."""
    rows = json.loads((folder / "results.json").read_text())
    (metric, *_) = of_task(task)
    found = (row for row in rows if row["attack"] == CLEAN and row["metric"] == metric)
    unit = measure(metric)
    return "clean " + ", ".join(f"{unit.text(row['value'])} ({row['statistics']})" for row in found)


def _check(workdir: Path, comparison: Comparison) -> None:
    check_names(comparison.configs)
    if comparison.seeds < 1:
        raise ConfigError(f"seeds must be at least 1; got {comparison.seeds}")
    data = [config.data for config in comparison.configs.values()]
    if comparison.split_per_seed and any(map(_draws_nothing, data)):
        raise ConfigError(
            "--split-per-seed: the parts of these data are folders (data.validation=folder), so "
            "that a seed has nothing to draw; --set data.validation=split draws validation images"
        )
    if (workdir / "config.json").exists():
        raise ConfigError(
            f"{workdir} is the work folder of a training, or of a demo of an earlier version; "
            "choose another --workdir"
        )
    for norm, config in comparison.configs.items():  # mistakes now, not after the first training
        request = comparison.request_of(norm)
        plans_for(settings_for(config.evaluation, request), norm, request)


def _draws_nothing(data: DataConfig) -> bool:
    return (
        isinstance(data, CityscapesData)
        and data.validation == "folder"
        and data.train_examples is None
    )


def check_names(norms: Sequence[str] | Mapping[str, Any]) -> None:
    """Checks the names of norms.

    Raises:
      ConfigError: an unknown one, or none at all.
    """
    unknown = [norm for norm in norms if norm not in NORMS]
    if unknown or not norms:
        got = ", ".join(unknown) or "none"
        raise ConfigError(f"norms must be some of {', '.join(NORMS)}; got {got}")
