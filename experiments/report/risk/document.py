"""Writes the report of the risks in Markdown, and its summary in lines."""

from collections.abc import Callable, Sequence

from experiments.evaluation.risk.monte_carlo import Row
from experiments.report.risk import monte_carlo, networks
from experiments.report.risk.figures import CAPTIONS
from experiments.report.risk.rows import Rows, finer, select

_SECTIONS: dict[str, Callable[[list[Row]], list[str]]] = {
    "counterexamples": networks.counterexamples,
    "independent": monte_carlo.independent,
    "map": monte_carlo.map_,
    "correlated": monte_carlo.correlated,
    "perturbed": monte_carlo.perturbed,
    "maps": networks.maps,
    "fraction": networks.fraction,
    "lipschitz": networks.lipschitz,
}


def markdown(command: str, made_on: str, rows: Rows, figures: Sequence[str]) -> str:
    """Returns the whole report.

    Args:
      command: that made it.
      made_on: the machine and the versions, in words.
      rows: of the parts that were measured.
      figures: the names of their files.
    """
    parts = ["# Risk of the estimators", f"```\n{command}\n```", f"Made on {made_on}."]
    for name, found in rows.items():
        parts += _SECTIONS[name](found)
        parts += [
            f"![{CAPTIONS[part, figure]}]({figure})\n\n{CAPTIONS[part, figure]}"
            for part, figure in CAPTIONS
            if part == name and figure in figures
        ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def summary(rows: Rows) -> list[str]:
    """Returns what the terminal shows: the worst ratio of the main rules in each part."""
    lines = []
    for name in ("independent", "map", "correlated", "perturbed"):
        found = select(rows.get(name, []), target="mean")
        if found:
            shown = ("james_stein", "tr S - 2 lmax", "stein", "toward_running")
            worst = ", ".join(monte_carlo.worst_line(found, each) for each in shown)
            lines.append(f"{name}, means, worst ratio to the sample means: {worst}")
    exact = [r for r in rows.get("counterexamples", []) if r["kind"] in ("signs", "sparse")]
    if exact:
        worst_noise = max(exact, key=lambda row: row["ratio"])
        lines.append(
            f"counterexamples, james_stein under noise that is not normal: "
            f"{finer(worst_noise['ratio'])} ({worst_noise['kind']}, C = {worst_noise['channels']})"
        )
    return lines
