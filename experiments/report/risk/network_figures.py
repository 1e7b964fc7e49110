"""Draws the figures of the parts on real networks, and of the variance rule's constant."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.risk.feature_maps import ALL_LAYERS
from experiments.evaluation.risk.monte_carlo import Row
from experiments.report.plots import style
from experiments.report.risk.looks import draw_line, finish
from experiments.report.risk.rows import select, values

_SHOWN = {
    "mean": ("stein", "jsnorm", "james_stein", "tr S - 2 lmax", "toward_running"),
    "variance": ("stein", "jsnorm", "moderated", "toward_running"),
}


def maps(rows: list[Row]) -> Figure:
    """Draws ratios on feature maps against the batch size."""
    rows = select(rows, kind="ratio", layer=ALL_LAYERS)
    conditions, sizes = values(rows, "condition"), values(rows, "batch_size")
    figure, axes = plt.subplots(
        2,
        len(conditions),
        figsize=(style.WIDTH, 6.6),
        sharex=True,
        sharey="row",
        layout="constrained",
        squeeze=False,
    )
    for line, (target, names) in zip(axes, _SHOWN.items(), strict=True):
        for axis, condition in zip(line, conditions, strict=True):
            here = select(rows, target=target, condition=condition)
            for name in names:
                found = select(here, estimator=name)
                draw_line(axis, name, [r["batch_size"] for r in found], [r["ratio"] for r in found])
            axis.set(xscale="log", yscale="log", title=f"{target}s, {condition} images")
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.minorticks_off()
            finish(axis)
        line[0].set_ylabel("risk / risk of the sample's")
        line[-1].legend(frameon=False, fontsize=8.5)
    for axis in axes[-1]:
        axis.set_xlabel("images in a batch")
    return figure


def fraction(rows: list[Row]) -> Figure:
    """Draws the risk of the variance rule against the fraction of its constant."""
    exact, on_maps = select(rows, kind="exact"), select(rows, kind="maps")
    sizes = values(on_maps, "batch_size")
    figure, axes = plt.subplots(1, 2 + len(sizes), figsize=(style.WIDTH, 3.6), layout="constrained")
    shades = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00")
    for axis, spread in zip(axes, (0.0, 1.0), strict=False):
        here = select(exact, channels=16, spread=spread)
        for count, shade in zip(values(here, "count"), shades, strict=True):
            found = select(here, count=count)
            axis.plot(
                [r["fraction"] for r in found],
                [r["ratio"] for r in found],
                color=shade,
                label=f"N = {count}",
            )
        axis.set(title=f"exact, spread {spread:g}", ylim=(0.4, 1.3))
    axes[0].set_ylabel("risk / that of N/(N+1) v")
    axes[1].tick_params(labelleft=False)
    axes[1].legend(frameon=False, fontsize=8.5)
    for axis, size in zip(axes[2:], sizes, strict=True):
        _by_layer(axis, select(on_maps, batch_size=size))
        axis.set_title(f"maps, batch of {size}")
    axes[2].set_ylabel("risk / that of the sample variances")
    for axis in axes:
        axis.set_xlabel("fraction")
        axis.axvline(1, color="#999999", linestyle=":")
        axis.set_xticks([0, 1, 2, 3])
        finish(axis)
    return figure


def _by_layer(axis: Axes, rows: list[Row]) -> None:
    for layer in values(rows, "layer"):
        found = select(rows, layer=layer)
        axis.plot(
            [r["fraction"] for r in found],
            [r["ratio_to_sample"] for r in found],
            color="#D55E00",
            linewidth=1.1,
        )


def lipschitz(rows: list[Row]) -> Figure:
    """Draws the ratios of Stein's Lipschitz constants to batch norm's."""
    seeds, images = values(rows, "seed"), values(rows, "images")
    whole = select(rows, scope="network")
    layers = [scope for scope in values(rows, "scope") if scope != "network"]
    figure, axes = plt.subplots(
        1,
        2,
        figsize=(style.WIDTH, 4.4),
        layout="constrained",
        width_ratios=(1, 1.25),
        sharex=True,
    )
    cases = [
        (f"{kind} images, {label}", kind, numerator, denominator)
        for kind in images
        for label, numerator, denominator in (
            ("running", ("stein", "running", "stein"), ("batch", "running", "none")),
            ("batch", ("stein", "batch", "stein"), ("batch", "batch", "none")),
            ("batch, swapped rule", ("batch", "batch", "stein"), ("batch", "batch", "none")),
        )
    ]
    for place, (_, kind, numerator, denominator) in enumerate(cases):
        _points(axes[0], place, select(whole, images=kind), numerator, denominator, seeds)
    axes[0].set_yticks(range(len(cases)), [label for label, *_ in cases])
    axes[0].set_title("whole network")
    places = [(scope, statistics) for scope in layers for statistics in ("running", "batch")]
    for place, (scope, statistics) in enumerate(places):
        rule = "none" if statistics == "running" else "stein"
        here = select(rows, scope=scope, images=images[0])
        _points(
            axes[1],
            place,
            here,
            ("stein", statistics, rule),
            ("batch", statistics, "none"),
            seeds,
        )
    axes[1].set_yticks(range(len(places)), [f"{scope}, {s}" for scope, s in places])
    axes[1].set_title("norm layers, clean images")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xlabel("Stein norm / batch norm")
        axis.axvline(1, color="#777777", linewidth=0.8)
        axis.grid(alpha=0.3)
        axis.invert_yaxis()
        axis.minorticks_off()
    axes[0].set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    return figure


def _points(  # noqa: PLR0917
    axis: Axes,
    place: int,
    rows: list[Row],
    numerator: tuple[str, str, str],
    denominator: tuple[str, str, str],
    seeds: list[int],
) -> None:
    """Draws a point for each seed where both networks were measured."""
    for seed in seeds:
        found = [
            select(rows, seed=seed, trained=trained, statistics=statistics, rule=rule)
            for trained, statistics, rule in (numerator, denominator)
        ]
        if all(found):
            ratio = found[0][0]["constant"] / found[1][0]["constant"]
            axis.plot(ratio, place, "o", color="#D55E00", fillstyle="none")
