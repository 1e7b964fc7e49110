"""Says what the shrinkage of a training does, where it does nothing or too much."""

from collections.abc import Iterator

import numpy as np

from experiments.results import LoggedStep
from steinnorm.rules import SampleMean, SampleVariance
from steinnorm.shrinkage import Shrinkage

UNCHANGED = 1e-3
"""A factor that is within this of 1 in every layer changes next to nothing."""

CENTRED = 0.1
"""A layer that keeps less of its means than this does not centre its input any more."""


class ShrinkageNotes:
    """Looks at the factors of an epoch at a time, and says each thing once.

    Args:
      rule: the shrinkage of the norm; None for a norm without batch statistics.
    """

    def __init__(self, rule: Shrinkage | None):
        self._rule = rule
        self._epoch = 0
        self._seen: dict[tuple[str, str], list[float]] = {}
        self._said: set[str] = set()

    @property
    def target(self) -> str:
        """What statistics are shrunk towards: ``zero`` or ``running``; empty without shrinkage."""
        if self._rule is None or not self._shrunk():
            return ""
        return "running" if self._rule.toward_running else "zero"

    def look(self, row: LoggedStep) -> Iterator[str]:
        """Yields what there is to say once an epoch is complete.

        Args:
          row: the next logged step.
        """
        if int(row.epoch) > self._epoch and self._seen:
            yield from self._of_an_epoch()
            self._seen = {}
        self._epoch = int(row.epoch)
        for layer, factors in row.factors.items():
            for name, value in factors.items():
                self._seen.setdefault((name, layer), []).append(value)

    def _shrunk(self) -> list[str]:
        """Returns the statistics that the rule shrinks."""
        assert self._rule is not None
        means = [] if isinstance(self._rule.mean, SampleMean) else ["mean"]
        variances = [] if isinstance(self._rule.variance, SampleVariance) else ["variance"]
        return means + variances

    def _of_an_epoch(self) -> Iterator[str]:
        if self._rule is None:
            return
        name = self._rule.name
        for statistic in self._shrunk():
            layers = {
                layer: float(np.mean(values))
                for (kind, layer), values in self._seen.items()
                if kind == f"{statistic}_factor"
            }
            furthest = max((abs(1 - factor) for factor in layers.values()), default=np.inf)
            if furthest <= UNCHANGED and statistic not in self._said:
                self._said.add(statistic)
                yield (
                    f"{name}: the rule for the {statistic}s is inactive: its factors are within "
                    f"{furthest:.1g} of 1 in all {len(layers)} layers, as in batch norm"
                )
            low = {layer: factor for layer, factor in layers.items() if factor < CENTRED}
            if statistic == "mean" and self.target == "zero" and low and "low" not in self._said:
                self._said.add("low")
                layer = min(low, key=low.__getitem__)
                yield (
                    f"{name}: {len(low)} of {len(layers)} layers have stopped centring their input "
                    f"(factor of the means below {CENTRED:g}; lowest {low[layer]:.2g}, {layer})"
                )
