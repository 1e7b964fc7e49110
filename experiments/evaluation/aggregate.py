"""Rows from per-example results: scores with their intervals, and the worst of several attacks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np

from experiments.configs.schema import AttackConfig, Statistics
from experiments.evaluation.per_example import Cell
from experiments.results import Row
from experiments.tasks import Task
from steinnorm.attacks.intervals import Tally, bootstrap_intervals, wilson_interval
from steinnorm.attacks.per_example import worst_of

WORST = "worst"
"""Name of the attack of rows that take the worst of all attacks of one ball."""

CLEAN = AttackConfig("clean", "gaussian", (0.0,))
"""No attack at all, in the form of one."""

_ABOUT = ("config", "norm", "seed", "statistics", "threat_model")


def rows(task: Task, cell: Cell, metrics: Sequence[str] | None = None) -> list[Row]:
    """A row for each score that exists.

    Args:
      task: its scores.
      cell: the results.
      metrics: names of the scores that become rows; None is all.
    """
    attack, epsilon = _attack(cell), cell.about["epsilon"]
    more: dict[str, Any] = {"attack": attack.name, "epsilon": epsilon}
    if attack.has_ball:
        one_step = attack.kind == "fgsm"
        size = epsilon if one_step else attack.step_size
        walks = attack.kind in ("fgsm", "pgd", "segpgd")
        more |= {
            "norm_order": attack.norm,
            "steps": 0 if attack.kind == "square" else attack.steps,
            # The others find their own.
            "step_size": (2.5 * epsilon / attack.steps if size is None else size) if walks else 0.0,
        }
    return list(_rows(task, cell, metrics, more))


def worst_rows(task: Task, done: Sequence[Cell], metrics: Sequence[str] | None = None) -> list[Row]:
    """Rows for the worst of all attacks in each ball in which there was more than noise.

    Per example the attack under which most of its labels are wrong and, of those, the one of the
    largest loss: an attack that fails proves nothing.  Where the attacker owns the whole batch
    (threat model ``joint``), per batch: its examples fall together.  The loss of these rows is the
    mean of the largest over all attacks, so that it is never below the loss of one of them.

    Args:
      task: its scores.
      done: results of one model on the same examples in the same batches.  Those of a threat
        model that attacks one example at a time may be on some of them; the most are taken.
      metrics: as in ``rows``.
    """
    balls: dict[tuple[Any, ...], list[Cell]] = {}
    clean = {}
    for cell in done:
        about = cell.about
        if about["attack"] == CLEAN.name:
            clean[about["statistics"], about["threat_model"]] = cell
        if _attack(cell).has_ball:
            ball = (about["norm_order"], about["epsilon"])
            balls.setdefault((*ball, about["statistics"], about["threat_model"]), []).append(cell)
    found: list[Row] = []
    for (norm, epsilon, *_), of_ball in balls.items():
        # With --victims some may be on fewer examples than others: those on most of them count.
        layouts = [tuple(cell.batch) for cell in of_ball]
        same = [cell for cell in of_ball if tuple(cell.batch) == max(layouts, key=len)]
        over = ", ".join(sorted(cell.about["attack"] for cell in same))
        # The clean point lies in every ball, should all attacks have turned a wrong answer right.
        unchanged = clean.get((same[0].about["statistics"], same[0].about["threat_model"]))
        if unchanged is not None and tuple(unchanged.batch) == tuple(same[0].batch):
            same.append(unchanged)
        more = {"attack": WORST, "epsilon": epsilon, "norm_order": norm, "over": over}
        found += _rows(task, _worst(task, same), metrics, more)
    return found


def in_order(done: Sequence[Cell]) -> list[Cell]:
    """The cells as tables have them: by source of statistics, noise before attacks."""

    def place(cell: Cell) -> tuple[Any, ...]:
        about = cell.about
        source = get_args(Statistics).index(about["statistics"])
        kind = 0 if about["attack"] == CLEAN.name else 1 + _attack(cell).has_ball
        return source, about["threat_model"], kind, about["attack"], about["epsilon"]

    return sorted(done, key=place)


def _attack(cell: Cell) -> AttackConfig:
    return AttackConfig(epsilons=(), **cell.about["attack_settings"])


def _worst(task: Task, of_ball: Sequence[Cell]) -> Cell:
    wrong = [task.share_wrong(cell.summary) for cell in of_ball]
    return worst_of(of_ball, wrong, joint=of_ball[0].about["threat_model"] == "joint")


def _rows(
    task: Task, cell: Cell, metrics: Sequence[str] | None, more: dict[str, Any]
) -> Iterator[Row]:
    common = {name: cell.about[name] for name in _ABOUT}
    scores = {
        metric: value
        for metric, value in task.scores(cell.summary).items()
        if (metrics is None or metric in metrics) and math.isfinite(value)
    }
    intervals = _intervals(task, cell.summary, list(scores))
    for metric, value in scores.items():
        low, high = intervals[metric]
        yield Row(
            **common,
            **more,
            metric=metric,
            value=value,
            n=len(cell),
            ci_low=low,
            ci_high=high,
            max_norm=float(cell.distance.max()),
            **cell.values._asdict(),
            zero_gradients=cell.zero_gradients,
        )


def _intervals(
    task: Task, summary: dict[str, np.ndarray], metrics: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """95 %: Wilson's for a share of examples, the bootstrap over examples for all else."""
    found: dict[str, tuple[float, float]] = {}
    if "accuracy" in metrics:
        found["accuracy"] = wilson_interval(Tally.of(summary["right"]))
    if set(metrics) <= set(found):
        return found

    def of(index: np.ndarray) -> dict[str, float]:
        return task.scores({name: values[index] for name, values in summary.items()})

    return bootstrap_intervals(of, len(summary["loss"])) | found
