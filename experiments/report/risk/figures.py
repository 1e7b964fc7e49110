"""Draws the figures of the risks: one function each, from the rows of a part."""

import io
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from experiments.evaluation.risk.independent import PATTERNS
from experiments.evaluation.risk.monte_carlo import Row
from experiments.report.plots import style
from experiments.report.risk import network_figures as of_networks
from experiments.report.risk.looks import draw_line, finish
from experiments.report.risk.rows import Rows, select, values

CAPTIONS = {
    ("counterexamples", "counterexamples.png"): (
        "Exact counterexamples. Left: C = 3, theta = (1, -1, 0): the more values, the worse the "
        "rules that take the spread between channels for noise. Middle: |theta|² / C beyond which "
        "they lose, for true means that sum to zero. Right: James & Stein's rule under noise of "
        "variance 1 that hits few channels."
    ),
    ("independent", "signal.png"): (
        "Ratio of risks against the signal, 16 independent normal channels of 16 values; by the "
        "pattern of the true means."
    ),
    ("map", "map.png"): (
        "Where rules for the means are better, tie or are worse than the sample means: channels "
        "against signal, 16 values each, by the pattern of the true means (columns)."
    ),
    ("correlated", "correlated.png"): (
        "The worst ratio over theta against tr S / lmax, for all correlations, C and B; the "
        "vertical line is 4, from where James & Stein's rule is proved to dominate."
    ),
    ("perturbed", "perturbed.png"): (
        "Ratios of risks against the size of a perturbation of the data: means above, variances "
        "below. Lines of a colour: the five kinds of perturbation."
    ),
    ("maps", "maps.png"): (
        "Ratios on real feature maps against the batch size, geometric mean over the layers: "
        "clean, noisy and attacked images; means above, variances below."
    ),
    ("fraction", "fraction.png"): (
        "The rule for variances against the fraction of its constant: exact for 16 independent "
        "normal channels (left), and on feature maps, a line for each layer (right)."
    ),
    ("lipschitz", "lipschitz.png"): (
        "Local Lipschitz constants of networks with Stein norm over those of networks with batch "
        "norm, a point for each seed; below 1 Stein's is smaller."
    ),
}
"""Part and file -> what the figure shows."""


def figures(rows: Rows) -> dict[str, bytes]:
    """Returns file name -> PNG bytes, of the parts that were measured."""
    drawn = {}
    with style.letters():
        for part, name in CAPTIONS:
            if part in rows:
                drawn[name] = _few_colours(style.png(_DRAW[name](rows[part])))
    return drawn


