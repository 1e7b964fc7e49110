"""The attacks that the checks look at; each is run once, when it is first asked for."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from steinnorm.attacks._criterion import VOID
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks.checks.box import factor_of_the_whole_box
from steinnorm.attacks.checks.paired import Broken
from steinnorm.attacks.checks.precision import exact_products
from steinnorm.attacks.checks.settings import CheckSettings
from steinnorm.attacks.dependence import Dependence, batch_dependence
from steinnorm.attacks.pgd import fgsm, pgd
from steinnorm.attacks.square import square
from steinnorm.attacks.threat import Threat

NO_TWIN = "no twin was given: the same network without the defence, of the same seed"


class Twin(NamedTuple):
    """A model without the defence, whose attacked inputs may break the target too.

    Attributes:
      logits_fn: of the model; None where there is none.
      reason: then, why not.
    """

    logits_fn: LogitsFn | None = None
    reason: str = NO_TWIN


class Runs:
    """One batch, and every attack on it that a check has asked for so far.

    Attributes:
      problem: model, batch and threat.
      x: the inputs, (B, ...).
      y: the labels, (B, *S).
      logits: of the clean inputs, (B, *S, K).
      known: where there is a label, (B, *S).
      settings: of the checks.
      key: for the randomness of checks that do not attack.
      twin: the model without the defence.
      joint: whether logits depend on the batch, which is then attacked and kept as a whole.

    Raises:
      ValueError: the batch does not fit the model, as in ``fgsm``, or has no known label.
    """

    def __init__(
        self,
        logits_fn: LogitsFn,
        x: jax.Array,
        y: jax.Array,
        *,
        threat: Threat,
        settings: CheckSettings,
        key: jax.Array,
        twin: Twin | None = None,
        batch_dependent: bool | None = None,
    ):
        self.problem = Problem.of(logits_fn, x, y, threat)
        self.logits = np.asarray(self.problem.logits)
        # NumPy arrays: inputs may be spread over devices, where eager slices of them are refused.
        self.x = np.asarray(self.problem.x)
        self.y = np.asarray(self.problem.criterion.y)
        self.known = self.y != VOID if self.y.ndim > 1 else np.ones(self.y.shape, bool)
        if not self.known.any():
            raise ValueError("no label of this batch is known: there is nothing to attack")
        self.settings = settings
        self.twin = Twin() if twin is None else twin
        self._starts, self._square, self.key = (jax.random.fold_in(key, n) for n in range(3))
        self._kept: dict[tuple[str, float, int, int], Broken] = {}
        if batch_dependent is None:
            batch_dependent = self.dependence is not None and self.dependence.found
        self.joint = batch_dependent

    @functools.cached_property
    def dependence(self) -> Dependence | None:
        """What other companions change; None for a batch of one, which has none."""
        if len(self.x) < 2:
            return None
        with exact_products():
            return batch_dependence(self.problem.model, self.problem.x, key=self.key)

    @property
    def size(self) -> str:
        """On how much the checks are made, in words."""
        examples = f"{len(self.x)} examples"
        if not self.problem.label_axes:
            return examples
        return f"{self.known.sum()} pixels of {examples}"

    @property
    def labelled(self) -> int:
        """How many examples have a known label."""
        return int(np.sum(_per_example(self.known) > 0))

    @property
    def clean_right(self) -> np.ndarray:
        """Where the label of the clean input is known and found, (B, *S) bool."""
        return (np.argmax(self.logits, axis=-1) == self.y) & self.known

    @property
    def widest(self) -> float | None:
        """The radius, in multiples of epsilon, at which the ball holds the box; None without."""
        return factor_of_the_whole_box(self.problem.threat, self.x.shape[1:])

    def fgsm(self) -> Broken:
        """Returns what one step of the whole radius breaks."""
        problem = self.problem
        return self._once(
            ("fgsm", 1.0, 1, 1),
            lambda: fgsm(
                problem.model,
                problem.x,
                problem.criterion.y,
                threat=problem.threat,
                batch_dependent=self.joint,
            ),
            problem.threat,
        )

    def pgd(self, steps: int, *, radius: float = 1.0, restarts: int = 1) -> Broken:
        """Returns what PGD breaks, from a random start that is the same for every call.

        Args:
          steps: of each run, each of 2.5 * epsilon / steps.
          radius: in multiples of the threat's.
          restarts: runs; the first is that of one restart.
        """
        problem = self.problem
        threat = problem.threat
        if radius != 1:
            threat = dataclasses.replace(threat, epsilon=radius * threat.epsilon)
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

    def square(self) -> Broken:
        """Returns what a random search breaks, which takes no gradient."""
        problem = self.problem
        return self._once(
            ("square", 1.0, 0, 1),
            lambda: square(
                problem.model,
                problem.x,
                problem.criterion.y,
                threat=problem.threat,
                key=self._square,
                queries=self.settings.square_queries,
                batch_dependent=self.joint,
            ),
            problem.threat,
        )

    def transferred(self, twin: LogitsFn) -> Broken:
        """Returns what inputs that were made against the twin break of the target."""
        problem = self.problem
        with _warned_already():
            result = pgd(
                twin,
                problem.x,
                problem.criterion.y,
                threat=problem.threat,
                key=self._starts,
                steps=self.settings.steps,
            )
        result.check(problem.threat, "pgd on the twin")
        answers = np.argmax(np.asarray(predict(problem.model, result.x_adv)), axis=-1)
        return self._broken((answers != self.y) & self.known)

    def white_box(self) -> list[Broken]:
        """Returns what each attack at epsilon breaks that sees the gradient, at full strength."""
        steps = self.settings.steps
        return [
            self.fgsm(),
            self.pgd(steps),
            self.pgd(2 * steps),
            self.pgd(steps, restarts=self.settings.restarts),
        ]

    def _once(
        self,
        name: tuple[str, float, int, int],
        attack: Callable[[], Any],
        threat: Threat,
    ) -> Broken:
        if name not in self._kept:
            with _warned_already():
                result = attack()
            result.check(threat, name[0])
            self._kept[name] = self._broken(np.asarray(result.success))
        return self._kept[name]

    def _broken(self, wrong: np.ndarray) -> Broken:
        return Broken(_per_example(wrong & self.known), _per_example(self.known))


def _per_example(labels: np.ndarray) -> np.ndarray:
    """Returns how many labels of each example are marked, (B,)."""
    return labels.reshape(len(labels), -1).sum(axis=1)


@contextlib.contextmanager
def _warned_already() -> Iterator[None]:
    """Ignores what an attack warns of, for model, inputs and threat were looked at once.

    A ball beyond the box, which a check makes on purpose, is no news either.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
