"""The main job: train and evaluate every norm on the digits, and report what came out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.commands import compare
from experiments.commands.console import Display
from experiments.commands.evaluation_request import Request
from experiments.configs import presets
from experiments.models.norms import DEMO_NORMS
from experiments.report import REFERENCE


def run(
    workdir: Path,
    *,
    norms: Sequence[str] = DEMO_NORMS,
    seeds: int = 2,
    smoke: bool = False,
    display: Display | None = None,
) -> None:
    """Compares the norms on the digits, under every attack of the configuration.

    Args:
      workdir: of the demo; made where there is none.
      norms: names from ``experiments.models.norms.NORMS``.
      seeds: number of seeds, from 0 up.
      smoke: a tiny network and a handful of images, to see that all parts run; without calibrated
        statistics.
      display: where to print and to show bars; standard output by default.

    Raises:
      ConfigError: an unknown norm, no seed, or a folder that cannot be used.
    """
    config = presets.load("digits", smoke=smoke)
    request = Request(attacks="all")
    # For plain batch norm, which is what calibration is recommended for; a row, not eight more.
    sources = ",".join([*config.evaluation.statistics, "calibrated"])
    calibrated = dataclasses.replace(request, statistics=sources)
    comparison = compare.Comparison(
        configs=dict.fromkeys(norms, config),
        seeds=seeds,
        request=request,
        requests={} if smoke else {REFERENCE: calibrated},
        one_code=True,
        checkpoint_at_epochs=False,  # a training takes seconds
        log_every=2,
    )
    compare.run(workdir, comparison, display=display)
