"""SteinBatchNorm for Flax NNX, a drop-in for ``flax.nnx.BatchNorm``, and what acts on models.

:func:`convert` and :func:`revert` swap layers, :func:`freeze` keeps their running statistics, and
:func:`calibrate` measures clean inputs for ``test_statistics="calibrated"``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from steinnorm import _checks, _layer_inputs, functional
from steinnorm._calibration import Recorder, Totals
from steinnorm._nnx_layer import (
    CALIBRATION_ATTRIBUTES,
    CalibrationStat,
    CalibrationSum,
    ShrinkageFactor,
    SteinBatchNorm,
)
from steinnorm._nnx_modules import at_path, map_modules
from steinnorm._numerics import promote_types
from steinnorm._rules_applied import may_change_a_large_batch
from steinnorm.shrinkage import Shrinkage, resolve

__all__ = [
    "CalibrationStat",
    "ShrinkageFactor",
    "SteinBatchNorm",
    "calibrate",
    "convert",
    "freeze",
    "revert",
]

if not hasattr(nnx, "capture"):
    raise ImportError(
        f"steinnorm.nnx needs flax 0.12.6 or newer, installed is {flax.__version__}: pip install "
        "--upgrade flax. steinnorm.linen works with it."
    )

M = TypeVar("M", bound=nnx.Module)


def convert(
    model: M,
    shrinkage: str | Shrinkage = "stein",
    *,
    test_statistics: functional.TestStatistics = "running",
) -> M:
    """Swaps every ``nnx.BatchNorm`` of a model for a :class:`SteinBatchNorm`, weights kept.

    Parameters, running statistics, their metadata and all settings carry over, so inference does
    not change; training and ``test_statistics`` other than "running" do. To evaluate a model that
    was trained with batch norm under these, pass ``shrinkage="none"``: it does not fit a rule that
    it was not trained with.

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

    Warns:
      UserWarning: inference would apply a rule to the test batch with which the model seems not to
        have been trained: its running statistics are not those of a new one. (It may have been,
        before it went through :func:`revert`.)

    Example:
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
      >>> type(convert(model).layers[1]).__name__
      'SteinBatchNorm'
    """
    rule, trained = resolve(shrinkage), []
    other = test_statistics in ("batch", "shrunk") and may_change_a_large_batch(rule)

    def to_stein(layer: nnx.BatchNorm) -> SteinBatchNorm:
        trained.append(other and _has_been_trained(layer))
        return _rebuild(layer, SteinBatchNorm, shrinkage=shrinkage, test_statistics=test_statistics)

    converted = _swap(model, nnx.BatchNorm, to_stein)
    if any(trained):
        warnings.warn(
            f"test_statistics={test_statistics!r} would shrink the test batch's statistics by "
            f"{rule.name!r} in a model that seems to have been trained with nnx.BatchNorm, and was "
            'never fitted to that: pass shrinkage="none" to evaluate it, or train it on first.',
            stacklevel=2,
        )
    return converted


def _has_been_trained(layer: nnx.BatchNorm) -> bool:
    """Returns whether the running statistics are those of no new layer; False if not known here."""
    values = (layer.mean.get_value(), layer.var.get_value())
    for value in values:
        if isinstance(value, jax.Array):
            # Under a trace, of an abstract model, or in part on the devices of other processes.
            if isinstance(value, jax.core.Tracer) or not value.is_fully_addressable:
                return False
        elif not isinstance(value, np.ndarray):
            return False
    mean, variance = map(np.asarray, values)
    return bool((mean != 0).any() or (variance != 1).any())


def revert(model: M) -> M:
    """Swaps every :class:`SteinBatchNorm` of a model for an ``nnx.BatchNorm``, weights kept.

    Args:
      model: any NNX module; left as it is.

    Returns:
      A new model with the same inference (running statistics) and variables of its own, as in
      :func:`convert`. What Flax's layer does not have is dropped: a calibration, and that a layer
      is frozen, so that in training its statistics move again. Subclasses of
      :class:`SteinBatchNorm` are left as they are, with a warning.

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
        all layers at and under them; or a function from a layer's path to a bool. A layer that is
        shared may be named at any of its places; a function is asked about one of them.
      affine: whether ``scale`` and ``bias`` of these layers get no gradient either. An optimiser
        with weight decay moves parameters without a gradient: leave them out with its mask.

    Returns:
      A new model with variables of its own, as in :func:`convert`. Layers that ``where`` does not
      name are thawed.

    Raises:
      TypeError: the model is no NNX module.
      ValueError: there is no layer to freeze, or none at or under one of several paths; the message
        lists those that there are.

    Example:
      >>> from flax import nnx
      >>> model = nnx.Sequential(SteinBatchNorm(4, rngs=nnx.Rngs(0)))
      >>> freeze(model).layers[0].frozen
      'statistics'
    """
    _check_module(model)
    chosen, result = _checks.Paths(where), nnx.clone(model)
    for path, layer in _stein_layers(result).items():
        layer.frozen = ("all" if affine else "statistics") if chosen.holds(path) else "no"
    for name in chosen.names:  # a layer in several places has been asked about at one alone
        for path, layer in _stein_layers(at_path(result, name), name).items():
            if chosen.holds(path):
                layer.frozen = "all" if affine else "statistics"
    chosen.check("SteinBatchNorm", remedy='convert(model, "none") makes them of nnx.BatchNorm.')
    return result


def _call_model(model: Any, batch: Any) -> Any:
    return model(batch)


def calibrate(
    model: M,
    batches: Iterable[Any],
    *,
    call: Callable[[Any, Any], Any] = _call_model,
    on_batch: Callable[[int], None] | None = None,
) -> M:
    """Measures what clean inputs look like to each layer, for ``test_statistics="calibrated"``.

    One pass in inference mode with running statistics, whatever mode the model is in. Counted are,
    for every :class:`SteinBatchNorm`, mean and variance of its input and how much the mean and
    the variance of single examples scatter (see :class:`~steinnorm.Calibration`); exactly, in
    batches of any sizes, with the masks that the model passes. A layer that is called twice counts
    both calls. Sharded inputs are counted over all devices.

    Args:
      model: any NNX module with :class:`SteinBatchNorm` layers, trained; left as it is.
      batches: clean inputs as at test time, not augmented; some thousand examples. An iterable:
        ``[x]`` for one batch. Each is an array or a pytree of arrays, what ``call`` takes.
      call: function from model and batch that evaluates the model; compiled by ``nnx.jit``, once
        for each shape of a batch. Its result is not used.
      on_batch: called after each batch with the number of batches done.

    Returns:
      A new model with variables of its own, as in :func:`convert`, whose layers have four more
      each, of the kind :class:`CalibrationStat`. Nothing but calibrated test statistics uses them.
      Training does not update them: calibrate again afterwards.

    Raises:
      TypeError: the model is no NNX module; ``batches`` is one array; the model cannot take a
        batch, such as a loader's ``(x, y)``, as its one argument; or a layer has complex inputs.
      ValueError: no layer to calibrate, a layer that no batch reached, fewer than two examples, or
        values that are not finite.

    Warns:
      UserWarning: below 100 examples, with how rough the calibration is.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> model = nnx.Sequential(SteinBatchNorm(4, rngs=nnx.Rngs(0)))
      >>> x = jax.random.normal(jax.random.key(0), (200, 8, 4))
      >>> calibrated = calibrate(model, [x[:150], x[150:]])
      >>> test = nnx.view(calibrated, use_running_average=True, test_statistics="calibrated")
      >>> test(x[:1]).shape
      (1, 8, 4)
    """
    _check_module(model)
    counting = nnx.clone(model)
    counting.eval()
    layers = _stein_layers(counting)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} holds no SteinBatchNorm to calibrate; convert(model) makes "
            "them of nnx.BatchNorm."
        )
    for layer in layers.values():
        mean = layer.mean[...]  # of a model cast for inference it may have few digits
        zeros = jnp.zeros_like(mean, promote_types(mean.dtype, jnp.float32))
        sums = {n: CalibrationSum(zeros) for n in Totals._fields}
        layer.calibration_sums = nnx.data(sums)

    @nnx.jit
    def count(model: Any, batch: Any) -> None:
        for layer in _stein_layers(model).values():
            for variable in layer.calibration_sums.values():
                variable[...] = jnp.zeros_like(variable[...])
        call(model, batch)

    recorder = Recorder(
        "give a call that evaluates all of the model; jax.lax.scan, jax.vmap and the like inside "
        "it must return the states that they change, as nnx.scan and nnx.vmap do."
    )
    for batch in _layer_inputs.batches(batches):
        _layer_inputs.called(
            functools.partial(count, counting, batch),
            batch,
            by_default=call is _call_model,
            remedy="Pass call=lambda model, batch: model(batch[0]), or whatever it takes.",
        )
        recorder.add(
            {
                path: Totals(**{name: v[...] for name, v in layer.calibration_sums.items()})
                for path, layer in layers.items()
            }
        )
        if on_batch is not None:
            on_batch(recorder.batches)
    result = nnx.clone(model)
    finished = _stein_layers(result)
    found = recorder.calibrations({path: layer.mean[...] for path, layer in finished.items()})
    for path, layer in finished.items():
        for name, value in zip(CALIBRATION_ATTRIBUTES, found[path], strict=True):
            setattr(layer, name, CalibrationStat(value))
    return result


def _stein_layers(model: Any, path: str = "") -> dict[str, SteinBatchNorm]:
    """Returns the layers of a model, each once, by the path where it is found first.

    Args:
      model: what holds them.
      path: where that is itself.
    """
    found = {}

    def visit(path: str, node: Any) -> Any:
        if isinstance(node, SteinBatchNorm):
            found[path] = node
        return node

    map_modules(visit, model, path)
    return found


def _check_module(model: Any) -> None:
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx.Module; got {type(model).__name__}.")


def _swap(model: M, old: type[nnx.BatchNorm], replace: Callable[[Any], nnx.BatchNorm]) -> M:
    _check_module(model)
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
