"""SteinBatchNorm for Flax Linen: a drop-in for ``flax.linen.BatchNorm``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import merge_param
from jax.nn import initializers

from steinnorm import _checks, functional, telemetry
from steinnorm.shrinkage import RunningStatistics, Shrinkage, resolve

__all__ = ["BatchNorm", "SteinBatchNorm"]


class SteinBatchNorm(nn.Module):
    """Batch normalisation with shrunk statistics; every field of ``flax.linen.BatchNorm`` and two.

    The variables are Flax's: ``params`` scale and bias, ``batch_stats`` mean and var. A checkpoint
    of ``flax.linen.BatchNorm`` loads into this layer and the other way round, with the same
    inference: the running statistics hold what the layer normalised with, so inference needs no
    shrinkage. (For whole models whose layers have no explicit names see :class:`BatchNorm`.)
    ``shrinkage="none"`` is Flax's layer.

    During initialisation running statistics are not updated and ``axis_name`` need not exist.
    Statistics, shrinkage and running values are float32 (float64 stays) whatever the input is.

    How much was shrunk can be read: with ``mutable=["intermediates"]`` each call sows
    ``mean_factor`` and ``variance_factor`` (1: untouched, 0: fully shrunk). Otherwise they are
    not computed.

    Attributes:
      use_running_average: True in inference, False in training; here or in the call.
      axis: the feature axis, or several.
      momentum: share of the running value that an update keeps, in [0, 1].
      epsilon: added to the variance.
      dtype: dtype of the result (default: that of input and parameters together).
      param_dtype: dtype of ``scale`` and ``bias``.
      use_bias: whether to add a learned bias.
      use_scale: whether to multiply by a learned scale.
      bias_init: initializer of the bias, by default zeros.
      scale_init: initializer of the scale, by default ones.
      axis_name: mapped axis to combine statistics over, in pmap and shard_map (None under jit
        with sharded inputs, where statistics are global already).
      axis_index_groups: groups of indices of that axis.
      use_fast_variance: True for one all-reduce of 3 * C numbers per device, False for two of C;
        both are accurate, with a mean of 1e4 and a standard deviation of 1 too.
      force_float32_reductions: False rounds statistics to the input's dtype and keeps running
        values in ``param_dtype``.
      shrinkage: a name (none, stein, stein_mean_only, jsnorm, ridge, lasso, toward_running) or a
        :class:`~steinnorm.Shrinkage`.
      test_statistics: what inference uses: "running", or "batch" (the test batch, by the rule of
        training; nothing is recorded), or "shrunk" (the test batch shrunk towards the running
        statistics).

    Raises:
      TypeError: a shrinkage that is neither a name nor a ``Shrinkage``.
      ValueError: an unknown name, a momentum outside [0, 1], a negative epsilon.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (8, 4))
      >>> layer = SteinBatchNorm(use_running_average=False, momentum=0.9)
      >>> variables = layer.init(jax.random.key(1), x)
      >>> jax.tree.map(jnp.shape, variables)
      {'batch_stats': {'mean': (4,), 'var': (4,)}, 'params': {'bias': (4,), 'scale': (4,)}}
      >>> y, updated = layer.apply(variables, x, mutable=["batch_stats"])
      >>> y.shape, list(updated)
      ((8, 4), ['batch_stats'])
    """

    use_running_average: bool | None = None
    axis: int | tuple[int, ...] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Any = initializers.zeros
    scale_init: Any = initializers.ones
    axis_name: str | tuple[str, ...] | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    shrinkage: str | Shrinkage = "stein"
    test_statistics: functional.TestStatistics = "running"

    def __post_init__(self) -> None:
        resolve(self.shrinkage)
        _checks.momentum(self.momentum)
        _checks.epsilon(self.epsilon)
        _checks.one_of("test_statistics", self.test_statistics, functional.TEST_STATISTICS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Any,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalises ``x``.

        Args:
          x: the input, any rank.
          use_running_average: True in inference, False in training; here or as the field.
          mask: which values count for the statistics, broadcastable to ``x``; the output is not
            masked. An all-False mask leaves the running statistics alone and uses them.

        Returns:
          The normalised input, in its shape.
        """
        inference = merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        shape = tuple(jnp.shape(x)[a] for a in _checks.feature_axes(self.axis, jnp.ndim(x)))
        running_dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, running_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, running_dtype)
        scale = (
            self.param("scale", self.scale_init, shape, self.param_dtype)
            if self.use_scale
            else None
        )
        bias = (
            self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        )
        initializing = self.is_initializing()
        if initializing and len(shape) == jnp.ndim(x):
            inference = True  # one example, whose batch axis (axis_name) need not exist yet
        before = RunningStatistics(mean.value, var.value)
        result = functional.stein_batch_norm(
            x,
            scale,
            bias,
            before,
            use_running_average=inference,
            shrinkage=self.shrinkage,
            test_statistics=self.test_statistics,
            axis=self.axis,
            mask=mask,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=self.use_fast_variance,
            force_float32_reductions=self.force_float32_reductions,
        )
        if not inference and not initializing and result.running is not None:
            mean.value, var.value = result.running
        if result.batch is not None and self.is_mutable_collection("intermediates"):
            rule = functional.rule_in_use(
                self.shrinkage, inference=inference, test_statistics=self.test_statistics
            )
            factors = telemetry.shrinkage_factors(result, rule, before)
            self.sow("intermediates", "mean_factor", factors.mean)
            self.sow("intermediates", "variance_factor", factors.variance)
        return result.y


class BatchNorm(SteinBatchNorm):
    """:class:`SteinBatchNorm` under the name of Flax's layer, for checkpoints of whole models.

    Linen names a layer without an explicit name after its class: ``BatchNorm_0``. With this class
    in place of ``flax.linen.BatchNorm`` a model keeps the paths of all its variables, so that its
    old checkpoints load. Nothing else differs from :class:`SteinBatchNorm`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return BatchNorm(use_running_average=True)(x)
      >>> list(Net().init(jax.random.key(0), jnp.ones((2, 4)))["params"])
      ['BatchNorm_0']
    """
