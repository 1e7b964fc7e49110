"""The attacks that the checks compare; each is run once, when it is first needed."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from steinnorm.attacks._criterion import VOID
from steinnorm.attacks._inputs import Problem, refuse_not_finite
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks._without_gradient import why_no_gradient
from steinnorm.attacks.checks.arguments import check_losses_fit
from steinnorm.attacks.checks.box import whole_box_factor
from steinnorm.attacks.checks.paired import BrokenLabels
from steinnorm.attacks.checks.precision import full_precision_products
from steinnorm.attacks.checks.settings import CheckSettings
from steinnorm.attacks.dependence import Dependence, batch_dependence
from steinnorm.attacks.pgd import fgsm, pgd
from steinnorm.attacks.square import square
from steinnorm.attacks.threat import Threat

NO_TWIN = "no twin was given: the same network without the defence, of the same seed"


class Twin(NamedTuple):
    """The same network without the defence, whose attacked inputs may break the attacked model too.

    Attributes:
      logits_fn: maps a batch to logits; None if there is no twin.
      reason: the reason if there is no twin.
    """

    logits_fn: LogitsFn | None = None
    reason: str = NO_TWIN


class AttackRuns:
    """One batch, and the results of all attacks on it so far.

    Attributes:
      problem: model, batch and threat.
      x: inputs, (B, ...).
      y: true labels, (B, *S).
      logits: logits of the clean inputs, (B, *S, K).
      known: which labels are not void, (B, *S) bool.
      settings: settings of the checks.
      key: random key of the checks that do not attack.
      twin: the model without the defence.
      joint: whether logits depend on the batch, which is then attacked and kept as a whole.

    Raises:
      ValueError: the batch does not fit the model, as in ``fgsm``, or has no label; a loss of the
        settings is not defined for such logits or labels.
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
        # NumPy arrays, because inputs may be divided among devices, where slicing can fail.
        self.x = np.asarray(self.problem.x)
        self.y = np.asarray(self.problem.criterion.y)
        self.known = self.y != VOID if self.y.ndim > 1 else np.ones(self.y.shape, bool)
        if not self.known.any():
            raise ValueError("y has no label except void: there is nothing to attack")
        settings = settings.with_losses(())
        check_losses_fit(settings.losses, self.problem.classes, self.problem.label_axes)
        self.settings = settings
        self.twin = Twin() if twin is None else twin
        self._starts, self._square, self.key = (jax.random.fold_in(key, n) for n in range(3))
        self._results: dict[tuple[str, float, int, int], BrokenLabels] = {}
        if batch_dependent is None:
            batch_dependent = self.dependence is not None and self.dependence.found
        self.joint = batch_dependent

    @functools.cached_property
    def dependence(self) -> Dependence | None:
        """The dependence of logits on the batch; None for a batch of one example."""
        if len(self.x) < 2:
            return None
        with full_precision_products():
            return batch_dependence(self.problem.model, self.problem.x, key=self.key)

    @functools.cached_property
    def why_no_gradient(self) -> str:
        """Why the model has no gradient, such as a callback; empty if it has one."""
        return why_no_gradient(self.problem.model, self.problem.x)

    @property
    def size(self) -> str:
        """The number of examples of the checks, as text."""
        examples = f"{len(self.x)} examples"
        if not self.problem.label_axes:
            return examples
        return f"{self.known.sum()} pixels of {examples}"

    @property
    def labelled_examples(self) -> int:
        """The number of examples with a label."""
        return int(np.sum(self.known_labels > 0))

    @property
    def known_labels(self) -> np.ndarray:
        """The number of each example's labels, without void pixels, (B,)."""
        return _per_example(self.known)

    @property
    def clean_right(self) -> np.ndarray:
        """Which labels of the clean inputs are predicted right, (B, *S) bool."""
        return (np.argmax(self.logits, axis=-1) == self.y) & self.known

    @property
    def widest(self) -> float | None:
        """The factor of the radius at which the ball contains the box; None without bounds."""
        return whole_box_factor(self.problem.threat, self.x.shape[1:])

    def fgsm(self) -> BrokenLabels:
        """Returns the labels that FGSM breaks."""
        problem = self.problem
        return self._cached(
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

    def pgd(
        self,
        steps: int,
        *,
        radius: float = 1.0,
        restarts: int = 1,
        loss: str = "cross_entropy",
        schedule: str = "constant",
    ) -> BrokenLabels:
        """Returns the labels that PGD breaks, from a random start that is the same in all calls.

        Args:
          steps: steps per run, the first of size 2.5 * epsilon / steps.
          radius: factor of the threat's radius.
          restarts: number of runs; the first is the same for any number.
          loss: that it increases, a name in ``steinnorm.attacks.losses.LOSSES``.
          schedule: of the step size, a name in ``steinnorm.attacks.pgd.SCHEDULES``.
        """
        problem = self.problem
        threat = problem.threat
        if radius != 1:
            threat = dataclasses.replace(threat, epsilon=radius * threat.epsilon)
        return self._cached(
            (f"pgd on {loss}, {schedule} steps", radius, steps, restarts),
            lambda: pgd(
                problem.model,
                problem.x,
                problem.criterion.y,
                threat=threat,
                key=self._starts,
                steps=steps,
                restarts=restarts,
                loss=loss,
                schedule=schedule,
                batch_dependent=self.joint,
            ),
            threat,
        )

    def square(self) -> BrokenLabels:
        """Returns the labels that Square breaks, which uses no gradient."""
        problem = self.problem
        return self._cached(
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

    def transferred(self, twin: LogitsFn) -> BrokenLabels:
        """Returns the labels of the attacked model that inputs attacked on the twin break."""
        problem = self.problem
        with _ignored_warnings():
            result = pgd(
                twin,
                problem.x,
                problem.criterion.y,
                threat=problem.threat,
                key=self._starts,
                steps=self.settings.steps,
            )
        result.check(problem.threat, "pgd on the twin")
        logits = np.asarray(predict(problem.model, result.x_adv))
        refuse_not_finite(~np.isfinite(logits), "examples that were attacked on the twin")
        predictions = np.argmax(logits, axis=-1)
        return self._broken((predictions != self.y) & self.known)

    def white_box(self) -> list[BrokenLabels]:
        """Returns the labels that each gradient attack at the whole radius breaks.

        They include PGD on each of the evaluation's losses. Of a model without a gradient it is
        Square, if it has queries.
        """
        steps = self.settings.steps
        if self.why_no_gradient:
            return [self.square()] if self.settings.square_queries else []
        return [
            self.fgsm(),
            self.pgd(steps),
            self.pgd(2 * steps),
            self.pgd(steps, restarts=self.settings.restarts),
            *(self.pgd(steps, loss=loss) for loss in self.settings.losses),
        ]

    def _cached(
        self,
        name: tuple[str, float, int, int],
        attack: Callable[[], Any],
        threat: Threat,
    ) -> BrokenLabels:
        if name not in self._results:
            with _ignored_warnings():
                result = attack()
            result.check(threat, name[0])
            self._results[name] = self._broken(np.asarray(result.success))
        return self._results[name]

    def _broken(self, wrong: np.ndarray) -> BrokenLabels:
        return BrokenLabels(_per_example(wrong & self.known), self.known_labels)


def _per_example(labels: np.ndarray) -> np.ndarray:
    """Returns the number of true values in each example, (B,)."""
    return labels.reshape(len(labels), -1).sum(axis=1)


@contextlib.contextmanager
def _ignored_warnings() -> Iterator[None]:
    """Ignores warnings of an attack, which were given when the batch was checked.

    One of the checks also makes the ball larger than the box on purpose.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
