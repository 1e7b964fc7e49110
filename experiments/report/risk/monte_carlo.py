"""Tables of the Monte-Carlo parts: independent, correlated and perturbed data, the map."""

from collections import Counter

from experiments.evaluation.risk.independent import PATTERNS
from experiments.evaluation.risk.monte_carlo import Row
from experiments.report.risk.rows import finer, interval, number, select, table, values

RATIO = (
    "Numbers are total squared errors relative to those of the sample statistics of the same "
    "batches, with 95 % intervals in brackets; below 1 is better."
)


def independent(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``independent``."""
    signals = values(rows, "signal")
    parts = [
        "## Independent normal channels",
        f"{RATIO} Signal: sum of the squared true means over the sum of the sampling variances of "
        "the sample means. Spread: standard deviation of the logarithms of the true variances. "
        "`toward_running` shrinks to means 0 and variances 1.5. Best and worst of all points "
        "(C, N, spread and signal).",
        _extremes(rows, "mean"),
        "The same for variances (C, N, spread).",
        _extremes(rows, "variance"),
    ]
    for kind in PATTERNS:
        chosen = select(rows, target="mean", channels=16, count=16, spread=0.0)
        chosen = [row for row in chosen if row["pattern"] == kind or not row["signal"]]
        if not chosen:
            continue
        parts += [
            f"Means, C = 16, N = 16, equal variances; true means: {kind}.",
            _by_column(chosen, "signal", signals),
        ]
    parts += [
        "Variances, C = 16, against N and the spread.",
        _variances(select(rows, target="variance", channels=16)),
    ]
    return parts


def _extremes(rows: list[Row], target: str) -> str:
    lines = []
    for estimator in values(select(rows, target=target), "estimator"):
        found = select(rows, target=target, estimator=estimator)
        low, high = (f(found, key=lambda row: row["ratio"]) for f in (min, max))
        counts = Counter(row["verdict"] for row in found)
        where = ", ".join(
            f"{letter} {number_of(high[name])}"
            for letter, name in (
                ("C", "channels"),
                ("N", "count"),
                ("signal", "signal"),
                ("spread", "spread"),
            )
        )
        lines.append(
            (
                estimator,
                *(str(counts[name]) for name in ("better", "tie", "worse")),
                finer(low["ratio"]),
                interval(high),
                f"{where} {high['pattern']}".rstrip(),
            )
        )
    return table(("estimator", "better", "tie", "worse", "best", "worst", "worst at"), lines)


def number_of(value: float) -> str:
    """Returns a setting as it was set."""
    return f"{value:g}"


def _by_column(rows: list[Row], column: str, wanted: list[float]) -> str:
    lines = []
    for estimator in values(rows, "estimator"):
        found = {row[column]: row for row in select(rows, estimator=estimator)}
        lines.append((estimator, *(finer(found[v]["ratio"]) if v in found else "" for v in wanted)))
    return table(("estimator", *(f"{column} {number_of(v)}" for v in wanted)), lines)


def _variances(rows: list[Row]) -> str:
    places = [(n, s) for n in values(rows, "count") for s in values(rows, "spread")]
    lines = []
    for estimator in values(rows, "estimator"):
        found = {(row["count"], row["spread"]): row for row in select(rows, estimator=estimator)}
        lines.append((estimator, *(interval(found[place]) for place in places)))
    return table(("estimator", *(f"N {n}, spread {number_of(s)}" for n, s in places)), lines)


def map_(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``map``: how often a rule is better, a tie or worse."""
    kinds = values(rows, "pattern")
    lines = []
    for estimator in values(rows, "estimator"):
        cells = []
        for kind in kinds:
            found = select(rows, estimator=estimator, pattern=kind)
            counts = Counter(row["verdict"] for row in found)
            cells.append(" / ".join(str(counts[name]) for name in ("better", "tie", "worse")))
        worst = max(select(rows, estimator=estimator), key=lambda row: row["ratio"])
        lines.append((estimator, *cells, interval(worst)))
    return [
        "## Map: where the rules for the means are better",
        f"Points of a grid over C ({_range(rows, 'channels')}) and signal "
        f"({_range(rows, 'signal')}), 16 values a channel: better / tie / worse than the sample "
        "means, by the pattern of the true means. A tie is an interval that contains 1, or a "
        "difference below a thousandth.",
        table(("estimator", *kinds, "worst"), lines),
    ]


def _range(rows: list[Row], column: str) -> str:
    found = values(rows, column)
    return f"{number_of(min(found))} to {number_of(max(found))}"


def correlated(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``correlated``: the worst over theta."""
    shown = (
        "james_stein, known noise",
        "known tr S - 2 lmax",
        "james_stein",
        "tr S - 2 lmax",
        "toward_running",
    )
    lines = []
    for channels in values(rows, "channels"):
        for structure in values(rows, "structure"):
            found = select(rows, channels=channels, structure=structure)
            for examples in values(found, "examples"):
                here = select(found, examples=examples)
                cells = []
                for estimator in shown:
                    mine = select(here, estimator=estimator)
                    worst = max(mine, key=lambda row: row["ratio"])
                    best = min(mine, key=lambda row: row["ratio"])
                    mark = "**" if worst["verdict"] == "worse" else ""
                    cells.append(f"{mark}{finer(worst['ratio'])}{mark} ({finer(best['ratio'])})")
                lines.append(
                    (
                        structure,
                        str(channels),
                        f"{here[0]['dimension']:.2f}",
                        str(examples),
                        *cells,
                    )
                )
    return [
        "## Correlated channels",
        "Means only. The worst ratio over all theta of the grid, and in brackets the best; bold: "
        "significantly worse than the sample means. S is the covariance of the batch's means, B "
        "the examples between which the noise, and where it is not known S, is measured. James & "
        "Stein's rule is proved to dominate where tr S >= 4 lmax; the rule with tr S - 2 lmax "
        "changes nothing where that is negative. With one variance for all channels "
        "`toward_running` is `james_stein` towards the running means.",
        table(("correlation", "C", "tr S / lmax", "B", *shown), lines),
    ]


def perturbed(rows: list[Row]) -> list[str]:
    """Returns the paragraphs of the part ``perturbed``."""
    size = max(row["size"] for row in rows)
    middle = 1.0
    parts = [
        "## Perturbed data",
        f"{RATIO} 16 normal channels of 16 values, signal 4; the truth is that of the clean data. "
        "Perturbations of the root mean square 1 (and, behind the slash, "
        f"{number_of(size)}) in units of the data's standard deviation, drawn for each value "
        "(independent) or once for each channel of a batch (shared), with mean 0 or moved by half "
        "of their root mean square.",
    ]
    for target, wanted in (
        ("mean", ("james_stein", "stein", "jsnorm", "toward_running")),
        ("variance", ("stein", "moderated", "jsnorm", "toward_running")),
    ):
        lines = []
        for scope in values(rows, "scope"):
            for has_mean in (False, True):
                for kind in values(rows, "kind"):
                    here = select(rows, kind=kind, scope=scope, has_mean=has_mean, target=target)
                    cells = []
                    for estimator in wanted:
                        two = [select(here, estimator=estimator, size=s) for s in (middle, size)]
                        cells.append(" / ".join(finer(r[0]["ratio"]) for r in two if r))
                    lines.append((f"{kind}, {scope}{', with a mean' if has_mean else ''}", *cells))
        clean = select(rows, size=0.0, target=target)
        if clean:
            found = {row["estimator"]: finer(row["ratio"]) for row in clean}
            lines.insert(0, ("none", *(found[name] for name in wanted)))
        parts += [f"{target.capitalize()}s.", table(("perturbation", *wanted), lines)]
    counts = {
        (target, name): Counter(r["verdict"] for r in select(rows, target=target, estimator=name))
        for target in ("mean", "variance")
        for name in values(select(rows, target=target), "estimator")
    }
    lines = [
        (name, target, *(str(count[v]) for v in ("better", "tie", "worse")))
        for (target, name), count in counts.items()
    ]
    parts += [
        "Over all kinds and sizes:",
        table(("estimator", "of", "better", "tie", "worse"), lines),
    ]
    return parts


def worst_line(rows: list[Row], estimator: str) -> str:
    """Returns an estimator's worst ratio in words."""
    found = max(select(rows, estimator=estimator), key=lambda row: row["ratio"])
    return f"{estimator} {number(found['ratio'])}"
