"""One batch under one attack: what of it is kept."""

import dataclasses
import functools
import inspect
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import Criterion, known, mean_over_labels, reached
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks.catalogue import AttackSettings
from steinnorm.attacks.errors import ShortReachWarning
from steinnorm.attacks.losses import per_label
from steinnorm.attacks.noise import NOISES
from steinnorm.attacks.per_example import SHOWN, PerExample, Values
from steinnorm.attacks.robustness.data import Batch
from steinnorm.attacks.robustness.said import Said, said_once
from steinnorm.attacks.threat import Threat

Attack = AttackSettings | Callable[..., Any]
"""One of the catalogue, or a function with the signature of an attack."""

_SHOWN_BYTES = 16 * 2**20  # of the examples that are kept for pictures, in one file


def name_of(attack: Attack) -> str:
    """Returns what the results call an attack."""
    if isinstance(attack, AttackSettings):
        return attack.name
    inner = attack.func if isinstance(attack, functools.partial) else attack
    return getattr(inner, "__name__", type(inner).__name__)


def has_ball(attack: Attack) -> bool:
    """Returns whether an attack stays in a ball; noise has none."""
    return not isinstance(attack, AttackSettings) or attack.has_ball


class Ready(NamedTuple):
    """A batch on the device, checked.

    Attributes:
      batch: as it was given.
      problem: with copies behind it, where it is smaller than others.
    """

    batch: Batch
    problem: Problem


