"""Tables of the exact parts and of those on real networks."""

from experiments.evaluation.risk import networks
from experiments.evaluation.risk.feature_maps import ALL_LAYERS
from experiments.evaluation.risk.monte_carlo import Row
from experiments.evaluation.risk.rules import RUNNING, SAMPLE
from experiments.report.risk.rows import finer, number, select, table, values

KNOWLEDGE = (
    "running (the stored statistics, the batch ignored) and what shrinks to them know more than "
    "the batch: they come from training on these very images. That running is so close is no "
    "skill, and on images unlike the training images it need not be."
)


def counterexamples(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``counterexamples``."""
    growth = select(rows, kind="growth")
    thresholds = select(rows, kind="threshold")
    return [
        "## Counterexamples, exact",
        "No random numbers: series, closed forms and enumeration of all outcomes. Where true means "
        "that sum to zero are larger than this (|theta|² / C in units of the noise), the rules "
        "that take the spread between channels for noise are worse than the sample means. "
        "Approximation, of `stein`: (C² + 6 C - 4) / (C (C - 2)).",
        table(
            ("C", "stein", "jsnorm", "approximation"),
            [
                (str(r["channels"]), *(f"{r[n]:.3f}" for n in ("stein", "jsnorm", "approximation")))
                for r in thresholds
            ],
        ),
        "More data make it worse: C = 3, theta = (1, -1, 0), N values of variance 1. Ratios to the "
        "sample means, and the risk of `stein` itself, which does not go to zero.",
        table(
            ("N", "stein", "jsnorm", "james_stein", "risk of stein", "risk of the sample means"),
            [
                (
                    str(r["count"]),
                    *(finer(r[name]) for name in ("stein", "jsnorm", "james_stein")),
                    f"{r['stein_risk']:.4f}",
                    f"{r['sample_risk']:.4f}",
                )
                for r in growth
            ],
        ),
        "James & Stein's rule (positive part) with known variance and noise that is not normal: "
        "the sum of so many random signs, scaled to variance 1, at the worst theta found by a "
        "search; and noise that is 0 but in a share of cases, at the worst theta with equal "
        "entries. `none`: no ratio above 1 was found.",
        _james_stein(rows),
    ]


def _james_stein(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if row["kind"] in ("signs", "signs, given theta", "sparse"):
            noise = (
                f"sparse, share {row['share']:g}"
                if row["kind"] == "sparse"
                else f"{row['draws']} random sign{'s' if row['draws'] > 1 else ''}"
            )
            lost = row["ratio"] > 1 + 1e-6
            theta = ", ".join(f"{value:.3f}" for value in row["theta"])
            given = ", given" if row["kind"] == "signs, given theta" else ""
            lines.append(
                (
                    noise,
                    str(row["channels"]),
                    f"{row['ratio']:.4f}" if lost else "none",
                    f"({theta}){given}" if lost else "",
                )
            )
    return table(("noise", "C", "ratio", "theta"), lines)


def maps(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``maps``."""
    ratios = select(rows, kind="ratio")
    layers = select(rows, kind="layer")
    overall = select(ratios, layer=ALL_LAYERS)
    parts = [
        "## Real feature maps",
        "Total squared error of the channel statistics against those of the population (all "
        "training images, clean), relative to the sample statistics of the same batch: geometric "
        f"mean over the {len(layers)} norm layers (smallest – largest layer). Below 1 is better; "
        f"~: the 95 % interval of the geometric mean contains 1. {overall[0]['batches']} batches "
        "of each size, one network, trained with batch norm.",
        f"Noise: root mean square {networks.NOISE}; attack: PGD, {networks.STEPS} steps, radius "
        f"{networks.RADIUS}, on the network with running statistics.",
        "Layers, and tr S / lmax of the covariance of the images' channel means. At most 2: the "
        "rule with tr S - 2 lmax changes nothing; at least 4: James & Stein's rule is proved to "
        "dominate.",
        table(
            ("layer", "C", "tr S / lmax"),
            [(r["layer"], str(r["channels"]), f"{r['dimension']:.2f}") for r in layers],
        ),
    ]
    for condition in values(ratios, "condition"):
        here = select(overall, condition=condition)
        sizes = values(here, "batch_size")
        for target in ("mean", "variance"):
            parts += [
                f"{target.capitalize()}s, {condition} images, by batch size.",
                _by_size(select(here, target=target), sizes),
            ]
    return [*parts, KNOWLEDGE]


def _by_size(rows: list[Row], sizes: list[int]) -> str:
    lines = []
    for estimator in values(rows, "estimator"):
        if estimator == SAMPLE:
            continue
        found = {row["batch_size"]: row for row in select(rows, estimator=estimator)}
        lines.append((estimator, *(_range(found[size]) for size in sizes)))
    return table(("estimator", *map(str, sizes)), lines)


def _range(row: Row) -> str:
    low, high = row["lowest"], row["highest"]
    write = finer if low > 0.95 and high < 1.05 else number
    unclear = "~" if row["ci_low"] <= 1 <= row["ci_high"] and row["estimator"] != RUNNING else ""
    return f"{unclear}{write(row['ratio'])} ({write(low)} – {write(high)})"


def fraction(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``fraction``."""
    exact, on_maps = select(rows, kind="exact"), select(rows, kind="maps")
    lines = []
    for channels in values(exact, "channels"):
        for count in values(exact, "count"):
            cells = []
            for spread in values(exact, "spread"):
                found = select(exact, channels=channels, count=count, spread=spread)
                best = min(found, key=lambda r: r["ratio_to_sample"])
                lost = [r["fraction"] for r in found if r["ratio"] >= 1 and r["fraction"] > 0]
                end = f"{min(lost):g}" if lost else "above 3"
                cells.append(f"{best['fraction']:g} ({finer(best['ratio_to_sample'])}); {end}")
            lines.append((f"{channels}", f"{count}", *cells))
    map_lines = []
    for layer in values(on_maps, "layer"):
        for size in values(on_maps, "batch_size"):
            here = select(on_maps, layer=layer, batch_size=size)
            at = {r["fraction"]: r["ratio_to_sample"] for r in here}
            best_fraction = min(at, key=at.__getitem__)
            map_lines.append(
                (
                    layer,
                    str(size),
                    f"{best_fraction:g}",
                    finer(at[best_fraction]),
                    finer(at[0.5]),
                    finer(at[1.0]),
                )
            )
    return [
        "## The constant of the rule for variances",
        "Exact, for independent normal values: the best fraction of M on a grid of eighths up to "
        "3 (with the ratio to the sample variances there); and, behind the semicolon, the first "
        "fraction of the grid that is worse than N/(N+1) v alone.",
        table(
            ("C", "N", *(f"spread {s:g}" for s in values(exact, "spread"))),
            lines,
        ),
        "The same rule on the clean feature maps: ratios to the sample variances.",
        table(("layer", "batch", "best fraction", "at best", "at 0.5", "at 1"), map_lines),
    ]


def lipschitz(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``lipschitz``."""
    whole = select(rows, scope="network")
    lines = [
        (
            f"{r['trained']}, seed {r['seed']}",
            r["images"],
            r["statistics"],
            r["rule"],
            finer(r["constant"]),
            finer(r["highest"]),
            f"{r['margin']:.2f}",
            f"{100 * r['accuracy']:.1f} %",
        )
        for r in whole
    ]
    layers = [r for r in rows if r["scope"] != "network"]
    seed = layers[0]["seed"]
    layer_lines = []
    for scope in values(layers, "scope"):
        cells = []
        for trained, statistics, rule in _CASES:
            found = select(
                layers,
                scope=scope,
                trained=trained,
                statistics=statistics,
                rule=rule,
                images="clean",
                seed=seed,
            )
            cells.append(finer(found[0]["constant"]) if found else "")
        layer_lines.append((scope, *cells))
    return [
        "## Local Lipschitz constants",
        "Largest singular value of the Jacobian in the Euclidean norm, by power iteration. Whole "
        f"network, images to logits, {whole[0]['n']} test images. Running statistics: geometric "
        "mean over the images, and the largest. Batch statistics: one number for the whole batch. "
        "`batch` trained and `stein` as rule: Stein's rule put into the network that was trained "
        "without it. Margin: median lead of the right logit.",
        table(
            (
                "trained with",
                "images",
                "statistics",
                "rule",
                "constant",
                "largest",
                "margin",
                "right",
            ),
            lines,
        ),
        f"Single norm layers at their own clean inputs, with gamma, seed {seed}. The headings "
        "name the training norm, the statistics and the rule.",
        table(("layer", *(f"{t}, {s}, {r}" for t, s, r in _CASES)), layer_lines),
    ]


_CASES = (
    ("batch", "running", "none"),
    ("batch", "batch", "none"),
    ("batch", "batch", "stein_mean_only"),
    ("batch", "batch", "stein"),
    ("stein", "running", "none"),
    ("stein", "batch", "stein"),
)
