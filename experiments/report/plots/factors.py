"""Shrinkage factors over training."""

import math
import re
from collections.abc import Iterator, Sequence
from statistics import fmean

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.models.norms import NORMS
from experiments.report.labels import REFERENCE
from experiments.report.plots import style
from experiments.results import LoggedStep

History = tuple[str, Sequence[LoggedStep]]
"""A norm, and the steps that were logged while a network with it was trained."""

MAX_LAYERS = 12
"""Panels of a statistic; of more layers so many are shown, evenly from the first to the last."""

_STATISTICS = {"mean_factor": "batch mean", "variance_factor": "batch variance"}
_COLUMNS = 3
_UNTOUCHED = 0.005  # a factor that stays this close to 1 does nothing that a plot could show

# Factors of one norm, layer and statistic: epoch -> one value per run.
_Epochs = dict[int, list[float]]


def shrinkage(runs: Sequence[History]) -> bytes:
    """Draws shrinkage factors over training: means above, variances below, a panel per layer.

    A point is the mean over an epoch and over the runs of a norm, a band reaches from the lowest
    to the highest run: ``toward_running`` sets its factor anew for every batch, and step by step
    its line would hide the others.  1 leaves the statistic as it is, 0 replaces it by the rule's
    target; above 1 it is enlarged.  Norms whose factors stay at 1 are named, not drawn.

    Args:
      runs: in any order; several of one norm are its seeds.

    Returns:
      PNG bytes.
    """
    with style.letters():
        return style.png(_figure(runs))


def _figure(runs: Sequence[History]) -> Figure:
    layers = _layers(runs)
    shown = _evenly(layers, MAX_LAYERS)
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    by_statistic = {
        statistic: _drawn_and_untouched(runs, factor) for factor, statistic in _STATISTICS.items()
    }
    # A statistic that no norm shrinks is named in words: its panels would be empty.
    parts = {name: found for name, found in by_statistic.items() if found[0]} or by_statistic
    height = len(parts) * (1.45 * rows + 0.95) + 0.4
    figure = plt.figure(figsize=(style.WIDTH, height), layout="constrained")
    halves = figure.subfigures(len(parts), 1, hspace=0.02, squeeze=False)[:, 0]
    for half, (statistic, (lines, at_one)) in zip(halves, parts.items(), strict=True):
        _draw_half(half, lines, shown, (rows, columns))
        half.suptitle(_title(statistic, at_one, bool(layers)), fontsize=10.5, x=0.01, ha="left")
    drawn = {norm for lines, _ in parts.values() for norm in lines}
    rest = "".join(f"\nno norm shrinks the {name}" for name in by_statistic if name not in parts)
    more = f"; {len(shown)} of {len(layers)} layers" if len(shown) < len(layers) else ""
    half.supxlabel(f"epoch{more}{rest}")
    figure.supylabel("shrinkage factor (1: untouched, 0: replaced by the target)")
    handles = [
        Line2D([], [], label=norm, **style.line_style(norm))  # type: ignore[arg-type]
        for norm in NORMS
        if norm in drawn
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=4,
            handlelength=3.5,
            frameon=False,
            title=_meaning_of_lines(runs),
            alignment="left",
        )
    return figure


def _drawn_and_untouched(
    runs: Sequence[History], factor: str
) -> tuple[dict[str, dict[str, _Epochs]], list[str]]:
    """Returns the lines of the norms that shrink a statistic, and the norms that do not."""
    by_norm = {norm: _epochs_by_layer(runs, norm, factor) for norm in NORMS}
    at_one = [norm for norm, found in by_norm.items() if found and _is_untouched(found)]
    return {norm: v for norm, v in by_norm.items() if v and norm not in at_one}, at_one


def _meaning_of_lines(runs: Sequence[History]) -> str:
    norms = [norm for norm, _ in runs]
    if len(norms) == len(set(norms)):
        return "line: mean over an epoch"
    return "line: mean over an epoch and over the seeds; band: lowest to highest seed"


def _title(statistic: str, at_one: Sequence[str], are_logged: bool) -> str:
    title = f"Shrinkage of the {statistic}{'' if are_logged else ': no factors were logged'}"
    if at_one:
        names = ", ".join(f"{n} (reference)" if n == REFERENCE else n for n in at_one)
        title += f"\nnot drawn, within {_UNTOUCHED} of 1 throughout: {names}"
    return title


def _draw_half(
    half: SubFigure,
    lines: dict[str, dict[str, _Epochs]],
    layers: Sequence[str],
    shape: tuple[int, int],
) -> None:
    axes = half.subplots(*shape, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, layer in zip(axes, layers, strict=False):
        for norm, by_layer in lines.items():
            if layer in by_layer:
                _draw_line(axis, norm, by_layer[layer])
        axis.axhline(1.0, color="#999999", linewidth=0.8, zorder=1)
        axis.set_title(layer, fontsize=9.5)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in axes[len(layers) :]:
        axis.set_visible(False)
    for i in range(len(layers), shape[0] * shape[1]):  # the panels above those that are missing
        if i >= shape[1]:
            axes[i - shape[1]].tick_params(labelbottom=True)


def _draw_line(axis: Axes, norm: str, epochs: _Epochs) -> None:
    look = style.line_style(norm)
    places = sorted(epochs)
    lowest = [min(epochs[place]) for place in places]
    highest = [max(epochs[place]) for place in places]
    axis.fill_between(places, lowest, highest, color=look["color"], alpha=0.15, linewidth=0)
    axis.plot(places, [fmean(epochs[place]) for place in places], **look)  # type: ignore[arg-type]


def _epochs_by_layer(runs: Sequence[History], norm: str, factor: str) -> dict[str, _Epochs]:
    """Returns layer -> epoch -> the mean over that epoch, one per run of the norm."""
    found: dict[str, _Epochs] = {}
    for _, steps in (run for run in runs if run[0] == norm):
        for layer, epoch, mean in _means(steps, factor):
            found.setdefault(layer, {}).setdefault(epoch, []).append(mean)
    return found


def _means(steps: Sequence[LoggedStep], factor: str) -> Iterator[tuple[str, int, float]]:
    values: dict[tuple[str, int], list[float]] = {}
    for step in steps:
        for layer, factors in step.factors.items():
            values.setdefault((layer, math.ceil(step.epoch)), []).append(factors[factor])
    for (layer, epoch), found in values.items():
        yield layer, epoch, fmean(found)


def _is_untouched(by_layer: dict[str, _Epochs]) -> bool:
    return all(
        abs(value - 1.0) < _UNTOUCHED
        for epochs in by_layer.values()
        for values in epochs.values()
        for value in values
    )


def _layers(runs: Sequence[History]) -> list[str]:
    """Returns the layers' names in the network's order, as far as names tell it."""
    names = {layer for _, steps in runs for step in steps for layer in step.factors}

    def place(name: str) -> tuple[bool, list[tuple[bool, int, str]]]:
        # The stem comes first in the network, but not in the alphabet; 10 comes after 9.
        parts = [part for part in re.split(r"(\d+)", name) if part]
        return not name.startswith("stem"), [
            (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts
        ]

    return sorted(names, key=place)


def _evenly(names: Sequence[str], count: int) -> list[str]:
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
