"""The main job: train and evaluate every norm on the digits, and report what came out."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.commands import evaluate, evaluation_request, report, train
from experiments.commands.console import Display
from experiments.configs import presets
from experiments.configs.schema import ExperimentConfig
from experiments.errors import ConfigError
from experiments.evaluation.identity import code_version
from experiments.models.norms import NORMS
from experiments.report import REFERENCE
from experiments.results import CLEAN, Row
from steinnorm.attacks.files import write_text


def run(
    workdir: Path,
    *,
    norms: Sequence[str] = NORMS,
    seeds: int = 2,
    smoke: bool = False,
    display: Display | None = None,
) -> None:
    """Runs ``train`` and ``evaluate`` for each norm and seed, and ``report`` on all of them.

    The work folders are ``runs/NORM-SEED``; the report lies above them.  What is finished there is
    reused: an interrupted demo goes on where it stopped.

    Args:
      workdir: of the demo; made where there is none.
      norms: names from ``experiments.models.norms.NORMS``.
      seeds: number of seeds, from 0 up.
      smoke: a tiny network and a handful of images, to see that all parts run.
      display: where to print and to show bars; standard output by default.

    Raises:
      ConfigError: an unknown norm, no seed, or a folder that cannot be used.
    """
    _check(workdir, norms, seeds)
    config = presets.load("digits", smoke=smoke)
    # Plain batch norm first: of each seed it is what the others are compared with.
    ordered = sorted(dict.fromkeys(norms), key=lambda norm: norm != REFERENCE)
    runs = [(norm, seed) for norm in ordered for seed in range(seeds)]
    folders = []
    display = display or Display()
    with display:
        with display.bar("all runs", len(runs)) as bar:
            for number, (norm, seed) in enumerate(runs, start=1):
                bar.note(f"{norm}, seed {seed}")
                folder, rows = _one(workdir, config, norm, seed, display.inside())
                folders.append(folder)
                bar.advance()
                clean = ", ".join(
                    f"{100 * row.value:.1f} % ({row.statistics})"
                    for row in rows
                    if row.attack == CLEAN and row.metric == "accuracy"
                )
                display.say(f"[{number}/{len(runs)}] {norm}, seed {seed}: clean {clean}")
        report.run(folders, workdir, console=display.console)


def _one(
    workdir: Path, config: ExperimentConfig, norm: str, seed: int, display: Display
) -> tuple[Path, list[Row]]:
    """Trains and evaluates one norm with one seed; returns its folder and its rows."""
    folder, twin = (workdir / "runs" / f"{name}-{seed}" for name in (norm, REFERENCE))
    _make_of_this_code(folder)
    # One checkpoint: a training takes seconds.
    train.run(
        config,
        train.Places(folder),
        norm=norm,
        seed=seed,
        checkpoint_at_epochs=False,
        log_every=2,
        display=display,
    )
    has_twin = norm != REFERENCE and twin.exists()
    request = evaluation_request.Request(attacks="all", twin=twin if has_twin else None)
    return folder, evaluate.run(folder, request, display=display)


def _make_of_this_code(folder: Path) -> None:
    """Makes the folder of a run; one that a demo of other code has trained is begun anew.

    Raises:
      ConfigError: the folder holds a training that no demo has made.
    """
    note = folder / "code.txt"
    if (folder / "config.json").exists() and not note.exists():
        raise ConfigError(
            f"{folder} holds a training that is not the demo's; choose another --workdir"
        )
    if note.exists() and note.read_text() != code_version():
        shutil.rmtree(folder)
    if not note.exists():
        write_text(note, code_version())


def _check(workdir: Path, norms: Sequence[str], seeds: int) -> None:
    unknown = [norm for norm in norms if norm not in NORMS]
    if unknown or not norms:
        got = ", ".join(unknown) or "none"
        raise ConfigError(f"norms must be some of {', '.join(NORMS)}; got {got}")
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1; got {seeds}")
    if (workdir / "config.json").exists():
        raise ConfigError(
            f"{workdir} is the work folder of a training, or of a demo of an earlier version; "
            "choose another --workdir"
        )
