"""Rows of an evaluation: accuracies with intervals, and the worst case of several attacks."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from steinnorm.attacks.intervals import Tally, bootstrap_intervals, wilson_interval
from steinnorm.attacks.per_example import PerExample, worst_of
from steinnorm.attacks.robustness.evaluator import share_wrong

NONE = "none"
"""Attack name in the row of clean inputs."""

WORST = "worst"
"""Attack name in rows that take, per example, the worst of all attacks at a radius."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured accuracy.

    Attributes:
      attack: name of the attack; ``none`` for clean inputs, ``worst`` for the worst of all attacks
        at a radius.
      epsilon: radius of the ball; 0 for clean inputs, the root mean square for noise.
      value: share of right predictions, among examples, or among labelled pixels of label maps.
      n: number of examples.
      ci_low: lower end of the 95 % interval: Wilson's over examples; for label maps, whose pixels
        are not independent, the bootstrap's over images.
      ci_high: upper end of the interval.
      metric: ``accuracy`` or ``pixel_accuracy``.
      norm_order: norm of the ball, ``linf`` or ``l2``; empty if there is no ball.
      loss: mean cross-entropy in nats over examples, or over labelled pixels of label maps; for
        ``worst`` with the largest of each example's (each map's mean).
      max_norm: largest change of an example, in ``norm_order``; for noise the largest change of a
        value.
      zero_gradients: number of examples with an all-zero gradient in the last step.
      over: for ``worst``, the attacks it was taken over, separated by commas.
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


def add_worst(
    measured: Mapping[Key, PerExample], balls: Sequence[Key], *, joint: bool
) -> tuple[dict[Key, PerExample], dict[float, str]]:
    """Returns the results with the worst cases appended, and the attacks of each worst case.

    Args:
      measured: results by attack and radius.
      balls: attacks and radii in ``measured`` that have a ball.
      joint: whether logits depend on the batch, for which one attack is then chosen as a whole.
    """
    over: dict[float, list[str]] = {}
    for name, epsilon in balls:
        if (name, epsilon) in measured:
            over.setdefault(epsilon, []).append(name)
    results = dict(measured)
    for epsilon, attacks in over.items():
        # The clean inputs lie in every ball. After an interruption, some attacks may have been
        # measured on one batch more than others.
        members = [measured[name, epsilon] for name in attacks] + [measured[NONE, 0.0]]
        batches = min(member.batches for member in members)
        common = [_first_batches(member, batches) for member in members]
        wrong = [share_wrong(results.summary) for results in common]
        results[WORST, epsilon] = worst_of(common, wrong, joint=joint)
    return results, {epsilon: ", ".join(sorted(attacks)) for epsilon, attacks in over.items()}


def make_row(key: Key, results: PerExample, norm_order: str, over: str = "") -> Row:
    """Returns the row of one attack at one radius.

    Args:
      key: attack and radius.
      results: its per-example results.
      norm_order: norm of the ball; empty if there is none.
      over: for a worst case, the attacks.
    """
    value, (low, high) = _accuracy(results.summary)
    return Row(
        attack=key[0],
        epsilon=key[1],
        value=value,
        n=len(results),
        ci_low=low,
        ci_high=high,
        metric="accuracy" if "right" in results.summary else "pixel_accuracy",
        norm_order=norm_order,
        loss=_mean_loss(results.summary),
        max_norm=float(results.distance.max()),
        zero_gradients=results.zero_gradients,
        over=over,
    )


def _accuracy(summary: Mapping[str, np.ndarray]) -> tuple[float, tuple[float, float]]:
    if "right" in summary:
        tally = Tally.of(summary["right"])
        return tally.share, wilson_interval(tally)
    right = summary["right_pixels"].astype(np.int64)
    labelled = summary["known_pixels"].astype(np.int64)

    def share(index: np.ndarray) -> dict[str, float]:
        count = int(labelled[index].sum())
        return {"share": int(right[index].sum()) / count if count else math.nan}

    accuracy = share(np.arange(len(right)))["share"]
    return accuracy, bootstrap_intervals(share, len(right))["share"]


def _mean_loss(summary: Mapping[str, np.ndarray]) -> float:
    """Returns the mean over labels; the loss of a map is a mean over its own."""
    loss = summary["loss"].astype(np.float64)
    labels = summary.get("known_pixels", np.ones(len(loss))).astype(np.float64)
    return float(np.sum(loss * labels) / labels.sum()) if labels.any() else math.nan


def _first_batches(results: PerExample, batches: int) -> PerExample:
    kept = results.batch < batches
    return dataclasses.replace(
        results,
        summary={name: values[kept] for name, values in results.summary.items()},
        distance=results.distance[kept],
        batch=results.batch[kept],
    )
