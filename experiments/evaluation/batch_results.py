"""What is kept of one batch, computed on the devices and fetched once."""

import functools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluation import per_example
from experiments.evaluation.attack_batch import Attacked
from experiments.evaluation.per_example import PerExampleResults, Values
from experiments.tasks import Summary, Task, answered
from steinnorm.attacks import NotFiniteError


class BatchResults(NamedTuple):
    """The results of one batch, still on the devices.

    Attributes:
      place: number of the batch.
      counted: how many of its first examples count.
      summary: what the task keeps of each example.
      unanswered: which outputs are NaN or infinite, (k,).
      extremes: the smallest and the largest attacked value, and how many are not finite.
      distance: change of each example.
      zero_gradients: examples whose gradient was all zero in the last step.
      shown: inputs, labels and logits of the very first examples; else empty.
    """

    place: int
    counted: int
    summary: Summary
    unanswered: jax.Array
    extremes: tuple[jax.Array, jax.Array, jax.Array]
    distance: jax.Array
    zero_gradients: int
    shown: dict[str, jax.Array]

    @classmethod
    def of(
        cls,
        attacked: Attacked,
        clean: tuple[jax.Array, jax.Array],
        place: int,
        count: int,
        task: Task,
    ) -> Self:
        """Begins to compute them.

        Args:
          attacked: the batch after the attack.
          clean: inputs and labels before it.
          place: number of the batch.
          count: how many of its first examples count.
          task: says what is kept.
        """
        x, y = clean
        outputs = attacked.outputs
        summary, unanswered, extremes = _kept(
            outputs, attacked.inputs, y[: len(outputs)], task=task
        )
        shown = {}
        if place * len(y) < per_example.SHOWN:
            few = min(count, per_example.SHOWN)
            arrays = {"x": x, "x_adv": attacked.inputs, "y": y, "prediction": outputs}
            shown = {name: array[:few] for name, array in arrays.items()}
        return cls(
            place=place,
            counted=count,
            summary=summary,
            unanswered=unanswered,
            extremes=extremes,
            distance=attacked.distance,
            zero_gradients=attacked.zero_gradients,
            shown=shown,
        )

    def fetch(self, about: dict[str, Any]) -> PerExampleResults:
        """Returns them in the host's memory, once they are computed.

        Args:
          about: what was measured.

        Raises:
          NotFiniteError: the model answers NaN or infinity, of which ``argmax`` makes a class.
        """
        summary, unanswered, extremes, distance, shown = jax.device_get(
            (self.summary, self.unanswered, self.extremes, self.distance, self.shown)
        )
        low, high, not_finite = extremes
        count = int(unanswered[: self.counted].sum())
        if count:
            raise NotFiniteError(
                f"the model answers NaN or infinity for {count} of the {self.counted} examples of "
                f"batch {self.place} ({about['attack']} {about['epsilon']:.3g}, "
                f"{about['statistics']} statistics): no score can be told from that"
            )
        if shown:
            shown["prediction"] = _predictions(shown["prediction"])
        return PerExampleResults(
            about=about,
            summary={name: values[: self.counted] for name, values in summary.items()},
            distance=distance[: self.counted],
            batch=np.full(self.counted, self.place),
            values=Values(float(low), float(high), int(not_finite)),
            zero_gradients=min(self.zero_gradients, self.counted),
            shown=shown,
        )


@functools.partial(jax.jit, static_argnames="task")
def _kept(
    outputs: jax.Array, inputs: jax.Array, y: jax.Array, *, task: Task
) -> tuple[Summary, jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    extremes = jnp.min(inputs), jnp.max(inputs), jnp.sum(~jnp.isfinite(inputs))
    return task.summary(outputs, y), ~answered(outputs), extremes


def _predictions(outputs: np.ndarray) -> np.ndarray:
    """Returns the classes that K logits, or one, stand for."""
    if outputs.shape[-1] == 1:
        return (outputs[..., 0] > 0).astype(np.int32)
    return np.argmax(outputs, axis=-1).astype(np.int32)
