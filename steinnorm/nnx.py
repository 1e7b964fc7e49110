"""SteinBatchNorm for Flax NNX, a drop-in for ``flax.nnx.BatchNorm``; convert and revert."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers

from steinnorm import _checks, functional
from steinnorm._nnx_modules import map_modules
from steinnorm.shrinkage import Shrinkage, resolve
from steinnorm.shrinkage_factors import shrinkage_factors
from steinnorm.statistics import Moments

__all__ = ["ShrinkageFactor", "SteinBatchNorm", "convert", "freeze", "revert"]

M = TypeVar("M", bound=nnx.Module)
_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class ShrinkageFactor(nnx.Intermediate):
    """How much a layer shrank its means, or variances: captured by those who name this type."""


class SteinBatchNorm(nnx.BatchNorm):
    """Batch normalisation with shrunk statistics; every argument of ``flax.nnx.BatchNorm`` and two.

    The variables are Flax's: parameters ``scale`` and ``bias``, batch statistics ``mean`` and
    ``var``. A state of ``flax.nnx.BatchNorm`` loads into this layer and the other way round, with
    the same inference: the running statistics hold what the layer normalised with, so inference
    needs no shrinkage. ``shrinkage="none"`` is Flax's layer, but that a smaller ``dtype`` rounds
    the result only, not what it is computed from.

    How much was shrunk can be read: under ``nnx.capture(..., ShrinkageFactor)`` each call sows
    ``mean_factor`` and ``variance_factor`` (1: untouched, 0: fully shrunk). Otherwise they are
    not computed.

    Args:
      num_features: number of features.
      use_running_average: True in inference, False in training; set by ``model.eval()`` and
        ``model.train()``, by ``nnx.view`` or in the call.
      axis: the feature axis, or several (then ``num_features`` is the product of their sizes).
      momentum: share of the running value that an update keeps, in [0, 1].
      epsilon: added to the variance; a scalar or one for each channel, may be traced.
      dtype: dtype of the result (default: that of input and parameters together).
      param_dtype: dtype of ``scale`` and ``bias``.
      use_bias: whether to add a learned bias.
      use_scale: whether to multiply by a learned scale.
      bias_init: initializer of the bias, by default zeros.
      scale_init: initializer of the scale, by default ones.
      axis_name: mapped axis to combine statistics over, in pmap and shard_map (None under jit
        with sharded inputs, where statistics are global already).
      axis_index_groups: groups of indices of that axis.
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
        training; nothing is recorded), or "shrunk" (the test batch shrunk towards the running
        statistics). ``nnx.view(model, test_statistics=...)`` changes it in every layer.

    Raises:
      TypeError: a shrinkage that is neither a name nor a ``Shrinkage``.
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
          x: the input, any rank.
          use_running_average: True in inference, False in training; goes before the attribute.
          mask: which values count for the statistics, broadcastable to ``x``; the output is not
            masked. An all-False mask leaves the running statistics alone and uses them.

        Returns:
          The normalised input, in its shape.

        Raises:
          ValueError: ``x`` has other features than the layer, or the mode was given nowhere.
        """
        inference = self.use_running_average if use_running_average is None else use_running_average
        if self.frozen != "no":
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
        x, mean, var, scale, bias = self._promoted(x, self.mean[...], self.var[...], *affine)
        per_channel = jax.tree.map(lambda a: a.reshape(shape), (mean, var, scale, bias))
        mean, var, scale, bias = per_channel
        running = Moments(mean, var)
        result = functional.stein_batch_norm(
            x,
            scale,
            bias,
            running,
            use_running_average=inference,
            shrinkage=self.shrinkage,
            test_statistics=self.test_statistics,
            axis=self.axis,
            mask=mask,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=self.use_fast_variance,
        )
        if not inference:
            # A variable outlives the trace of a gradient, so it must not hold that trace's values.
            self.mean[...], self.var[...] = jax.tree.map(
                lambda a: jax.lax.stop_gradient(a).reshape(-1), result.running
            )
        # Without a capture `sow` would create attributes, and computing the factors cost time.
        captured = (type(v) for v in getattr(self, "__captures__", ()))
        if result.batch is not None and ShrinkageFactor in captured:
            factors = shrinkage_factors(result, running)
            self.sow(ShrinkageFactor, "mean_factor", factors.mean)
            self.sow(ShrinkageFactor, "variance_factor", factors.variance)
        return result.y

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
          test_statistics: "running", "batch" or "shrunk".
        """
        super().set_view(use_running_average=use_running_average)
        if test_statistics is not None:
            _checks.one_of("test_statistics", test_statistics, functional.TEST_STATISTICS)
            self.test_statistics = test_statistics


def _is_rounded(before: Any, after: jax.Array) -> bool:
    dtype = jnp.result_type(before)
    is_exact = jnp.issubdtype(dtype, jnp.inexact)  # integers have to become something
    return is_exact and jnp.finfo(after.dtype).bits < jnp.finfo(dtype).bits