def _few_colours(png: bytes) -> bytes:
    """Returns the picture in 64 colours, a third of its bytes: it is of lines and letters."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        reduced = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        reduced.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _counterexamples(rows: list[Row]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(style.WIDTH, 3.4), layout="constrained")
    growth = select(rows, kind="growth")
    counts = [r["count"] for r in growth]
    for name in ("stein", "jsnorm", "james_stein"):
        draw_line(axes[0], name, counts, [r[name] for r in growth])
    axes[0].set(
        xscale="log", yscale="log", xlabel="values per channel, N", title="worse with more data"
    )
    limits = select(rows, kind="threshold")
    for name in ("stein", "jsnorm"):
        draw_line(axes[1], name, [r["channels"] for r in limits], [r[name] for r in limits])
    axes[1].set(
        xscale="log", xlabel="channels, C", title="worse beyond this", ylabel="|theta|² / C"
    )
    axes[1].set_xticks([3, 8, 16, 64, 256], ["3", "8", "16", "64", "256"])
    axes[1].minorticks_off()
    sparse = select(rows, kind="sparse")
    for channels, shade in zip(
        values(sparse, "channels"), ("#56B4E9", "#0072B2", "#003F66", "#000000"), strict=False
    ):
        found = [r for r in select(sparse, channels=channels) if r["ratio"] > 1]
        axes[2].plot(
            [100 * r["share"] for r in found],
            [r["ratio"] for r in found],
            "o-",
            color=shade,
            markersize=4,
            label=f"C = {channels}",
        )
    axes[2].set(
        xscale="log",
        xlabel="channels that are hit (%)",
        title="james_stein, sparse noise",
    )
    axes[2].set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes[2].minorticks_off()
    axes[0].set_ylabel("risk / risk of the sample means")
    for axis in axes:
        finish(axis, line=axis is not axes[1])
        axis.legend(frameon=False)
    return figure


def _signal(rows: list[Row]) -> Figure:
    rows = select(rows, target="mean", channels=16, count=16, spread=0.0)
    figure, axes = plt.subplots(1, 3, figsize=(style.WIDTH, 3.9), sharey=True, layout="constrained")
    shown = ("james_stein", "tr S - 2 lmax", "stein", "jsnorm", "ridge")
    for axis, kind in zip(axes, PATTERNS, strict=True):
        here = [r for r in rows if r["pattern"] == kind or not r["signal"]]
        for name in shown:
            found = sorted(select(here, estimator=name), key=lambda r: r["signal"])
            # The first point, of no signal, has no place on a logarithmic axis.
            draw_line(
                axis, name, [max(r["signal"], 0.06) for r in found], [r["ratio"] for r in found]
            )
        axis.set(xscale="log", yscale="log", title=f"true means: {kind}", xlabel="signal")
        axis.set_xticks([0.06, 0.25, 1, 4, 16, 64], ["0", "1/4", "1", "4", "16", "64"])
        axis.minorticks_off()
        finish(axis)
    axes[0].set_ylabel("risk / risk of the sample means")
    _legend(figure, axes[0])
    return figure


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, handlelength=3)


_VERDICTS = ("better", "tie", "worse")
_MAP_COLOURS = ("#56B4E9", "#EEEEEE", "#D55E00")


def _map(rows: list[Row]) -> Figure:
    shown = ("james_stein", "tr S - 2 lmax", "stein")
    channels, signals = values(rows, "channels"), values(rows, "signal")
    figure, axes = plt.subplots(
        len(shown),
        len(PATTERNS),
        figsize=(style.WIDTH, 7.2),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for line, estimator in zip(axes, shown, strict=True):
        for axis, kind in zip(line, PATTERNS, strict=True):
            found = {
                (r["channels"], r["signal"]): r
                for r in select(rows, estimator=estimator, pattern=kind)
            }
            grid = [[_VERDICTS.index(found[c, s]["verdict"]) for s in signals] for c in channels]
            axis.imshow(
                grid,
                cmap=ListedColormap(_MAP_COLOURS),
                vmin=0,
                vmax=2,
                origin="lower",
                aspect="auto",
            )
            for (c, s), row in found.items():
                decimals = 2 if row["ratio"] < 9.95 else 0
                text = f"{row['ratio']:.{decimals}f}"
                axis.text(
                    signals.index(s),
                    channels.index(c),
                    text,
                    ha="center",
                    va="center",
                    fontsize=6.5,
                )
            axis.set_title(f"{estimator}; {kind}", fontsize=9.5)
    for axis in axes[-1]:
        axis.set_xticks(range(len(signals)), [f"{s:g}" for s in signals], fontsize=7.5)
        axis.set_xlabel("signal")
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(channels)), [str(c) for c in channels])
        axis.set_ylabel("channels, C")
    handles = [Patch(color=c, label=v) for c, v in zip(_MAP_COLOURS, _VERDICTS, strict=True)]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=3,
        frameon=False,
        title="than the sample means (numbers: ratio of risks)",
        alignment="left",
    )
    return figure


def _correlated(rows: list[Row]) -> Figure:
    figure, axes = plt.subplots(1, 3, figsize=(style.WIDTH, 3.7), sharey=True, layout="constrained")
    titles = {
        "james_stein, known noise": "james_stein, noise known",
        "toward_running": "james_stein and toward_running,\nnoise measured",
        "tr S - 2 lmax": "tr S - 2 lmax, S measured",
    }
    looks = {2: ("o", "#D55E00"), 4: ("s", "#0072B2"), 16: ("^", "#000000")}
    for axis, (estimator, title) in zip(axes, titles.items(), strict=True):
        mine = select(rows, estimator=estimator)
        for examples in values(mine, "examples"):
            here = select(mine, examples=examples)
            worst: dict[tuple[str, int], Row] = {}
            for row in here:
                place = (row["structure"], row["channels"])
                if place not in worst or row["ratio"] > worst[place]["ratio"]:
                    worst[place] = row
            marker, colour = looks[examples]
            axis.plot(
                [r["dimension"] for r in worst.values()],
                [r["ratio"] for r in worst.values()],
                marker,
                color=colour,
                label=f"B = {examples}",
                markersize=5,
                fillstyle="none",
            )
        axis.axvline(4, color="#999999", linestyle=":")
        axis.set(xscale="log", xlabel="tr S / lmax", title=title)
        axis.set_xticks([1, 2, 4, 8, 16, 64], ["1", "2", "4", "8", "16", "64"])
        axis.minorticks_off()
        finish(axis)
    axes[0].set_ylabel("worst risk / risk of the sample means")
    axes[2].legend(frameon=False, title="examples in a batch")
    return figure


def _perturbed(rows: list[Row]) -> Figure:
    panels = [(scope, m) for scope in ("independent", "shared") for m in (False, True)]
    figure, axes = plt.subplots(
        2, 4, figsize=(style.WIDTH, 6.2), sharex=True, sharey="row", layout="constrained"
    )
    shown = {
        "mean": ("james_stein", "stein", "toward_running"),
        "variance": ("stein", "moderated", "toward_running"),
    }
    for line, (target, names) in zip(axes, shown.items(), strict=True):
        clean = select(rows, target=target, size=0.0)
        for axis, (scope, has_mean) in zip(line, panels, strict=True):
            here = select(rows, target=target, scope=scope, has_mean=has_mean)
            for name in names:
                for kind in values(here, "kind"):
                    found = [r for r in select(here, estimator=name, kind=kind) if r["size"]]
                    found = select(clean, estimator=name) + found
                    draw_line(
                        axis,
                        name,
                        [r["size"] for r in found],
                        [r["ratio"] for r in found],
                        label=name if kind == "gaussian" else None,
                        thin=True,
                    )
            finish(axis)
            axis.set_yscale("log")
            if target == "mean":
                axis.set_title(f"{scope}\n{'with a mean' if has_mean else 'mean 0'}")
            else:
                axis.set_xlabel("root mean square")
        line[0].set_ylabel(f"{target}s: risk / that of the sample's")
        line[0].legend(frameon=False, fontsize=8.5)
    for axis in axes.ravel():
        axis.set_xticks(np.arange(5))
        axis.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
        axis.minorticks_off()
    axes[0, 0].set_ylim(0.05, 3)
    axes[1, 0].set_ylim(0.12, 2)
    return figure


_DRAW: dict[str, Callable[[list[Row]], Figure]] = {
    "counterexamples.png": _counterexamples,
    "signal.png": _signal,
    "map.png": _map,
    "correlated.png": _correlated,
    "perturbed.png": _perturbed,
    "maps.png": of_networks.maps,
    "fraction.png": of_networks.fraction,
    "lipschitz.png": of_networks.lipschitz,
}
assert set(_DRAW) == {name for _, name in CAPTIONS}
