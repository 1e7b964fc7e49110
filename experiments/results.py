"""What a result is: rows of numbers, checks of an evaluation, logged steps of a training.

Plain data that every wing may know: importing this module loads the standard library only.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

CLEAN = "clean"
"""Name of the attack of rows without any attack."""

WORST = "worst"
"""Name of the attack of rows that take the worst of all attacks of one ball."""

CONVERGENCE = "convergence"
"""Name of the attack of rows for the plot of scores against PGD's steps; not for tables."""


@dataclasses.dataclass(frozen=True, order=True)
class ResultKey:
    """Names one measurement: which model, with which statistics, under what.

    Attributes:
      config: the configuration's name.
      norm: one of ``experiments.models.norms.NORMS``.
      seed: of the weights and the order of the training examples.
      statistics: ``running``, ``batch``, ``shrunk`` or ``none``: whose the norm used.
      threat_model: of a model whose answer for an example depends on its batch: ``joint`` (the
        attacker owns the batch), ``independent`` (each example attacked, its batch fixed) or
        ``companion`` (only the others are attacked); empty where there is nothing to choose.
      attack: ``clean`` or the attack's name.
      epsilon: the attack's strength in units of the input range; 0 for clean examples, the root
        mean square for noise.
      norm_order: of the attack's ball, ``linf`` or ``l2``; empty where there is no ball.
    """

    config: str
    norm: str
    seed: int
    statistics: str
    threat_model: str
    attack: str
    epsilon: float
    norm_order: str = ""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "ResultKey":
        """Takes the key's fields from a dictionary that may hold more.

        Raises:
          KeyError: one is missing.
        """
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
      config: the experiment's name.
      norm: one of ``experiments.models.norms.NORMS``.
      seed: of the weights and the order of the training images.
      statistics: ``running``, ``batch``, ``shrunk`` or ``none``: whose the norm used.
      attack: ``clean`` or the attack's name.
      epsilon: the attack's strength in units of the image range; 0 for clean images, the root
        mean square for noise.
      metric: what ``value`` is.
      value: the number.
      n: over how many test images.
      ci_low: lower end of the 95 % interval over these images: Wilson's for an accuracy, the
        bootstrap's for all else.
      ci_high: upper end.
      norm_order: of the attack's ball, ``linf`` or ``l2``; empty where there is no ball.
      steps: gradient steps; 0 where there are none.
      step_size: absolute; 0 where there are no steps.
      max_norm: the largest change of an image that was found, in ``norm_order``.
      min: the smallest value of the images as they were attacked; None where that was not kept.
      max: the largest.
      nan_count: how many values are not finite.
      zero_gradients: images whose gradient was all zero in the last step.
      threat_model: of a model whose answer for an image depends on its batch: ``joint`` (the
        attacker owns the batch), ``independent`` (each image attacked, its batch fixed) or
        ``companion`` (only the others are attacked); empty where there is nothing to choose.
      over: of a worst case, the attacks it was taken over, separated by commas.
    """

    config: str
    norm: str
    seed: int
    statistics: str
    attack: str
    epsilon: float
    metric: str
    value: float
    n: int
    ci_low: float
    ci_high: float
    norm_order: str = ""
    steps: int = 0
    step_size: float = 0.0
    max_norm: float = 0.0
    min: float | None = None
    max: float | None = None
    nan_count: int | None = None
    zero_gradients: int = 0
    threat_model: str = ""
    over: str = ""

    @property
    def key(self) -> ResultKey:
        """The measurement that this is a number of."""
        return ResultKey.of(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Check:
    """A test of the evaluation itself (after Carlini et al. 2019).

    Attributes:
      config: the experiment's name.
      norm: of the model.
      seed: of the model.
      statistics: whose the norm used.
      name: of the check.
      verdict: ``PASS``, ``FAIL`` or ``not applicable``.
      value: the number that decided; None where there is none.
      detail: what the number is, its limit, and on how many examples it was measured, in words.
    """

    config: str
    norm: str
    seed: int
    statistics: str
    name: str
    verdict: str
    value: float | None
    detail: str


@dataclasses.dataclass(frozen=True)
class LoggedStep:
    """What is kept of one training step.

    Attributes:
      step: counted from 1.
      epoch: passes over the data so far.
      loss: mean loss of the batch, in nats.
      accuracy: share of the batch's labels that were right.
      factors: layer -> {``mean_factor``, ``variance_factor``}; empty for norms without shrinkage.
      learning_rate: of this step.
    """

    step: int
    epoch: float
    loss: float
    accuracy: float
    factors: dict[str, dict[str, float]]
    learning_rate: float = 0.0


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a ``metrics.jsonl`` up to one that was cut short or damaged."""
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def logged_steps(path: Path) -> list[LoggedStep]:
    """Returns the training steps in a ``metrics.jsonl``; none where there is no such file."""
    names = [field.name for field in dataclasses.fields(LoggedStep)]
    lines = read_log(path) if path.exists() else []
    return [LoggedStep(**{n: line[n] for n in names}) for line in lines if line["kind"] == "train"]
