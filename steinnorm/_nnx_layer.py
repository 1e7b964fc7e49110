"""The NNX layer; :mod:`steinnorm.nnx` has it, and what changes the layers of a whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers

from steinnorm import _checks, _layer_inputs, functional
from steinnorm._calibration import Totals, merged, totals_of
from steinnorm._numerics import real
from steinnorm._sharding import flattened, placed_like
from steinnorm.calibrated import Calibration
from steinnorm.shrinkage import Shrinkage, resolve
from steinnorm.shrinkage_factors import shrinkage_factors
from steinnorm.statistics import Moments

__all__ = ["CalibrationStat", "CalibrationSum", "ShrinkageFactor", "SteinBatchNorm"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class ShrinkageFactor(nnx.Intermediate):
    """How much a layer shrank its means, or variances: captured by those who name this type."""


class CalibrationStat(nnx.BatchStat):
    """What ``calibrate`` measured of a layer's clean inputs.

    A batch statistic too: what maps, shards or saves a model's ``nnx.BatchStat`` takes these along.
    """


class CalibrationSum(nnx.BatchStat):
    """What a layer counts while ``calibrate`` runs; no other model has such variables."""


# Attributes of a calibrated layer, in the order of the fields of `Calibration`.
CALIBRATION_ATTRIBUTES = ("calibrated_mean", "calibrated_var", "mean_spread", "var_spread")


class SteinBatchNorm(nnx.BatchNorm):
    """Batch normalisation with shrunk statistics; every argument of ``flax.nnx.BatchNorm`` and two.

    The variables are Flax's: parameters ``scale`` and ``bias``, batch statistics ``mean`` and
    ``var``. A state of ``flax.nnx.BatchNorm`` loads into this layer and the other way round, with
    the same inference: the running statistics hold what the layer normalised with, so inference
    needs no shrinkage. ``shrinkage="none"`` is Flax's layer, but that a smaller ``dtype`` rounds
    the result only, not what it is computed from. Running values keep the dtype of their variables,
    float32 at first, as in Flax. To train on complex inputs, make that of the mean complex first:
    ``layer.mean = nnx.BatchStat(jnp.zeros(C, jnp.complex64))``.

    How much was shrunk can be read: under ``nnx.capture(..., ShrinkageFactor)`` each call that uses
    the batch's statistics (not inference with running ones, nor a frozen layer) sows
    ``mean_factor`` and ``variance_factor`` (1: untouched, 0: fully shrunk). Otherwise they are
    not computed.

    Args:
      num_features: number of features.
      use_running_average: True in inference, False in training; set by ``model.eval()`` and
        ``model.train()``, by ``nnx.view`` or in the call.
      axis: the feature axis, or several (then ``num_features`` is the product of their sizes).
      momentum: share of the running value that an update keeps, in [0, 1].
      epsilon: added to the variance; a scalar, or an array of one for each feature, in the shape of
        the feature axes or of ``num_features``; may be traced. An array of JAX becomes part of the
        layer's ``nnx.state``.
      dtype: floating or complex dtype of the result (default: that of input and parameters).
      param_dtype: dtype of ``scale`` and ``bias``.
      use_bias: whether to add a learned bias.
      use_scale: whether to multiply by a learned scale.
      bias_init: initializer of the bias, by default zeros.
      scale_init: initializer of the scale, by default ones.
      axis_name: mapped axis to combine statistics over, in pmap and shard_map (None under jit
        with sharded inputs, where statistics are global already). It must split the examples:
        with the rows of images on several devices, "toward_running", shrunk and calibrated test
        statistics and ``calibrate`` would take the rows of each device for an example of its own.
        Use jit there.
      axis_index_groups: groups of indices of that axis, in pmap, and in shard_map with
        check_vma=False.
      use_fast_variance: True reads the batch once, with one all-reduce, and a second time only
        where a mean is far from its running value; False finds the mean first, in a read and an
        all-reduce of its own. Both are accurate, with a mean of 1e4 and a deviation of 1 too.
      promote_dtype: function from (x, mean, var, scale, bias) and dtype to the promoted five; what
        it rounds to a smaller dtype is used as it was.
      rngs: rng streams, for the parameters.
      bias_metadata: metadata of the bias.
      scale_metadata: metadata of the scale.
      shrinkage: a name (none, stein, stein_mean_only, jsnorm, ridge, lasso, toward_running) or a
        :class:`~steinnorm.Shrinkage`.
      test_statistics: what inference uses: "running", or "batch" (the test batch, by the rule of
        training; nothing is recorded), or "shrunk" (the same shrunk towards the running
        statistics), or "calibrated" or "calibrated_streams" (the test batch judged by what
        :func:`calibrate` measured). ``nnx.view(model, test_statistics=...)`` changes it in every
        layer.

    Raises:
      TypeError: a shrinkage that is neither a name nor a ``Shrinkage``, a dtype of integers, a
        momentum or epsilon that is no number.
      ValueError: an unknown name, a momentum outside [0, 1], a negative epsilon.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> layer = SteinBatchNorm(4, rngs=nnx.Rngs(0))
      >>> x = jax.random.normal(jax.random.key(0), (8, 4))
      >>> y = layer(x)  # training: batch statistics, recorded
      >>> layer.eval()
      >>> layer(x[:1]).shape  # inference: running statistics
      (1, 4)
    """

    calibration_sums: dict[str, CalibrationSum]  # there only while `calibrate` runs

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int | tuple[int, ...] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = initializers.zeros_init(),  # noqa: B008 - Flax's own default
        scale_init: Any = initializers.ones_init(),  # noqa: B008 - Flax's own default
        axis_name: str | tuple[str, ...] | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
        shrinkage: str | Shrinkage = "stein",
        test_statistics: functional.TestStatistics = "running",
    ):
        resolve(shrinkage)
        _layer_inputs.inexact_dtype(dtype)
        _checks.momentum(momentum)
        _checks.epsilon(epsilon, jnp.shape(epsilon))
        _checks.one_of("test_statistics", test_statistics, functional.TEST_STATISTICS)
        super().__init__(
            num_features,
            use_running_average=use_running_average,
            axis=axis,  # type: ignore[arg-type]  # Flax takes tuples, its annotation does not
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            axis_name=axis_name,  # type: ignore[arg-type]
            axis_index_groups=axis_index_groups,
            use_fast_variance=use_fast_variance,
            promote_dtype=promote_dtype,
            rngs=rngs,
            bias_metadata=bias_metadata,
            scale_metadata=scale_metadata,
        )
        numbers = jax.tree.leaves(shrinkage)  # a traced one makes the rule part of the state
        is_state = any(isinstance(number, jax.Array) for number in numbers)
        self.shrinkage = nnx.data(shrinkage) if is_state else shrinkage
        self.test_statistics = test_statistics
        self.frozen: Literal["no", "statistics", "all"] = "no"  # see freeze()

    def __call__(
        self,
        x: Any,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalises ``x``.

        Args:
          x: the input, of rank 1 or more.
          use_running_average: True in inference, False in training; goes before the attribute.
          mask: which values count (of numbers, those that are not 0), broadcastable to ``x`` from
            the last axis on: shape (B,) means channels. An all-False mask leaves the running
            statistics alone and uses them. The output is not masked: NaN or infinity outside the
            mask makes the gradients of ``x`` and the scale NaN, also where the loss masks the
            output (0 * NaN; in Flax too). Pass ``jnp.where(mask, x, 0)`` then.

        Returns:
          The normalised input, in its shape.

        Raises:
          TypeError: the running mean of a complex input, which is to be recorded, is real.
          ValueError: ``x`` has other features than the layer, the mode was given nowhere, or the
            layer is to use a calibration that it does not have; and what
            :func:`~steinnorm.stein_batch_norm` raises.
        """
        _layer_inputs.array_or_number("x", x)
        inference = self.use_running_average if use_running_average is None else use_running_average
        counting = hasattr(self, "calibration_sums")
        if self.frozen != "no" or counting:
            inference = True
        if inference is None:
            raise ValueError(
                "SteinBatchNorm was not told whether to use running averages. Either\n"
                "  SteinBatchNorm(..., use_running_average=False)  # in the constructor,\n"
                "  layer(x, use_running_average=False)             # in the call, or\n"
                "  model.train() or model.eval()                   # for the whole model."
            )
        shape = tuple(jnp.shape(x)[a] for a in _checks.feature_axes(self.axis, jnp.ndim(x)))
        if math.prod(shape) != self.num_features:
            raise ValueError(
                f"SteinBatchNorm was built for num_features={self.num_features}; got an input of "
                f"shape {jnp.shape(x)} with {math.prod(shape)} features along axis {self.axis}."
            )
        affine = [None if p is None else p[...] for p in (self.scale, self.bias)]
        if self.frozen == "all":
            affine = jax.lax.stop_gradient(affine)
        _layer_inputs.out_dtype(self.dtype, x, *affine)  # before promotion drops an imaginary part
        x, mean, var, scale, bias = self._promoted(x, self.mean[...], self.var[...], *affine)
        per_channel = jax.tree.map(lambda a: a.reshape(shape), (mean, var, scale, bias))
        mean, var, scale, bias = per_channel
        running = Moments(mean, real(var))  # promoted to complex with a complex input
        if counting:
            self._count(x, mask, running)
        result = functional.stein_batch_norm(
            x,
            scale,
            bias,
            running,
            use_running_average=inference,
            shrinkage=self.shrinkage,
            test_statistics="running" if counting else self.test_statistics,
            calibration=None if counting or not inference else self._calibration(shape),
            axis=self.axis,
            mask=mask,
            momentum=self.momentum,
            epsilon=self._epsilon(shape),
            dtype=self.dtype,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=self.use_fast_variance,
        )
        if not inference:
            self._record(result.running)
        # Without a capture `sow` would create attributes, and computing the factors cost time.
        captured = (type(v) for v in getattr(self, "__captures__", ()))
        if result.batch is not None and ShrinkageFactor in captured:
            factors = shrinkage_factors(result, running)
            self.sow(ShrinkageFactor, "mean_factor", factors.mean)
            self.sow(ShrinkageFactor, "variance_factor", factors.variance)
        return result.y

    def _record(self, running: Moments | None) -> None:
        """Makes these the running statistics, in the dtypes of their variables."""
        assert running is not None
        for name, variable, value in zip(
            Moments._fields, (self.mean, self.var), running, strict=True
        ):
            dtype = variable[...].dtype
            if jnp.iscomplexobj(value) and not jnp.issubdtype(dtype, jnp.complexfloating):
                raise TypeError(
                    f"the running {name} is {value.dtype}, of a complex input, and would lose its "
                    f"imaginary part in a variable of dtype {dtype}. To train on complex inputs "
                    f"make that complex first: layer.{name} = nnx.BatchStat(jnp.zeros("
                    f"{self.num_features}, jnp.{value.dtype}))."
                )
            # A variable outlives the trace of a gradient, so it must not hold that trace's values.
            variable[...] = flattened(jax.lax.stop_gradient(value)).astype(dtype)

    def _epsilon(self, shape: tuple[int, ...]) -> Any:
        """Returns epsilon as the pure function takes it: a scalar or in the shape of the features.

        The variables of several feature axes are flat, and so may epsilon be.
        """
        is_flat = len(shape) > 1 and jnp.shape(self.epsilon) == (self.num_features,)
        return jnp.reshape(self.epsilon, shape) if is_flat else self.epsilon

    def _calibration(self, shape: tuple[int, ...]) -> Calibration | None:
        """Returns what the layer was calibrated with, where it is to be used."""
        if self.test_statistics not in functional.CALIBRATED:
            return None
        if not all(hasattr(self, name) for name in CALIBRATION_ATTRIBUTES):
            raise ValueError(
                f"test_statistics={self.test_statistics!r} needs a calibrated layer: "
                "model = steinnorm.nnx.calibrate(model, batches of clean inputs)."
            )
        found = (getattr(self, name)[...] for name in CALIBRATION_ATTRIBUTES)
        return Calibration(*(a.reshape(shape) for a in found))

    def _count(self, x: jax.Array, mask: jax.Array | None, running: Moments) -> None:
        """Adds the input to what the layer has counted of this batch."""
        totals = totals_of(
            x,
            axis=self.axis,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=self.use_fast_variance,
            reference=running.mean,
            epsilon=self._epsilon(running.mean.shape),
        )
        variables = self.calibration_sums
        before = Totals(**{name: variables[name][...] for name in Totals._fields})
        like = before.count

        def as_kept(a: jax.Array) -> jax.Array:
            return placed_like(flattened(a).reshape(-1), like).astype(like.dtype)

        flat = jax.tree.map(as_kept, totals)
        for name, value in merged(before, flat)._asdict().items():
            variables[name][...] = value

    def _promoted(self, *arrays: Any) -> tuple[Any, ...]:
        """Promotes as Flax's layer does, but for what would lose digits by it.

        The result is rounded to ``dtype`` in the end; rounding what it is computed from, a running
        mean of 1000.3 to bfloat16, would lose it.
        """
        promoted = self.promote_dtype(arrays, dtype=self.dtype)
        pairs = zip(arrays, promoted, strict=True)
        return tuple(b if a is None or _is_rounded(b, a) else a for b, a in pairs)

    def set_view(
        self,
        use_running_average: bool | None = None,
        test_statistics: functional.TestStatistics | None = None,
    ) -> None:
        """What ``nnx.view`` may change.

        Args:
          use_running_average: True in inference, False in training.
          test_statistics: "running", "batch", "shrunk", "calibrated" or "calibrated_streams".
        """
        super().set_view(use_running_average=use_running_average)
        if test_statistics is not None:
            _checks.one_of("test_statistics", test_statistics, functional.TEST_STATISTICS)
            self.test_statistics = test_statistics


def _is_rounded(before: Any, after: jax.Array) -> bool:
    dtype = jnp.result_type(before)
    is_exact = jnp.issubdtype(dtype, jnp.inexact)  # integers have to become something
    return is_exact and jnp.finfo(after.dtype).bits < jnp.finfo(dtype).bits
