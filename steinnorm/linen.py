"""SteinBatchNorm for Flax Linen: a drop-in for ``flax.linen.BatchNorm``."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import in_filter
from flax.linen.module import merge_param

from steinnorm import _checks, _freezing, _layer_inputs, _linen_pass, functional
from steinnorm._calibration import Totals, merged, totals_of
from steinnorm._sharding import placed_like
from steinnorm.calibrated import Calibration
from steinnorm.functional import CALIBRATED
from steinnorm.shrinkage import Shrinkage, resolve
from steinnorm.shrinkage_factors import shrinkage_factors
from steinnorm.statistics import Moments

__all__ = ["BatchNorm", "SteinBatchNorm", "calibrate", "freeze"]


class SteinBatchNorm(nn.BatchNorm):
    """Batch normalisation with shrunk statistics; every field of ``flax.linen.BatchNorm`` and two.

    The variables are Flax's: ``params`` scale and bias, ``batch_stats`` mean and var. A checkpoint
    of ``flax.linen.BatchNorm`` loads into this layer and the other way round, with the same
    inference: the running statistics hold what the layer normalised with, so inference needs no
    shrinkage. (For whole models whose layers have no explicit names see :class:`BatchNorm`.)
    ``shrinkage="none"`` is Flax's layer.

    During initialisation running statistics are not updated and ``axis_name`` need not exist.
    Statistics, shrinkage and running values are float32. With a float64 input all are float64, and
    with a complex one means are complex. Running values become so at the first step, as in Flax:
    cast them before a ``lax.scan`` over steps.

    How much was shrunk can be read: with ``mutable=["intermediates"]`` each call that uses the
    batch's statistics (not inference with running ones, nor a frozen layer) sows ``mean_factor``
    and ``variance_factor`` (1: untouched, 0: fully shrunk). Otherwise they are not computed.
    Gradients accumulated over micro-batches use the statistics of each by itself, and the running
    ones move at each; where that is too noisy, :func:`freeze` them or take "toward_running".

    Attributes:
      use_running_average: True in inference, False in training; here or in the call.
      axis: the feature axis, or several.
      momentum: share of the running value that an update keeps, in [0, 1].
      epsilon: added to the variance; a scalar, or an array in the shape of the features, may be
        traced. With an array modules cannot be hashed or compared any more (in Flax neither).
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
      force_float32_reductions: False rounds statistics to ``dtype``, or the input's, and makes
        running values of ``param_dtype`` at first; like Flax's, they become float32 at the first
        step with statistics of float32.
      shrinkage: a name (none, stein, stein_mean_only, jsnorm, ridge, lasso, toward_running) or a
        :class:`~steinnorm.Shrinkage`.
      test_statistics: what inference uses: "running", or "batch" (the test batch, by the rule of
        training; nothing is recorded, and ``batch_stats`` may be missing), or "shrunk" (the same
        shrunk towards the running statistics), or "calibrated" or "calibrated_streams" (the test
        batch judged by what :func:`calibrate` measured, in the collection ``calibration``).

    Raises:
      TypeError: a shrinkage that is neither a name nor a ``Shrinkage``, a dtype of integers, a
        momentum or epsilon that is no number.
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

    shrinkage: str | Shrinkage = "stein"
    test_statistics: functional.TestStatistics = "running"

    def __post_init__(self) -> None:
        resolve(self.shrinkage)
        _layer_inputs.inexact_dtype(self.dtype)
        _checks.momentum(self.momentum)
        _checks.epsilon(self.epsilon, jnp.shape(self.epsilon))
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
          x: the input, of rank 1 or more.
          use_running_average: True in inference, False in training; here or as the field.
          mask: which values count (of numbers, those that are not 0), broadcastable to ``x`` from
            the last axis on: shape (B,) means channels. An all-False mask leaves the running
            statistics alone and uses them. The output is not masked: NaN or infinity outside the
            mask makes the gradients of ``x`` and the scale NaN, also where the loss masks the
            output (0 * NaN; in Flax too). Pass ``jnp.where(mask, x, 0)`` then.

        Returns:
          The normalised input, in its shape.

        Raises:
          ValueError: the layer is to use a calibration that it does not have.
        """
        inference = merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        _layer_inputs.array_or_number("x", x)
        frozen, affine_frozen = _freezing.freezes("/".join(self.path))
        initializing = self.is_initializing()
        counting = _linen_pass.is_running() and self.is_mutable_collection(_linen_pass.COLLECTION)
        counting = counting and not initializing
        inference = inference or frozen or counting
        shape = tuple(jnp.shape(x)[a] for a in _checks.feature_axes(self.axis, jnp.ndim(x)))
        mean, var = self._running(shape, may_be_missing=inference and not counting)
        scale = (
            self.param("scale", self.scale_init, shape, self.param_dtype)
            if self.use_scale
            else None
        )
        bias = (
            self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        )
        if affine_frozen:
            scale, bias = jax.lax.stop_gradient((scale, bias))
        before = Moments(mean.value, var.value)
        if counting:
            self._count(x, mask, before)
        statistics = "running" if counting or initializing else self.test_statistics
        result = functional.stein_batch_norm(
            x,
            scale,
            bias,
            before,
            use_running_average=inference,
            shrinkage=self.shrinkage,
            test_statistics=statistics if inference else self.test_statistics,
            calibration=self._calibration() if inference and statistics in CALIBRATED else None,
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
        if result.batch is not None and self._is_named("intermediates"):
            factors = shrinkage_factors(result, before)
            self.sow("intermediates", "mean_factor", factors.mean)
            self.sow("intermediates", "variance_factor", factors.variance)
        return result.y

    def _running(self, shape: tuple[int, ...], *, may_be_missing: bool) -> Iterator[Any]:
        """Yields the variables of the running mean and variance.

        Where the layer can do without, and nobody has them, what holds those of a new layer.
        """
        dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        untracked = (
            may_be_missing
            and self.test_statistics == "batch"
            and not resolve(self.shrinkage).toward_running
            and not self.is_mutable_collection("batch_stats")
        )
        for name, make in (("mean", jnp.zeros), ("var", jnp.ones)):
            if untracked and not self.has_variable("batch_stats", name):
                yield types.SimpleNamespace(value=make(shape, dtype))
            else:
                yield self.variable("batch_stats", name, make, shape, dtype)

    def _calibration(self) -> Calibration:
        """Returns what the layer was calibrated with."""
        names = [n for n in _linen_pass.NAMES if self.has_variable(_linen_pass.COLLECTION, n)]
        if len(names) < len(_linen_pass.NAMES):
            raise ValueError(
                f"test_statistics={self.test_statistics!r} needs a calibrated layer: variables = "
                "steinnorm.linen.calibrate(net.apply, variables, batches of clean inputs), whose "
                f"collection {_linen_pass.COLLECTION!r} 'apply' must be given. "
                f"{_linen_pass.IN_STACKS}"
            )
        return Calibration(*(self.get_variable(_linen_pass.COLLECTION, name) for name in names))

    def _count(self, x: Any, mask: jax.Array | None, running: Moments) -> None:
        """Adds the input to what the layer has counted of this batch."""
        totals = totals_of(
            x,
            axis=self.axis,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_fast_variance=self.use_fast_variance,
            reference=running.mean,
            epsilon=self.epsilon,
        )
        mean = running.mean
        totals = jax.tree.map(lambda a: placed_like(a, mean).astype(jnp.float32), totals)
        variables = {
            name: self.variable(_linen_pass.COLLECTION, name, jnp.zeros_like, mean, jnp.float32)
            for name in Totals._fields
        }
        before = Totals(**{name: v.value for name, v in variables.items()})
        for name, value in merged(before, totals)._asdict().items():
            variables[name].value = value

    def _is_named(self, collection: str) -> bool:
        """Whether the caller asked for a collection by its name.

        Whoever makes everything mutable wants what the model has, not a state that grows: a step
        that returns it would compile again at each call.
        """
        if self.scope is None or not self.is_mutable_collection(collection):
            return False
        # Inside nn.scan and the like "everything" has become a list of what they name: what the
        # caller said is known to the modules around, if there are any.
        around = [m.scope for m in nn.module._context.module_stack if m is not None]
        filters = [scope.root.mutable for scope in (self.scope, *filter(None, around))]
        return not any(
            isinstance(mutable, bool | nn.module.DenyList) and in_filter(mutable, collection)
            for mutable in filters
        )


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


@contextlib.contextmanager
def freeze(where: _checks.Where = None, *, affine: bool = False) -> Iterator[None]:
    """Makes layers keep their running statistics, and use them, in training too.

    For fine-tuning with small batches, or on data that should not move the statistics. It acts on
    the :class:`SteinBatchNorm` layers that are called inside the ``with`` block, in compiled
    functions too: JAX traces them anew for it. (Where JAX has no ``jax.make_user_context``, as
    0.6.2, write the block inside the function that is compiled, and call no function in it that is
    called outside as well: what was traced stays as it is.) A block inside of another adds to it:
    a layer is frozen that any of them names. It acts in its own thread.

    Args:
      where: which layers: all by default; a path such as ``"encoder/Block_0"``, or several, for all
        layers at and under them; or a function from a layer's path to a bool.
      affine: whether ``scale`` and ``bias`` of these layers get no gradient either. An optimiser
        with weight decay moves parameters without a gradient: leave them out with its mask.

    Raises:
      ValueError: at the end of the first block with this ``where``, if no such layer was called, or
        none at and under one of several paths; the message lists those that were.
      RuntimeError: a layer is traced where the block holds for Python and not for JAX, as in
        ``asyncio.to_thread``: write the block inside the function that runs there.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = SteinBatchNorm(use_running_average=False)
      >>> x = jax.random.normal(jax.random.key(0), (8, 4))
      >>> variables = layer.init(jax.random.key(1), x)
      >>> with freeze():
      ...     y, updated = layer.apply(variables, x, mutable=["batch_stats"])
      >>> bool(jnp.all(updated["batch_stats"]["mean"] == 0))
      True
    """
    with _freezing.block(where, affine=affine):
        yield


def calibrate(
    apply_fn: Callable[..., Any] | nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measures what clean inputs look like to each layer, for ``test_statistics="calibrated"``.

    One pass in inference mode with running statistics. Counted are, for every
    :class:`SteinBatchNorm`, mean and variance of its input and how much the mean and the variance
    of single examples scatter (see :class:`~steinnorm.Calibration`); exactly, in batches of any
    sizes, with the masks that the model passes. A layer that is called twice counts both calls.
    Sharded inputs are counted over all devices.

    Args:
      apply_fn: ``net.apply``, or the module ``net`` itself, or a function that is called as
        ``apply_fn(variables, batch, mutable=["calibration"], **options)`` (with "batch_stats" too
        where ``nn.scan`` carries the collection) and returns what ``net.apply`` does; for a batch
        of several arguments
        ``lambda variables, batch, **options: net.apply(variables, *batch, **options)``.
      variables: of the trained module; left as they are.
      batches: clean inputs as at test time, not augmented; some thousand examples. An iterable:
        ``[x]`` for one batch. Each is an array or a pytree of arrays; ``apply_fn`` is compiled once
        for each shape of it.
      on_batch: called after each batch with the number of batches done.
      **options: further arguments of ``apply_fn``, such as ``train=False``.

    Returns:
      The variables with a collection ``calibration`` more, or in place of an old one: ``mean``,
      ``var``, ``mean_spread`` and ``var_spread`` of each layer. Nothing but calibrated test
      statistics uses them. Training does not update them: calibrate again afterwards.

    Raises:
      TypeError: ``batches`` is one array; the module cannot take a batch, such as a loader's
        ``(x, y)``, as its one argument; or a layer has complex inputs.
      ValueError: no layer to calibrate, a layer that no batch reached (around ``nn.scan`` and
        ``nn.vmap`` the collection has to be named where ``batch_stats`` is, in ``variable_axes`` or
        ``variable_carry``), fewer than two examples, or values that are not finite.

    Warns:
      UserWarning: below 100 examples, with how rough the calibration is.

    Example:
      >>> import jax
      >>> net = SteinBatchNorm(use_running_average=True, test_statistics="calibrated")
      >>> x = jax.random.normal(jax.random.key(0), (200, 8, 4))
      >>> variables = net.init(jax.random.key(1), x)
      >>> variables = calibrate(net.apply, variables, [x[:150], x[150:]])
      >>> sorted(variables), net.apply(variables, x[:1]).shape
      (['batch_stats', 'calibration', 'params'], (1, 8, 4))
    """
    known = {name: value for name, value in variables.items() if name != _linen_pass.COLLECTION}
    recorder, means = _linen_pass.measured(
        apply_fn, known, batches, kind=SteinBatchNorm, on_batch=on_batch, options=options
    )
    found = recorder.calibrations(means)
    named = {p: dict(zip(_linen_pass.NAMES, held, strict=True)) for p, held in found.items()}
    return {**known, _linen_pass.COLLECTION: _linen_pass.as_collection(named)}
