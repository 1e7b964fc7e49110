"""Calibrates a trained model on its training part, for calibrated test statistics."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.configs.schema import EvaluationConfig, Statistics
from experiments.data import devices
from experiments.data.examples import Examples, as_inputs
from experiments.errors import ConfigError
from steinnorm.functional import CALIBRATED
from steinnorm.nnx import CalibrationStat, calibrate


class Calibrating:
    """A trained model, calibrated once a source of statistics asks for it.

    One pass in inference mode over inputs as they are in the files, without augmentation and
    without their labels.

    Args:
      model: the trained model, which stays as it is.
      train: the training part.
      config: says how many of it, at most, and how many at a time. Where there are more, they are
        drawn, the same for every model.
      shared: whether every process asks for the calibrated model, and gets the first one's: their
        own may differ by rounding, since accelerators choose algorithms by time.
    """

    def __init__(
        self,
        model: nnx.Module,
        train: Examples,
        config: EvaluationConfig,
        *,
        shared: bool = False,
    ):
        self._model, self._train, self._config = model, train, config
        self._shared = shared
        self._calibrated: nnx.Module | None = None

    def __str__(self) -> str:
        """Says on what the model is calibrated."""
        count = min(self._config.calibration_examples, len(self._train))
        return (
            f"calibrated statistics: calibrating on {count} of {len(self._train)} training "
            "examples, in inference mode and without augmentation"
        )

    def model(self, source: Statistics) -> nnx.Module:
        """Returns the model, before it is made ready for evaluation with that source.

        Raises:
          ConfigError: it cannot be calibrated, because its activations are not finite, say.
        """
        if source not in CALIBRATED:
            return self._model
        if self._calibrated is None:
            try:
                calibrated = calibrate(self._model, self.batches(), call=_call)
            except ValueError as error:
                raise ConfigError(f"the model cannot be calibrated: {error}") from error
            if self._shared:
                nnx.update(calibrated, devices.of_first(nnx.state(calibrated, CalibrationStat)))
            self._calibrated = calibrated
        return self._calibrated

    @functools.cached_property
    def inputs_digest(self) -> str:
        """Returns a hash of the inputs that it is calibrated on, and of their order.

        With the weights they decide the calibration, but for rounding: an accelerator that chooses
        its algorithms by time calibrates a little differently each time.
        """
        digest = hashlib.sha256()
        for inputs in self._parts():
            digest.update(f"{inputs.dtype} {inputs.shape} ".encode())
            digest.update(np.ascontiguousarray(inputs).data)
        return digest.hexdigest()

    def batches(self) -> Iterator[jax.Array]:
        """Yields the inputs that it is calibrated on, as they are in the files."""
        return map(jnp.asarray, self._parts())

    def _parts(self) -> Iterator[np.ndarray]:
        chosen = np.arange(len(self._train))
        if self._config.calibration_examples < len(chosen):
            # A data set may be sorted by class.
            drawn = np.random.default_rng(0).permutation(len(chosen))
            chosen = np.sort(drawn[: self._config.calibration_examples])
        for start in range(0, len(chosen), self._config.batch_size):
            index = chosen[start : start + self._config.batch_size]
            yield self._train.take(index).inputs


def _call(model: Any, inputs: jax.Array) -> Any:
    return model(as_inputs(inputs))
