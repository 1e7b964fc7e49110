"""One attack on one batch, and the per-example results that are kept."""

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

from steinnorm.attacks._criterion import Criterion, has_label, mean_over_labels, succeeded
from steinnorm.attacks._geometry import all_in_example
from steinnorm.attacks._inputs import Problem, refuse_not_finite
from steinnorm.attacks._model import LogitsFn, predict
from steinnorm.attacks.catalogue import AttackSettings
from steinnorm.attacks.errors import ShortReachWarning
from steinnorm.attacks.losses import per_label
from steinnorm.attacks.noise import NOISES
from steinnorm.attacks.per_example import SHOWN, PerExample, Values
from steinnorm.attacks.robustness.data import Batch
from steinnorm.attacks.robustness.warn_once import GivenWarnings, warn_once
from steinnorm.attacks.threat import Threat

Attack = AttackSettings | Callable[..., Any]
"""Settings of the catalogue, or a function with the signature of an attack."""

_SHOWN_BYTES = 16 * 2**20  # largest size of the examples that a file keeps for pictures


def attack_name(attack: Attack) -> str:
    """Returns the name of an attack in results."""
    if isinstance(attack, AttackSettings):
        return attack.name
    inner = attack.func if isinstance(attack, functools.partial) else attack
    return getattr(inner, "__name__", type(inner).__name__)


def has_ball(attack: Attack) -> bool:
    """Returns whether an attack stays in a ball; noises do not."""
    return not isinstance(attack, AttackSettings) or attack.has_ball


class PreparedBatch(NamedTuple):
    """A checked batch on the device.

    Attributes:
      batch: the given batch.
      problem: the batch with model and threat, padded if it is smaller than the others.
    """

    batch: Batch
    problem: Problem


