"""Fits the checks to what was measured: their radius, and the losses of the attacks."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.configs.schema import Statistics
from experiments.evaluation.aggregate import NO_ATTACK
from experiments.evaluation.per_example import PerExampleResults
from experiments.evaluation.run_checks import Checker
from steinnorm.attacks.checks.radius import radius_with_room

_ROOM = 0.1
"""Share of the clean accuracy that must be left for the checks to tell anything."""


def with_room(
    checker: Checker, source: Statistics, measured: Sequence[PerExampleResults]
) -> Checker:
    """Returns the checker at its own radius, or where nothing is left there at one with room.

    Args:
      checker: for one kind of ball.
      source: of the statistics that are checked.
      measured: of the model, with any source, under any attack.
    """
    clean, left = 0.0, dict[float, float]()
    for results in measured:
        if results.key.statistics != source:
            continue
        right = 1.0 - float(np.nanmean(checker.task.share_wrong(results.summary)))
        if results.key.attack == NO_ATTACK.name:
            clean = right
        elif results.key.norm_order == checker.config.norm and results.key.epsilon > 0:
            left[results.key.epsilon] = min(left.get(results.key.epsilon, 1.0), right)
    if not left or left.get(checker.config.epsilon, 0.0) >= _ROOM * clean:
        return checker
    config = dataclasses.replace(checker.config, epsilon=radius_with_room(left, clean))
    return dataclasses.replace(checker, config=config)


def with_losses(
    checker: Checker, source: Statistics, in_table: Sequence[PerExampleResults]
) -> Checker:
    """Returns the checker that knows which losses the attacks of the table increase.

    Args:
      checker: for one kind of ball.
      source: of the statistics that are checked.
      in_table: what the table shows of the model, with any source, under any attack.
    """
    losses = {
        loss
        for results in in_table
        if results.key.statistics == source
        and results.key.norm_order == checker.config.norm
        and results.key.epsilon > 0
        and results.key.threat_model in ("", "joint")
        for loss in results.attack.settings.gradient_losses
    }
    return dataclasses.replace(checker, losses=tuple(sorted(losses)))
