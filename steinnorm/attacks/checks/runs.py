"""The attacks that the checks look at; each is run once, when it is first asked for."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import known, reached
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks.checks.settings import ChecksConfig
from steinnorm.attacks.intervals import Tally
from steinnorm.attacks.pgd import fgsm, pgd
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.square import square
from steinnorm.attacks.threat import Threat

NO_TWIN = "no twin was given: the same network with plain batch norm, of the same seed"


class Target(NamedTuple):
    """The model that is checked.

    Attributes:
      logits_fn: maps inputs (B, ...) to logits, as in ``steinnorm.attacks._model``.
      batch_dependent: whether an example's logits may change with its companions; None to find
        out.
      bounds: the smallest and the largest valid value of an input.
    """

    logits_fn: LogitsFn
    batch_dependent: bool | None = None
    bounds: tuple[float, float] = (0.0, 1.0)


class Twin(NamedTuple):
    """A model without the defence, whose attacked inputs may break the target too.

    Attributes:
      logits_fn: of the model; None where there is none.
      reason: then, why not.
    """

    logits_fn: LogitsFn | None = None
    reason: str = NO_TWIN


class Outcome(NamedTuple):
    """What an attack left of the batch.

    Attributes:
      broken: (B,) or (B, H, W) bool, the labels that are wrong now.
      right: how many of the known labels are still right.
    """

    broken: np.ndarray
    right: Tally

    @property
    def accuracy(self) -> float:
        """Share of the known labels that are still right."""
        return self.right.share


class Runs:
    """One batch, and every attack on it that a check has asked for so far.

    Attributes:
      problem: model, batch and the threat at radius ``config.epsilon``.
      config: the settings.
      key: for the randomness of checks that do not attack.
      twin: the model without the defence.
      joint: whether logits hang on the batch, which is then attacked and kept as a whole.

    Raises:
      ValueError: the batch does not fit the model, as in ``fgsm``, or has no known label.
    """

    def __init__(
        self,
        target: Target,
        x: jax.Array,
        y: jax.Array,
        *,
        config: ChecksConfig,
        key: jax.Array,
        twin: Twin | None = None,
    ):
        threat = Threat(config.norm, config.epsilon, target.bounds)
        self.problem = Problem.of(target.logits_fn, x, y, threat)
        self._known = np.asarray(known(self.problem.criterion.y))
        if not self._known.any():
            raise ValueError("no label of this batch is known: there is nothing to attack")
        self.config = config
        self.twin = Twin() if twin is None else twin
        self.joint = resolve_batch_dependence(self.problem, target.batch_dependent, warn=False)
        self._starts, self._square, self.key = (jax.random.fold_in(key, n) for n in range(3))
        self._kept: dict[tuple[str, float, int, int], Outcome] = {}

    @property
    def size(self) -> str:
        """On how much the checks are made, in words."""
        examples = f"{len(self.problem.x)} examples"
        if not self.problem.label_axes:
            return examples
        return f"{self._known.sum()} pixels of {examples}"

    @property
    def widest(self) -> float:
        """The radius, as a multiple of epsilon, at which the ball holds the whole box."""
        low, high = self.problem.threat.bounds
        values = self.problem.x[0].size if self.problem.threat.norm == "l2" else 1
        return (high - low) * math.sqrt(values) / self.problem.threat.epsilon

    def fgsm(self) -> Outcome:
        """One step of the whole radius."""
        problem = self.problem
        return self._once(
            ("fgsm", 1.0, 1, 1),
            lambda: fgsm(problem.model, problem.x, problem.criterion.y, threat=problem.threat),
            problem.threat,
        )

    def pgd(self, steps: int, *, radius: float = 1.0, restarts: int = 1) -> Outcome:
        """Steps of 2.5 * epsilon / steps from a random start, the same for every call.

        Args:
          steps: of each run.
          radius: as a multiple of ``config.epsilon``.
          restarts: runs; the first is that of one restart.
        """
        problem = self.problem
        threat = self._threat(radius)
        return self._once(
            ("pgd", radius, steps, restarts),
            lambda: pgd(
                problem.model,
                problem.x,
                problem.criterion.y,
                threat=threat,
                key=self._starts,
                steps=steps,
                restarts=restarts,
                batch_dependent=self.joint,
            ),
            threat,
        )

    def square(self) -> Outcome:
        """Random search, which takes no gradient."""
        problem = self.problem
        return self._once(
            ("square", 1.0, 0, 1),
            lambda: square(
                problem.model,
                problem.x,
                problem.criterion.y,
                threat=problem.threat,
                key=self._square,
                queries=self.config.square_queries,
                batch_dependent=self.joint,
            ),
            problem.threat,
        )

    def transferred(self, twin: LogitsFn) -> Outcome:
        """The target's answers to what was made against the twin."""
        problem = self.problem
        result = pgd(
            twin,
            problem.x,
            problem.criterion.y,
            threat=problem.threat,
            key=self._starts,
            steps=self.config.steps,
        )
        result.check(problem.threat, "pgd on the twin")
        return self._outcome(reached(predict(problem.model, result.x_adv), problem.criterion))

    def white_box(self) -> list[Outcome]:
        """All attacks at epsilon that see the target's gradient, at full strength."""
        steps = self.config.steps
        return [
            self.fgsm(),
            self.pgd(steps),
            self.pgd(2 * steps),
            self.pgd(steps, restarts=self.config.restarts),
        ]

    def _threat(self, radius: float) -> Threat:
        threat = self.problem.threat
        return Threat(threat.norm, radius * threat.epsilon, threat.bounds)

    def _once(
        self,
        name: tuple[str, float, int, int],
        attack: Callable[[], AttackResult],
        threat: Threat,
    ) -> Outcome:
        if name not in self._kept:
            result = attack()
            result.check(threat, name[0])
            self._kept[name] = self._outcome(result.success)
        return self._kept[name]

    def _outcome(self, broken: jax.Array) -> Outcome:
        wrong = np.asarray(broken)
        return Outcome(wrong, Tally.of(~wrong[self._known]))


def clean_right(problem: Problem) -> jax.Array:
    """Where the label of the clean input is known and found, (B, *S) bool."""
    return (jnp.argmax(problem.logits, axis=-1) == problem.criterion.y) & known(problem.criterion.y)
