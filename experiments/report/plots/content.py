"""What a plot against the radius shows, and what that makes of the figure."""

import dataclasses
from collections.abc import Sequence
from statistics import fmean
from typing import Self

from experiments.models.norms import NORMS
from experiments.report.entries import Entry
from experiments.report.labels import REFERENCE, Source, strength
from experiments.report.measures import measure
from experiments.report.plots import estimates
from experiments.results import CLEAN, CONVERGENCE, WORST

RUNNING, NONE = Source("running"), Source("none")


def strongest(entries: Sequence[Entry], norm_order: str) -> str | None:
    """Chooses the attack that a plot shows: ``worst``, else that of most radii and worst scores.

    Args:
      entries: of one metric.
      norm_order: of the attack's ball.

    Returns:
      Its name; None where there was no attack.
    """
    by_attack: dict[str, list[Entry]] = {}
    for s in entries:
        if s.norm_order == norm_order and s.attack != CONVERGENCE:
            by_attack.setdefault(s.attack, []).append(s)
    if WORST in by_attack or not by_attack:
        return WORST if by_attack else None

    def rank(name: str) -> tuple[int, float]:
        found = by_attack[name]
        mean = fmean(s.mean for s in found)
        return len({s.epsilon for s in found}), mean if estimates.is_loss(
            found[0].metric
        ) else -mean

    return max(by_attack, key=rank)


@dataclasses.dataclass(frozen=True)
class Content:
    """Holds what is drawn, and tells what that makes of the figure.

    Attributes:
      points: of one metric; clean and under one attack.
      metric: which.
      attack: its name; None where there was none.
      norm_order: of the attack's ball.
    """

    points: Sequence[Entry]
    metric: str
    attack: str | None
    norm_order: str

    @classmethod
    def choose(cls, entries: Sequence[Entry], metric: str, norm_order: str) -> Self:
        """Chooses a metric's clean scores and those under the strongest attack of a ball."""
        of_metric = [s for s in entries if s.metric == metric]
        attack = strongest(of_metric, norm_order)
        points = [
            s
            for s in of_metric
            if s.attack == CLEAN or (s.attack == attack and s.norm_order == norm_order)
        ]
        return cls(points, metric, attack, norm_order)

    @property
    def sources(self) -> list[Source]:
        """The sources that have a panel; ``none`` has one only where there is no other."""
        found = sorted({s.source for s in self.points}, key=lambda source: source.place)
        return [s for s in found if s != NONE] or [NONE]

    @property
    def columns(self) -> int:
        """Panels beside each other."""
        return 2 if len(self.sources) == 4 else min(3, len(self.sources))

    @property
    def epsilons(self) -> list[float]:
        """The radii at which something is drawn, ascending; 0 is clean."""
        drawn = self.points
        if self.compares:
            drawn = [s for s in drawn if s.norm == REFERENCE or estimates.is_compared(s)]
        return sorted({s.epsilon for s in drawn})

    @property
    def norms(self) -> list[str]:
        """In their usual order."""
        return [norm for norm in NORMS if any(s.norm == norm for s in self.points)]

    @property
    def compares(self) -> bool:
        """Whether there are differences to batch norm."""
        return any(estimates.is_compared(s) for s in self.points)

    @property
    def curve(self) -> str | None:
        """The norm that is drawn against the radius."""
        if len(self.epsilons) < 2:
            return None
        if self.compares:
            return REFERENCE
        return self.norms[0] if len(self.norms) == 1 else None

    @property
    def rows(self) -> list[str]:
        """The norms that have a row each, from top to bottom."""
        if self.compares:
            return [norm for norm in self.norms if norm != REFERENCE]
        return [] if self.curve else self.norms

    @property
    def in_steps(self) -> bool:
        """Whether all radii are multiples of 1/255."""
        radii = [epsilon for epsilon in self.epsilons if epsilon > 0]
        return bool(radii) and all("/255" in strength(epsilon) for epsilon in radii)

    @property
    def score(self) -> str:
        """The score's name and what was done to the examples, without unit."""
        title = f"test {measure(self.metric).title}"
        if self.attack is None:
            return f"clean {title}"
        by = "the worst of all attacks" if self.attack == WORST else self.attack
        return f"{title} under {by}"

    def of(self, norm: str, source: Source) -> list[Entry]:
        """Returns a curve's points, by radius."""
        found = [s for s in self.points if (s.norm, s.source) == (norm, source)]
        return sorted(found, key=lambda s: s.epsilon)

    def in_row(self, norm: str, source: Source) -> list[Entry]:
        """Returns the points that a norm has in a source's panel."""
        found = self.of(norm, source)
        alone = self.of(norm, NONE) if source != NONE else []
        if not self.compares:
            return found + alone
        # What has no batch statistics stands where the batch norm stands that it is compared with.
        alone = [s for s in alone if estimates.compared_under(s) == source]
        return [s for s in found + alone if estimates.is_compared(s)]