def convert(
    model: M,
    shrinkage: str | Shrinkage = "stein",
    *,
    test_statistics: functional.TestStatistics = "running",
) -> M:
    """Swaps every ``nnx.BatchNorm`` of a model for a :class:`SteinBatchNorm`, weights kept.

    Parameters, running statistics, their metadata and all settings carry over, so inference does
    not change; training and ``test_statistics`` other than "running" do.

    Args:
      model: any NNX module; left as it is.
      shrinkage: for all layers, a name or a :class:`~steinnorm.Shrinkage`.
      test_statistics: for all layers.

    Returns:
      A new model with variables of its own, which hold the same arrays (immutable; do not donate
      one model's while using the other). Subclasses of ``nnx.BatchNorm`` are left as they are,
      with a warning: what they add would be lost.

    Raises:
      TypeError: the model is no NNX module.
      ValueError: an unknown name, or a model without a BatchNorm.

    Example:
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
      >>> type(convert(model).layers[1]).__name__
      'SteinBatchNorm'
    """
    resolve(shrinkage)

    def to_stein(layer: nnx.BatchNorm) -> SteinBatchNorm:
        return _rebuild(layer, SteinBatchNorm, shrinkage=shrinkage, test_statistics=test_statistics)

    return _swap(model, nnx.BatchNorm, to_stein)


def revert(model: M) -> M:
    """Swaps every :class:`SteinBatchNorm` of a model for an ``nnx.BatchNorm``, weights kept.

    Args:
      model: any NNX module; left as it is.

    Returns:
      A new model with the same inference (running statistics) and variables of its own, as in
      :func:`convert`. Subclasses of :class:`SteinBatchNorm` are left as they are, with a warning.

    Raises:
      TypeError: the model is no NNX module.
      ValueError: a model without a SteinBatchNorm.

    Example:
      >>> from flax import nnx
      >>> type(revert(SteinBatchNorm(4, rngs=nnx.Rngs(0)))).__name__
      'BatchNorm'
    """
    return _swap(model, SteinBatchNorm, lambda layer: _rebuild(layer, nnx.BatchNorm))


def freeze(model: M, where: _checks.Where = None, *, affine: bool = False) -> M:
    """Makes layers keep their running statistics, and use them, in training too.

    For fine-tuning with small batches, or on data that should not move the statistics.
    ``model.train()`` does not thaw a layer, ``freeze(model, [])`` does all.

    Args:
      model: any NNX module with :class:`SteinBatchNorm` layers (``convert(model, "none")`` makes
        them of Flax's); left as it is.
      where: which layers: all by default; a path such as ``"encoder/blocks/0"``, or several, for
        all layers at and under them; or a function from a layer's path to a bool.
      affine: whether ``scale`` and ``bias`` of these layers get no gradient either. An optimiser
        with weight decay moves parameters without a gradient: leave them out with its mask.

    Returns:
      A new model with variables of its own, as in :func:`convert`. Layers that ``where`` does not
      name are thawed.

    Raises:
      TypeError: the model is no NNX module.
      ValueError: there is no layer to freeze; the message lists those that there are.

    Example:
      >>> from flax import nnx
      >>> model = nnx.Sequential(SteinBatchNorm(4, rngs=nnx.Rngs(0)))
      >>> freeze(model).layers[0].frozen
      'statistics'
    """
    chosen = _checks.Paths(where)

    def visit(path: str, node: Any) -> Any:
        if isinstance(node, SteinBatchNorm):
            node.frozen = ("all" if affine else "statistics") if chosen.holds(path) else "no"
        return node

    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module; got {type(model).__name__}.")
    result = map_modules(visit, nnx.clone(model))
    chosen.check("SteinBatchNorm")
    return result


def _swap(model: M, old: type[nnx.BatchNorm], replace: Callable[[Any], nnx.BatchNorm]) -> M:
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module; got {type(model).__name__}.")
    swapped = 0

    def visit(path: str, node: Any) -> Any:
        nonlocal swapped
        if type(node) is old:
            swapped += 1
            return replace(node)
        ours = isinstance(node, SteinBatchNorm)  # itself a subclass of nnx.BatchNorm
        if isinstance(node, old) and (old is SteinBatchNorm or not ours):
            warnings.warn(
                f"left {path or 'the model'} as it is: {type(node).__name__} "
                f"is a subclass of {old.__name__}, and what it adds would be lost",
                stacklevel=2,
            )
        return node

    result = map_modules(visit, nnx.clone(model))
    if not swapped:
        raise ValueError(f"{type(model).__name__} holds no {old.__name__} to swap.")
    return result


def _rebuild(layer: nnx.BatchNorm, to: type[nnx.BatchNorm], **settings: Any) -> Any:
    new = to(
        layer.num_features,
        use_running_average=layer.use_running_average,
        axis=layer.axis,
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        use_bias=layer.use_bias,
        use_scale=layer.use_scale,
        axis_name=layer.axis_name,
        axis_index_groups=layer.axis_index_groups,
        use_fast_variance=layer.use_fast_variance,
        promote_dtype=layer.promote_dtype,
        rngs=nnx.Rngs(0),
        **settings,
    )
    for name in ("mean", "var", "scale", "bias"):
        setattr(new, name, getattr(layer, name))
    return new
