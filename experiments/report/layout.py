"""Chooses the lines and columns of a table, and their order."""

from collections.abc import Iterable, Sequence

from experiments.models.norms import NORMS
from experiments.report.entries import Entry
from experiments.report.labels import Column, Source
from experiments.results import CLEAN, CONVERGENCE, WORST


def lines_of(entries: Iterable[Entry]) -> list[tuple[str, Source]]:
    """Returns the lines of a table: a block per source of statistics, norms in usual order."""
    present = {(s.norm, s.source) for s in entries}
    return sorted(present, key=lambda line: (line[1].place, NORMS.index(line[0])))


def columns_of(entries: Iterable[Entry]) -> list[Column]:
    """Returns all columns: clean, noises, attacks by rising strength, the worst of them last."""
    found = list(dict.fromkeys(s.column for s in entries if s.attack != CONVERGENCE))
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


def short_columns(entries: Iterable[Entry], wanted: Sequence[Column]) -> list[Column]:
    """Returns the columns of a short table: those of ``wanted`` that were measured.

    Where none of them but the clean one was, clean and the worst of all attacks, or all attacks.
    """
    present = columns_of(entries)
    shown = [column for column in wanted if column in present]
    if any(column.attack != CLEAN for column in shown):
        return shown
    clean = [column for column in present if column.attack == CLEAN]
    worst = [column for column in present if column.attack == WORST]
    return clean + (worst or [column for column in present if column.norm_order])
