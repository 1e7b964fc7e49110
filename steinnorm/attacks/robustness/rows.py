"""Rows of an evaluation: shares with their intervals, and the worst of several attacks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from steinnorm.attacks.intervals import Tally, bootstrap_intervals, wilson_interval
from steinnorm.attacks.per_example import PerExample, worst_of
from steinnorm.attacks.robustness.measure import share_wrong

NONE = "none"
"""Name of the attack of the row of clean inputs."""

WORST = "worst"
"""Name of the attack of the rows that take, per example, the worst of all attacks of a radius."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
      attack: its name; ``none`` for clean inputs, ``worst`` for the worst of all of one radius.
      epsilon: radius of the ball; 0 for clean inputs, the root mean square for noise.
      value: the share of labels that are right: of examples, or of known pixels in label maps.
      n: over how many examples.
      ci_low: lower end of the 95 % interval: Wilson's over examples; for label maps, whose pixels
        fall together, the bootstrap's over images.
      ci_high: its upper end.
      metric: ``accuracy`` or ``pixel_accuracy``.
      norm_order: of the ball, ``linf`` or ``l2``; empty where there is no ball.
      loss: mean cross-entropy in nats; of ``worst`` the mean of the largest of each example.
      max_norm: the largest change of an example, in ``norm_order``.
      zero_gradients: examples whose gradient was all zero in the last step.
      over: of ``worst``, the attacks it was taken over, separated by commas.
    """

    attack: str
    epsilon: float
    value: float
    n: int
    ci_low: float
    ci_high: float
    metric: str
    norm_order: str = ""
    loss: float = math.nan
    max_norm: float = 0.0
    zero_gradients: int = 0
    over: str = ""


Key = tuple[str, float]
"""Attack and radius."""


def with_worst(
    found: Mapping[Key, PerExample], balls: Sequence[Key], *, joint: bool
) -> tuple[dict[Key, PerExample], dict[float, str]]:
    """Returns the results with the worst cases behind them, and over which attacks these are.

    Args:
      found: results by attack and radius.
      balls: those of ``found`` that have a ball.
      joint: whether the model's logits depend on the batch, which then falls as a whole.
    """
    over: dict[float, list[str]] = {}
    for name, epsilon in balls:
        if (name, epsilon) in found:
            over.setdefault(epsilon, []).append(name)
    results = dict(found)
    for epsilon, attacks in over.items():
        # The clean point lies in every ball. An evaluation that was stopped may have measured one
        # attack on a batch more.
        members = [found[name, epsilon] for name in attacks] + [found[NONE, 0.0]]
        batches = min(member.batches for member in members)
        same = [_first(member, batches) for member in members]
        wrong = [share_wrong(results.summary) for results in same]
        results[WORST, epsilon] = worst_of(same, wrong, joint=joint)
    return results, {epsilon: ", ".join(sorted(attacks)) for epsilon, attacks in over.items()}


def row_of(key: Key, results: PerExample, norm_order: str, over: str = "") -> Row:
    """Returns the row of one attack at one radius.

    Args:
      key: attack and radius.
      results: of its examples.
      norm_order: of the ball; empty where there is none.
      over: of a worst case, the attacks.
    """
    value, (low, high) = _value(results.summary)
    return Row(
        attack=key[0],
        epsilon=key[1],
        value=value,
        n=len(results),
        ci_low=low,
        ci_high=high,
        metric="accuracy" if "right" in results.summary else "pixel_accuracy",
        norm_order=norm_order,
        loss=float(np.mean(results.summary["loss"], dtype=np.float64)),
        max_norm=float(results.distance.max()),
        zero_gradients=results.zero_gradients,
        over=over,
    )


def _value(summary: Mapping[str, np.ndarray]) -> tuple[float, tuple[float, float]]:
    if "right" in summary:
        tally = Tally.of(summary["right"])
        return tally.share, wilson_interval(tally)
    right = summary["right_pixels"].astype(np.int64)
    labelled = summary["known_pixels"].astype(np.int64)

    def share(index: np.ndarray) -> dict[str, float]:
        count = int(labelled[index].sum())
        return {"share": int(right[index].sum()) / count if count else math.nan}

    everything = share(np.arange(len(right)))["share"]
    return everything, bootstrap_intervals(share, len(right))["share"]


def _first(results: PerExample, batches: int) -> PerExample:
    kept = results.batch < batches
    return dataclasses.replace(
        results,
        summary={name: values[kept] for name, values in results.summary.items()},
        distance=results.distance[kept],
        batch=results.batch[kept],
    )
