"""Measures the risk of the estimators, part by part, and writes tables and figures of it.

Each part is kept in a file of its own as soon as it is measured.  The same command goes on from
there; what was measured with another seed, or by other code, is measured again.
"""

import functools
import math
import shlex
import time
from pathlib import Path

import jaxlib
from flax import nnx

from experiments import data, tasks
from experiments.commands.console import Bar, Display, make_folder
from experiments.commands.seeds import check_seed
from experiments.configs import presets
from experiments.evaluation.risk import parts as measured
from experiments.evaluation.risk.monte_carlo import Row
from experiments.evaluation.risk.networks import Networks
from experiments.models.build import build
from experiments.report import risk as report
from experiments.training.folder import machine
from experiments.training.loop import Loop, Observer
from steinnorm.attacks.files import write_bytes, write_text


def run(
    out: Path,
    *,
    smoke: bool = False,
    seed: int = 0,
    parts: str = "",
    display: Display | None = None,
) -> dict[str, list[Row]]:
    """Measures the parts that are not finished, writes ``out/risk.md`` and figures.

    Args:
      out: the folder for the results; made where there is none.
      smoke: small grids, few batches and a tiny network, to see that all parts run.
      seed: of all random numbers, the network's weights and training included.
      parts: names with commas between; all where it is empty.
      display: where to print and to show bars; standard output by default.

    Returns:
      Part -> its rows, as ``out/parts/PART.json`` has them.

    Raises:
      ConfigError: a seed that is none, a part that does not exist, or a folder that cannot be used.
    """
    check_seed(seed)
    names = measured.chosen(parts)
    make_folder(out)
    request = measured.Request.of(seed, smoke)
    display, rows = display or Display(), dict[str, list[Row]]()
    with display:
        networks = _networks(smoke, display)
        for number, name in enumerate(names, start=1):
            found = measured.finished(out, name, request)
            how = "found finished"
            if found is None:
                began = time.perf_counter()
                with display.bar(f"{name}: starting") as bar:
                    found = measured.measure(
                        out, name, request, networks, functools.partial(_show, bar, name)
                    )
                how = f"{time.perf_counter() - began:.0f} s"
            rows[name] = found
            display.say(f"[{number}/{len(names)}] {name}: {len(found)} rows, {how}")
        _write(out, request, parts, rows, display)
    return rows


def _show(bar: Bar, part: str, done: int, total: int, what: str) -> None:
    bar.move_to(done, total)
    bar.note(f"{part}: {what}")


class _Shown(Observer):
    """Moves the bar of a training."""

    def __init__(self, bar: Bar, norm: str):
        self._bar, self._norm = bar, norm
        self.loss = math.nan

    def stepped(self, step: int, total: int, loss: float) -> None:
        """A step is done."""
        self.loss = loss
        self._bar.note(f"{self._norm}: training, loss {loss:.3f}")
        self._bar.move_to(step, total)


def _networks(smoke: bool, display: Display) -> Networks:
    """Returns the digits, and a function that trains a network when it is first asked for."""
    config = presets.load("digits", smoke=smoke)
    dataset = data.load(config.data)
    task = tasks.create(config.task, dataset.classes)

    @functools.cache
    def trained(norm: str, seed: int) -> nnx.Module:
        train = dataset.train
        model = build(
            config.model, norm, config.train, examples=train, outputs=task.outputs, seed=seed
        )
        with display.bar(f"{norm}: compiling") as bar:
            shown = _Shown(bar, norm)
            loop = Loop(task=task, config=config.train, seed=seed, observer=shown)
            found = loop.run(model, train)
        display.say(f"{norm}, seed {seed}: trained, loss {shown.loss:.3f}")
        return found.model

    train, test = dataset.train, dataset.test
    return Networks(config.name, trained, train.inputs, train.targets, test.inputs, test.targets)


def _write(
    out: Path, request: measured.Request, parts: str, rows: dict[str, list[Row]], display: Display
) -> None:
    flags = f"{' --smoke' if request.smoke else ''} --seed {request.seed}"
    flags += f" --parts {parts}" if parts else ""
    command = f"python -m experiments risk --out {shlex.quote(str(out))}{flags}"
    made_on = f"{machine()}; jaxlib {jaxlib.__version__}"
    figures = report.figures(rows)
    for name, content in figures.items():
        write_bytes(out / name, content)
    write_text(out / "risk.md", report.markdown(command, made_on, rows, tuple(figures)))
    for line in report.summary(rows):
        display.say(line)
    display.say(f"Tables and figures: {out / 'risk.md'}")
