"""What an evaluation measures, of which training, and who is told how far it is."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from experiments.configs.schema import AttackConfig, EvaluationConfig, Statistics
from experiments.evaluation import aggregate
from experiments.evaluation.attack_batch import DEPENDENT, ThreatModel


class Run(NamedTuple):
    """The training whose model is measured.

    Attributes:
      config: name of the configuration.
      norm: name of the norm.
      seed: of the training; also of noise and random starts.
      class_names: for pictures; may be empty.
      calibrated_on: ``inputs_digest`` of ``experiments.evaluation.calibration.Calibrating``, where
        calibrated statistics are measured.
    """

    config: str
    norm: str
    seed: int
    class_names: tuple[str, ...] = ()
    calibrated_on: str = ""


def batch_size_of(evaluation: EvaluationConfig, source: str) -> int:
    """Returns how many test examples make a batch with a source of statistics."""
    if source in DEPENDENT or evaluation.independent_batch_size is None:
        return evaluation.batch_size
    return evaluation.independent_batch_size


class Watcher:
    """Is told how far an evaluation is; does nothing unless a method is overridden."""

    def begins(self, what: str) -> None:
        """The attack, or the check, that is called so begins."""

    def within(self, how_far: str) -> None:
        """A long attack is so far, in words."""

    def advanced(self) -> None:
        """A batch, or a check, is done."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
      statistics: the source of the norm's statistics.
      batch_size: with statistics of the test batch, scores depend on it.
      attacks: measured besides the clean scores.
      threat_model: who attacks whom in a batch whose statistics count; elsewhere there is nothing
        to choose.
      victims: with the threat models ``independent`` and ``companion``, which attack one example
        at a time, how many of the first examples; None is all.
    """

    statistics: Statistics
    batch_size: int
    attacks: Sequence[AttackConfig] = ()
    threat_model: ThreatModel = "joint"
    victims: int | None = None

    @property
    def dependent(self) -> bool:
        """Whether an example's answer depends on its batch."""
        return self.statistics in DEPENDENT

    @property
    def threat(self) -> str:
        """The threat model, as rows state it; empty where there is nothing to choose."""
        return self.threat_model if self.dependent else ""

    @property
    def alone(self) -> bool:
        """Whether examples are attacked one at a time."""
        return self.threat not in ("", "joint")

    @property
    def measurements(self) -> list[tuple[AttackConfig, float]]:
        """Attacks and strengths, in the order in which they are measured."""
        attacks = (aggregate.NO_ATTACK, *self.attacks)
        return [(attack, epsilon) for attack in attacks for epsilon in attack.epsilons]

    def measured(self, examples: int) -> int:
        """Returns how many of so many examples are measured."""
        return min(self.victims or examples, examples) if self.alone else examples

    def batches(self, examples: int) -> int:
        """Returns how many batches ``measure`` goes through, over all attacks and strengths."""
        return len(self.measurements) * -(-self.measured(examples) // self.batch_size)
