"""Which lines and columns a table has, in which order."""

from collections.abc import Iterable

from experiments.configs.schema import EvaluationConfig
from experiments.evaluation.aggregate import WORST
from experiments.models.norms import NORMS
from experiments.report.labels import CLEAN, CONVERGENCE, Column, Source
from experiments.report.summaries import Summary


def lines_of(summaries: Iterable[Summary]) -> list[tuple[str, Source]]:
    """The lines of a table: one block per source of statistics, norms in their usual order."""
    present = {(s.norm, s.source) for s in summaries}
    return sorted(present, key=lambda line: (line[1].place, NORMS.index(line[0])))


def columns_of(summaries: Iterable[Summary]) -> list[Column]:
    """All columns: clean, noises, attacks by rising strength, the worst of them last."""
    found = list(dict.fromkeys(s.column for s in summaries if s.attack != CONVERGENCE))
    names = list(dict.fromkeys(column.attack for column in found))

    def place(column: Column) -> tuple[bool, bool, bool, bool, int, float]:
        return (
            column.attack != CLEAN,
            column.norm_order != "",
            column.attack == WORST,
            column.attack == WORST and column.norm_order != "linf",
            names.index(column.attack),
            column.epsilon,
        )

    return sorted(found, key=place)


def columns(config: EvaluationConfig) -> list[Column]:
    """The columns of the short table, clean first."""
    shown = [
        Column(attack.name, epsilon, attack.norm if attack.has_ball else "")
        for attack in config.attacks
        for epsilon in attack.shown
        if epsilon in attack.epsilons
    ]
    worst = dict.fromkeys(
        Column(WORST, epsilon, attack.norm)
        for epsilon in config.shown_worst
        for attack in config.attacks
        if attack.has_ball and epsilon in attack.epsilons
    )
    return [Column(CLEAN), *shown, *worst]
