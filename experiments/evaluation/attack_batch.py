"""Runs one attack on a test batch, as a configuration describes it."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.configs.schema import AttackConfig
from experiments.errors import ConfigError
from experiments.tasks import Segmentation, Task
from steinnorm import attacks
from steinnorm.attacks import (
    AttackResult,
    ShortReachWarning,
    Threat,
    batch_threats,
    catalogue,
)
from steinnorm.functional import CALIBRATED

ThreatModel = Literal["joint", "independent", "companion"]
"""Who attacks whom in a batch whose statistics count.

``joint``: the attacker owns the whole batch; ``independent``: each example is attacked while its
batch stays as it is; ``companion``: only the others are attacked, and it is the example that
errs.
"""

DEPENDENT = ("batch", "shrunk", *CALIBRATED)
"""Sources of statistics with which an example's answer depends on its batch."""


class Attacked(NamedTuple):
    """Examples after an attack; k of them, the whole batch or the first of it.

    Attributes:
      inputs: (k, ...) as they were attacked.
      outputs: (k, ..., K) what the model answers for them, each in the batch it was attacked in.
      distance: (k,) change of each, in the attack's norm; 0 for noise; the largest of its
        companions, where these were attacked.
      zero_gradients: examples whose gradient was all zero in the last step.
    """

    inputs: jax.Array
    outputs: jax.Array
    distance: jax.Array
    zero_gradients: int = 0


def as_logits_fn(model: nnx.Module) -> jax.tree_util.Partial:
    """Returns a model as a pure function of inputs that compiles once per architecture.

    Whatever a layer records while it runs is dropped: the model stays as it is.

    Args:
      model: ready for evaluation.
    """
    graphdef, state = nnx.split(model)
    return jax.tree_util.Partial(_apply, graphdef, state)


def _apply(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    # Copies: under a gradient, writing to the caller's variables would be an error in NNX.
    return nnx.merge(graphdef, state, copy=True)(x)


def check_fits(attack: AttackConfig, task: Task) -> None:
    """Refuses an attack that does not exist for a task, or whose loss does not.

    Raises:
      ConfigError: saying which there are.
    """
    try:
        label_axes = 2 if isinstance(task, Segmentation) else 0
        catalogue.check_fits(attack.settings, task.outputs, label_axes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class AttackedModel:
    """A model, and how it is attacked.

    Attributes:
      logits_fn: the model, in evaluation.
      threat_model: who attacks whom, where that makes a difference.
      dependent: whether an example's answer depends on its batch.
      on_progress: called now and then with how far a long attack is, in words.
    """

    logits_fn: jax.tree_util.Partial
    threat_model: ThreatModel = "joint"
    dependent: bool = False
    on_progress: Callable[[str], None] = lambda how_far: None

    def attack(
        self,
        attack: AttackConfig,
        epsilon: float,
        batch: tuple[jax.Array, jax.Array],
        key: jax.Array,
        victims: int | None = None,
    ) -> Attacked:
        """Returns the batch, or its first examples, after an attack.

        Args:
          attack: which.
          epsilon: how strong.
          batch: inputs (B, ...) in [0, 1] and labels.
          key: its randomness.
          victims: how many of the first examples are attacked, with the threat models that do so
            one at a time; None is all.

        Raises:
          LeftThreatError: the result is not what the threat allows.
        """
        x, y = batch
        threat = Threat(attack.norm, epsilon) if attack.has_ball else None
        alone = self.dependent and self.threat_model != "joint"
        count = len(x) if victims is None or not alone else min(victims, len(x))
        if threat is None:
            noisy = x
            if epsilon:
                noisy = attacks.NOISES[attack.kind](key, x, epsilon, (0.0, 1.0))
            outputs = answer(self.logits_fn, noisy)
            return Attacked(noisy[:count], outputs[:count], jnp.zeros(count))
        with warnings.catch_warnings():
            if attack.short_reach:
                warnings.simplefilter("ignore", ShortReachWarning)
            if alone:
                return self._one_by_one(attack, threat, batch, key, count)
            function, settings = _call(attack, self.dependent, self.on_progress)
            if attack.kind == "autoattack":  # whose own batches would be smaller
                settings["batch_size"] = len(x)
            result = function(self.logits_fn, x, y, threat=threat, key=key, **settings)
        result.check(threat, attack.name)
        outputs = answer(self.logits_fn, result.x_adv)
        distance = threat.distance(result.x_adv, x)
        return Attacked(result.x_adv, outputs, distance, result.zero_gradients)

    def _one_by_one(
        self,
        attack: AttackConfig,
        threat: Threat,
        batch: tuple[jax.Array, jax.Array],
        key: jax.Array,
        count: int,
    ) -> Attacked:
        """Attacks each of the first examples alone, as the victim of an attack of its own."""
        x, y = batch
        function, settings = _call(attack, dependent=self.threat_model == "companion")
        found = []
        for i in range(count):
            result = getattr(batch_threats, self.threat_model)(
                function,
                self.logits_fn,
                x,
                y,
                threat=threat,
                key=key,
                victims=[i],
                **settings,
            )
            result.check(threat, attack.name)
            # What was evaluated is the whole batch, of which the victim's row counts.
            outputs = answer(self.logits_fn, result.x_adv)[i]
            change = jnp.max(threat.distance(result.x_adv, x))
            found.append((result.x_adv[i], outputs, change, result.zero_gradients))
        inputs, answers, changes, zeros = zip(*found, strict=True)
        return Attacked(jnp.stack(inputs), jnp.stack(answers), jnp.stack(changes), sum(zeros))


@jax.jit
def answer(logits_fn: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
    """Returns what the model answers; compiled once for all states of a model."""
    return logits_fn(x)


def _call(
    attack: AttackConfig, dependent: bool, on_progress: Callable[[str], None] | None = None
) -> tuple[Callable[..., AttackResult], dict[str, Any]]:
    """Returns the function that runs an attack, and its settings."""
    return attack.settings.call(batch_dependent=dependent, on_progress=on_progress)
