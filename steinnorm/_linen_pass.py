"""The pass over clean inputs that calibrates a Linen model, and how its layers know of it."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from steinnorm import _layer_inputs
from steinnorm._calibration import Recorder, Totals, leaves
from steinnorm._compat import cache_context

__all__ = ["COLLECTION", "IN_STACKS", "NAMES", "as_collection", "is_running", "measured"]

# The collection of what `calibrate` measured, and, while it runs, of what layers count.
COLLECTION = "calibration"
# Its variables in the order of the fields of `Calibration`.
NAMES = ("mean", "var", "mean_spread", "var_spread")
IN_STACKS = (
    f"Around nn.scan and nn.vmap name the collection in variable_axes, as batch_stats is: "
    f"variable_axes={{'params': 0, 'batch_stats': 0, {COLLECTION!r}: 0}}."
)
_ONE_ARGUMENT = (
    "Pass lambda variables, batch, **options: net.apply(variables, batch[0], **options) in place "
    "of net.apply, or with whatever it takes."
)

# That a collection is mutable does not tell layers to count: callers make all of a state mutable.
# Where JAX has contexts of its own its caches tell traces inside a pass from those outside. Where
# it has none (0.6.2), they do by the arguments, which are others outside, but for a caller who
# leaves the calibration out and makes it alone mutable.
_in_jax = cache_context()
_in_python: contextvars.ContextVar[bool] = contextvars.ContextVar("steinnorm_pass", default=False)


def is_running() -> bool:
    """Whether a pass evaluates the model here, whose layers are to count."""
    return _in_python.get() if _in_jax is None else _in_jax.value is True


@contextlib.contextmanager
def _running() -> Iterator[None]:
    if _in_jax is not None:
        with _in_jax(True):
            yield
        return
    token = _in_python.set(True)
    try:
        yield
    finally:
        _in_python.reset(token)


def measured(
    apply_fn: Callable[..., Any] | nn.Module,
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    kind: type[nn.Module],
    on_batch: Callable[[int], None] | None,
    options: Mapping[str, Any],
) -> tuple[Recorder, dict[str, Any]]:
    """Evaluates a model on all batches while its layers count; see ``linen.calibrate``.

    Args:
      apply_fn: ``net.apply``, the module itself, or a function like the first.
      variables: without a calibration.
      batches: clean inputs.
      kind: the class of the layers that count.
      on_batch: called after each batch with the number of batches done.
      options: further arguments of ``apply_fn``.

    Returns:
      What the layers counted, and the running means of the layers that are to be calibrated.

    Raises:
      TypeError: ``batches`` is one array, or the model cannot take a batch.
      ValueError: no layer to calibrate, or values that are not finite.
    """
    apply = apply_fn.apply if isinstance(apply_fn, nn.Module) else apply_fn
    bound = getattr(apply, "__self__", None)
    count = _counting(functools.partial(apply, **options), variables)
    recorder = Recorder(
        f"apply_fn must evaluate all of the model. {IN_STACKS} (A layer of another class with "
        "'mean' and 'var' in batch_stats is named here too, unless it was seen to be called.)"
    )
    called: set[str] = set()

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not isinstance(context.module, kind):
            called.add("/".join(context.module.path))
        return call(*args, **kwargs)

    for batch in _layer_inputs.batches(batches):
        with nn.intercept_methods(note), _running():
            counted = _layer_inputs.called(
                functools.partial(count, batch),
                batch,
                by_default=isinstance(bound, nn.Module) and apply == bound.apply,
                remedy=_ONE_ARGUMENT,
            )
        recorder.add(counted)
        if on_batch is not None:
            on_batch(recorder.batches)
    means = {
        path: held["mean"]
        for path, held in leaves(variables.get("batch_stats", {}), ("mean", "var"))
        # Where nothing was seen, a compiled apply_fn was not traced again.
        if recorder.has(path) or (called and path not in called)
    }
    if not means and recorder.batches:
        raise ValueError(f"apply_fn calls no SteinBatchNorm to calibrate. {IN_STACKS}")
    return recorder, means


def as_collection(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a collection of what is found for each layer, by its path: names and values."""
    collection: dict[str, Any] = {}
    for path, values in found.items():
        held = collection
        for name in filter(None, path.split("/")):
            held = held.setdefault(name, {})
        held.update(values)
    return collection


def _counting(
    apply: Callable[..., Any], variables: Mapping[str, Any]
) -> Callable[[Any], dict[str, Totals]]:
    """Returns what evaluates the model on a batch and gives what each layer counted."""

    @functools.partial(jax.jit, static_argnames="given")
    def evaluate(variables: dict[str, Any], batch: Any, *, given: bool) -> Any:
        start = {COLLECTION: _nothing(variables)} if given else {}
        mutable = [COLLECTION, "batch_stats"] if given else [COLLECTION]
        _, counted = apply(variables | start, batch, mutable=mutable)
        return counted.get(COLLECTION, {})

    given = False

    def count(batch: Any) -> dict[str, Totals]:
        nonlocal given
        try:
            counted = evaluate(dict(variables), batch, given=given)
        except TypeError:
            # What nn.scan and nn.while_loop carry must be there before, and all of it be mutable.
            # Elsewhere layers make it: it may have other axes than the running statistics.
            if given:
                raise
            try:
                counted = evaluate(dict(variables), batch, given=True)
            except Exception:
                counted = None
            if counted is None:
                raise
            given = True
        found = {path: Totals(**sums) for path, sums in leaves(counted, Totals._fields)}
        # A layer of another class was given sums that it did not add to.
        return {path: t for path, t in found.items() if not given or np.any(t.examples)}

    return count


def _nothing(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what layers have counted before the first call."""
    return as_collection(
        {
            path: {n: jnp.zeros_like(held["mean"], jnp.float32) for n in Totals._fields}
            for path, held in leaves(variables.get("batch_stats", {}), ("mean", "var"))
        }
    )