@dataclasses.dataclass(frozen=True)
class BatchEvaluator:
    """Attacks batches of one model.

    Attributes:
      model: the model.
      norm: norm of the balls.
      bounds: bounds of the box, as in ``Threat``.
      seed: seed of all randomness.
      pictures: whether the first attacked examples are kept.
      on_progress: called from time to time with the progress of a long attack, as text.
      batch_dependent: whether an example's logits depend on the rest of the batch.
      given_warnings: warnings that have been given already.
    """

    model: LogitsFn
    norm: str
    bounds: Any
    seed: int
    pictures: bool
    on_progress: Callable[[str], None]
    batch_dependent: bool = False
    given_warnings: GivenWarnings = dataclasses.field(default_factory=set)

    @property
    def key(self) -> jax.Array:
        """The random key of the seed."""
        # Keys are made of 32 bits unless JAX is told to use 64: the others would be lost.
        low, high = self.seed % 2**32, (self.seed >> 32) % 2**32
        key = jax.random.key(np.uint32(low))
        return jax.random.fold_in(key, np.uint32(high)) if high else key

    def prepare(self, batch: Batch, size: int) -> PreparedBatch:
        """Checks a batch and places it on the device.

        Args:
          batch: the examples.
          size: size to which a smaller batch is padded, so that nothing is compiled again.

        Raises:
          ValueError: inputs, labels or logits are invalid.
        """
        # No padding if logits depend on the batch, because copies would change its statistics.
        padded_batch = batch if self.batch_dependent else batch.padded(size)
        with warn_once(self.given_warnings):
            problem = Problem.of(
                self.model,
                jnp.asarray(padded_batch.x),
                padded_batch.y,
                Threat(self.norm, 0.0, self.bounds),
            )
        return PreparedBatch(batch, problem)

    def evaluate_clean(self, prepared: PreparedBatch) -> PerExample:
        """Evaluates the model on the clean batch.

        Args:
          prepared: the batch.
        """
        return self._per_example_results(
            prepared, prepared.problem.x, np.zeros(len(prepared.problem.x)), 0
        )

    def evaluate_attack(
        self, attack: Attack, epsilon: float, prepared: PreparedBatch
    ) -> PerExample:
        """Attacks the batch and evaluates the model on the result.

        Args:
          attack: the attack or noise.
          epsilon: radius of the ball; for noise the root mean square.
          prepared: the batch.

        Raises:
          LeftThreatError: the attack left its ball or box.
          NotFiniteError: logits of the attacked or noisy inputs are NaN or infinite.
        """
        x = prepared.problem.x
        # From the name, so that an attack's result does not depend on the other attacks.
        key = jax.random.fold_in(self.key, zlib.crc32(attack_name(attack).encode()))
        key = jax.random.fold_in(key, prepared.batch.number)
        if not has_ball(attack):
            noisy = NOISES[attack.kind](key, x, epsilon, self.bounds)  # type: ignore[union-attr]
            which = f"examples under {attack_name(attack)} noise of {epsilon:g}"
            changes = _largest_changes(noisy, x)
            return self._per_example_results(prepared, noisy, changes, 0, which=which)
        threat = Threat(self.norm, epsilon, self.bounds)
        with warn_once(self.given_warnings):
            x_adv, zero_gradients = self._run_attack(attack, prepared.problem, threat, key)
        return self._per_example_results(
            prepared, x_adv, np.asarray(threat.distance(x_adv, x)), zero_gradients
        )

    def _run_attack(
        self, attack: Attack, problem: Problem, threat: Threat, key: jax.Array
    ) -> tuple[jax.Array, int]:
        """Returns the attacked inputs and the number of all-zero gradients."""
        x, y, dependent = problem.x, problem.criterion.y, self.batch_dependent
        settings: dict[str, Any] = {}
        if not isinstance(attack, AttackSettings):
            if "batch_dependent" in inspect.signature(attack).parameters:
                settings["batch_dependent"] = dependent
            result = attack(problem.model, x, y, threat=threat, key=key, **settings)
            # Ball, box and logits are checked here, whatever the function returns about them.
            x_adv = _checked_inputs(result, x, attack_name(attack))
            measured = dataclasses.replace(problem, threat=threat).result(x_adv)
            return measured.x_adv, int(getattr(result, "zero_gradients", 0) or 0)
        function, settings = attack.call(batch_dependent=dependent, on_progress=self.on_progress)
        if attack.short_reach:
            warnings.simplefilter("ignore", ShortReachWarning)
        result = function(problem.model, x, y, threat=threat, key=key, **settings)
        result.check(threat, attack.name)
        return result.x_adv, result.zero_gradients

    def _per_example_results(
        self,
        prepared: PreparedBatch,
        x_adv: jax.Array,
        distance: np.ndarray,
        zero_gradients: int,
        *,
        which: str = "examples",
    ) -> PerExample:
        """Evaluates the model on inputs, which ``which`` names in errors."""
        batch, problem = prepared
        count = len(batch.x)
        measured = _measurements(predict(problem.model, x_adv), problem.criterion.y)
        refuse_not_finite(np.asarray(measured.pop("not_finite"))[:count], which)
        summary = {name: np.asarray(values)[:count] for name, values in measured.items()}
        prediction = summary.pop("prediction")
        if batch.y.ndim == 1:
            summary["prediction"] = prediction
        return PerExample(
            about={},
            summary=summary,
            distance=distance[:count],
            batch=np.full(count, batch.number),
            values=Values.of(np.asarray(x_adv)[:count]),
            zero_gradients=min(zero_gradients, count),  # the count includes padding
            shown=self._shown(prepared, x_adv, prediction) if self.pictures else {},
        )

    def _shown(
        self, prepared: PreparedBatch, x_adv: jax.Array, prediction: np.ndarray
    ) -> dict[str, np.ndarray]:
        batch, problem = prepared
        room = max(1, min(SHOWN, _SHOWN_BYTES // (problem.x.nbytes // len(problem.x))))
        most_shown = room if batch.number == 0 or room == SHOWN else 0
        count_shown = min(most_shown, len(batch.x))
        return {
            "x": np.asarray(problem.x)[:count_shown],
            "x_adv": np.asarray(x_adv)[:count_shown],
            "y": np.asarray(problem.criterion.y)[:count_shown],
            "prediction": prediction[:count_shown],
        }


def _largest_changes(x_adv: jax.Array, x: jax.Array) -> np.ndarray:
    """Returns the largest change of a value in each example, (B,), computed on the host."""
    change = np.abs(np.asarray(x_adv) - np.asarray(x))
    return change.reshape(len(change), -1).max(axis=1)


def _checked_inputs(result: Any, x: jax.Array, name: str) -> jax.Array:
    """Returns the attacked inputs from the result of a user's function.

    Raises:
      ValueError: there are none of the right shape and dtype.
    """
    if not hasattr(result, "x_adv"):
        raise ValueError(
            f"{name} must return an AttackResult, or another object with x_adv; got "
            f"{type(result).__name__}"
        )
    x_adv = result.x_adv
    if np.shape(x_adv) != x.shape or not jnp.issubdtype(jnp.result_type(x_adv), jnp.floating):
        raise ValueError(
            f"{name} must return floating x_adv of shape {x.shape}; got shape {np.shape(x_adv)}, "
            f"dtype {jnp.result_type(x_adv)}"
        )
    return jnp.asarray(x_adv)


@jax.jit
def _measurements(logits: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Returns measurements per example; for label maps counts of pixels, whose sums are exact."""
    criterion = Criterion(y)
    wrong, labelled = succeeded(logits, criterion), has_label(y)
    result = {
        "loss": mean_over_labels(per_label("cross_entropy", logits, criterion), y),
        "prediction": jnp.argmax(logits, axis=-1).astype(jnp.int32),
        "not_finite": ~all_in_example(jnp.isfinite(logits)),
    }
    if y.ndim == 1:
        return result | {"right": ~wrong}
    axes = tuple(range(1, y.ndim))
    right = jnp.sum(labelled & ~wrong, axis=axes)
    return result | {"right_pixels": right, "known_pixels": jnp.sum(labelled, axis=axes)}


def share_wrong(summary: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the share of wrong predictions among each example's labels, (N,); 0 without any."""
    if "right" in summary:
        return 1.0 - summary["right"]
    labelled = summary["known_pixels"]
    right = summary["right_pixels"] / np.maximum(labelled, 1)
    return np.where(labelled > 0, 1.0 - right, 0.0)