@dataclasses.dataclass(frozen=True)
class Measure:
    """Attacks batches of one model.

    Attributes:
      model: the model.
      norm: of the balls.
      bounds: the box, as ``Threat`` takes it.
      seed: of all randomness.
      pictures: whether the first examples are kept.
      on_progress: called now and then with how far a long attack is, in words.
      batch_dependent: whether an example's logits change with its companions.
      said: warnings that were given already.
    """

    model: LogitsFn
    norm: str
    bounds: Any
    seed: int
    pictures: bool
    on_progress: Callable[[str], None]
    batch_dependent: bool = False
    said: Said = dataclasses.field(default_factory=set)

    def ready(self, batch: Batch, size: int) -> Ready:
        """Checks a batch and brings it to the device.

        Args:
          batch: the examples.
          size: up to which a smaller batch is filled, so that it does not compile anew.

        Raises:
          ValueError: inputs, labels or logits are not as an attack needs them.
        """
        # Copies would count in the statistics of the batch.
        full = batch if self.batch_dependent else batch.filled(size)
        with said_once(self.said):
            problem = Problem.of(
                self.model, jnp.asarray(full.x), full.y, Threat(self.norm, 0.0, self.bounds)
            )
        return Ready(batch, problem)

    def clean(self, ready: Ready) -> PerExample:
        """Returns what the model makes of the batch as it is.

        Args:
          ready: the batch.
        """
        return self._kept(ready, ready.problem.x, np.zeros(len(ready.problem.x)), 0)

    def attacked(self, attack: Attack, epsilon: float, ready: Ready) -> PerExample:
        """Returns what the model makes of the batch after an attack.

        Args:
          attack: which.
          epsilon: radius of the ball; of noise, its root mean square.
          ready: the batch.

        Raises:
          LeftThreatError: the attack left its ball or box.
        """
        x = ready.problem.x
        # By name, so that an attack's result does not depend on what else is asked for.
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(name_of(attack).encode()))
        key = jax.random.fold_in(key, ready.batch.place)
        if not has_ball(attack):
            noisy = NOISES[attack.kind](key, x, epsilon, self.bounds)  # type: ignore[union-attr]
            return self._kept(ready, noisy, np.zeros(len(x)), 0)
        threat = Threat(self.norm, epsilon, self.bounds)
        with said_once(self.said):
            x_adv, zeros = self._run(attack, ready.problem, threat, key)
        return self._kept(ready, x_adv, np.asarray(threat.distance(x_adv, x)), zeros)

    def _run(
        self, attack: Attack, problem: Problem, threat: Threat, key: jax.Array
    ) -> tuple[jax.Array, int]:
        """The attacked inputs, and how many gradients vanished."""
        x, y, dependent = problem.x, problem.criterion.y, self.batch_dependent
        settings: dict[str, Any] = {}
        if not isinstance(attack, AttackSettings):
            if "batch_dependent" in inspect.signature(attack).parameters:
                settings["batch_dependent"] = dependent
            found = attack(problem.model, x, y, threat=threat, key=key, **settings)
            # Judged by us, whatever the function says of itself: ball, box and finite logits.
            x_adv = _checked_inputs(found, x, name_of(attack))
            judged = dataclasses.replace(problem, threat=threat).result(x_adv)
            return judged.x_adv, int(getattr(found, "zero_gradients", 0))
        function, settings = attack.call(batch_dependent=dependent, on_progress=self.on_progress)
        if attack.short_reach:
            warnings.simplefilter("ignore", ShortReachWarning)
        result = function(problem.model, x, y, threat=threat, key=key, **settings)
        result.check(threat, attack.name)
        return result.x_adv, result.zero_gradients

    def _kept(
        self, ready: Ready, x_adv: jax.Array, distance: np.ndarray, zero_gradients: int
    ) -> PerExample:
        batch, problem = ready
        count = len(batch.x)
        judged = _judged(predict(problem.model, x_adv), problem.criterion.y)
        summary = {name: np.asarray(values)[:count] for name, values in judged.items()}
        prediction = summary.pop("prediction")
        if batch.y.ndim == 1:
            summary["prediction"] = prediction
        return PerExample(
            about={},
            summary=summary,
            distance=distance[:count],
            batch=np.full(count, batch.place),
            values=Values.of(np.asarray(x_adv)[:count]),
            zero_gradients=min(zero_gradients, count),  # copies were counted too
            shown=self._shown(ready, x_adv, prediction) if self.pictures else {},
        )

    def _shown(
        self, ready: Ready, x_adv: jax.Array, prediction: np.ndarray
    ) -> dict[str, np.ndarray]:
        batch, problem = ready
        room = max(1, min(SHOWN, _SHOWN_BYTES // (problem.x.nbytes // len(problem.x))))
        first = room if batch.place == 0 or room == SHOWN else 0
        few = min(first, len(batch.x))
        return {
            "x": np.asarray(problem.x)[:few],
            "x_adv": np.asarray(x_adv)[:few],
            "y": np.asarray(problem.criterion.y)[:few],
            "prediction": prediction[:few],
        }


def _checked_inputs(found: Any, x: jax.Array, name: str) -> jax.Array:
    """The attacked inputs that a function of the user hands back."""
    if not hasattr(found, "x_adv"):
        raise ValueError(
            f"{name} must return an AttackResult, or another object with x_adv; got "
            f"{type(found).__name__}"
        )
    x_adv = found.x_adv
    if np.shape(x_adv) != x.shape or not jnp.issubdtype(jnp.result_type(x_adv), jnp.floating):
        raise ValueError(
            f"{name} must return floating x_adv of shape {x.shape}; got shape {np.shape(x_adv)}, "
            f"dtype {jnp.result_type(x_adv)}"
        )
    return jnp.asarray(x_adv)


@jax.jit
def _judged(logits: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Per example; of label maps counts of pixels, whose sums are exact."""
    criterion = Criterion(y)
    wrong, labelled = reached(logits, criterion), known(y)
    found = {
        "loss": mean_over_labels(per_label("cross_entropy", logits, criterion), y),
        "prediction": jnp.argmax(logits, axis=-1).astype(jnp.int32),
    }
    if y.ndim == 1:
        return found | {"right": ~wrong}
    axes = tuple(range(1, y.ndim))
    right = jnp.sum(labelled & ~wrong, axis=axes)
    return found | {"right_pixels": right, "known_pixels": jnp.sum(labelled, axis=axes)}


def share_wrong(summary: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the share of each example's known labels that are wrong, (N,); 0 where none is."""
    if "right" in summary:
        return 1.0 - summary["right"]
    labelled = summary["known_pixels"]
    right = summary["right_pixels"] / np.maximum(labelled, 1)
    return np.where(labelled > 0, 1.0 - right, 0.0)
