"""Makes rows from per-example results: scores with intervals, and the worst of several attacks."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np

from experiments.configs.schema import AttackConfig, Statistics
from experiments.evaluation.per_example import PerExampleResults
from experiments.results import CLEAN, WORST, ResultKey, Row
from experiments.tasks import Task
from steinnorm.attacks.intervals import Tally, bootstrap_intervals, wilson_interval
from steinnorm.attacks.per_example import worst_of

NO_ATTACK = AttackConfig(CLEAN, "gaussian", (0.0,))
"""No attack at all, in the form of one."""


def rows_of_all(task: Task, done: Sequence[PerExampleResults]) -> list[Row]:
    """Returns a row for each score under each attack, and those of the worst of all attacks.

    Args:
      task: its scores.
      done: results of one model on the same examples in the same batches.
    """
    return [row for results in done for row in rows(task, results)] + worst_rows(task, done)


def rows(task: Task, results: PerExampleResults) -> list[Row]:
    """Returns a row for each score that exists.

    Args:
      task: its scores.
      results: of one attack at one strength.
    """
    attack, key = results.attack, results.key
    how: dict[str, Any] = {}
    if attack.has_ball:
        one_step = attack.kind == "fgsm"
        size = key.epsilon if one_step else attack.step_size
        if size is None:
            size = 2.5 * key.epsilon / attack.steps
        # The other kinds find their own step sizes.
        has_size = attack.kind in ("fgsm", "pgd", "segpgd")
        how = {
            "steps": 0 if attack.kind == "square" else attack.steps,
            "step_size": size if has_size else 0.0,
        }
    return list(_rows(task, results, dataclasses.asdict(key) | how))


def worst_rows(task: Task, done: Sequence[PerExampleResults]) -> list[Row]:
    """Returns rows for the worst of all attacks in each ball in which there was more than noise.

    Per example the attack under which most of its labels are wrong and, of those, the one of the
    largest loss: an attack that fails proves nothing.  Where the attacker owns the whole batch
    (threat model ``joint``), per batch: its examples fall together.  The loss of these rows is the
    mean of the largest over all attacks, so that it is never below the loss of one of them.

    Args:
      task: its scores.
      done: results of one model on the same examples in the same batches.  Those of a threat
        model that attacks one example at a time may be on some of them; the most are taken.
    """
    in_ball: dict[ResultKey, list[PerExampleResults]] = {}
    clean: dict[ResultKey, PerExampleResults] = {}
    for results in done:
        ball = dataclasses.replace(results.key, attack=WORST)
        if results.key.attack == CLEAN:
            clean[ball] = results
        if results.attack.has_ball:
            in_ball.setdefault(ball, []).append(results)
    found: list[Row] = []
    for ball, of_ball in in_ball.items():
        # With --victims some may be on fewer examples than others: those on most of them count.
        layouts = [tuple(results.batch) for results in of_ball]
        same = [results for results in of_ball if tuple(results.batch) == max(layouts, key=len)]
        over = ", ".join(sorted(results.key.attack for results in same))
        # The clean point lies in every ball, should all attacks have turned a wrong answer right.
        unchanged = clean.get(dataclasses.replace(ball, epsilon=0.0, norm_order=""))
        if unchanged is not None and tuple(unchanged.batch) == tuple(same[0].batch):
            same.append(unchanged)
        wrong = [task.share_wrong(results.summary) for results in same]
        worst = worst_of(same, wrong, joint=ball.threat_model == "joint")
        found += _rows(task, worst, dataclasses.asdict(ball) | {"over": over})
    return found


def in_order(done: Sequence[PerExampleResults]) -> list[PerExampleResults]:
    """Returns results as tables have them: by source of statistics, noise before attacks."""

    def place(results: PerExampleResults) -> tuple[Any, ...]:
        key = results.key
        source = get_args(Statistics).index(key.statistics)
        kind = 0 if key.attack == CLEAN else 1 + results.attack.has_ball
        return source, key.threat_model, kind, key.attack, key.epsilon

    return sorted(done, key=place)


def _rows(task: Task, results: PerExampleResults, fields: dict[str, Any]) -> Iterator[Row]:
    """Yields a row for each score that is a number; ``fields`` are those that all rows share."""
    scores = {m: v for m, v in task.scores(results.summary).items() if math.isfinite(v)}
    intervals = _intervals(task, results.summary, list(scores))
    for metric, value in scores.items():
        low, high = intervals[metric]
        yield Row(
            **fields,
            metric=metric,
            value=value,
            n=len(results),
            ci_low=low,
            ci_high=high,
            max_norm=float(results.distance.max()),
            **results.values._asdict(),
            zero_gradients=results.zero_gradients,
        )


def _intervals(
    task: Task, summary: dict[str, np.ndarray], metrics: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Returns 95 % intervals: Wilson's for an accuracy, else the bootstrap over examples."""
    found: dict[str, tuple[float, float]] = {}
    if "accuracy" in metrics:
        found["accuracy"] = wilson_interval(Tally.of(summary["right"]))
    if set(metrics) <= set(found):
        return found

    def scores(index: np.ndarray) -> dict[str, float]:
        return task.scores({name: values[index] for name, values in summary.items()})

    return bootstrap_intervals(scores, len(summary["loss"])) | found
