"""What a calibration pass counts: sums per call, added on the device, then on the host in float64.

Of every example b of a layer's input its number of values n, their sum t and their sum of squares w
about a reference are known; sums over examples of the products of these are all that a calibration
needs. They move exactly to another reference, so that what was counted in batches of any size, on
any number of devices, adds up to what one pass over everything would count. Before two are added
both are moved to the mean of the two (after Chan, Golub & LeVeque 1979), which loses no digits.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steinnorm import _checks
from steinnorm._references import sums_about
from steinnorm._sharding import select
from steinnorm._sums import AxisName, shift_and_variance
from steinnorm.calibrated import Calibration
from steinnorm.statistics import planned

__all__ = ["FEW_EXAMPLES", "Recorder", "Totals", "leaves", "merged", "totals_of"]

FEW_EXAMPLES = 100
"""Below so many examples a calibration warns.

A spread between examples is known to about sqrt(2 / 100) = 14 %, and the population mean as well as
the mean of a batch of that size, which is what a test batch is then compared with.
"""


class Totals(NamedTuple):
    """Sums over examples, per channel, about ``reference``; arrays of one shape.

    Attributes:
      count: number of values.
      examples: number of examples with a value.
      reference: what values are measured from.
      sum: of the values.
      squares: of the values' squares.
      nn: of n n, with n, t and w the number, sum and sum of squares of an example's values.
      nt: of n t.
      nw: of n w.
      tt: of t t.
      tw: of t w.
      ww: of w w.
    """

    count: Any
    examples: Any
    reference: Any
    sum: Any
    squares: Any
    nn: Any
    nt: Any
    nw: Any
    tt: Any
    tw: Any
    ww: Any


def totals_of(
    x: Any,
    *,
    axis: _checks.Axes,
    mask: Any,
    axis_name: AxisName | None,
    axis_index_groups: Any,
    use_fast_variance: bool,
    reference: jax.Array,
    epsilon: Any,
) -> Totals:
    """Counts the input of one call of a layer, over all devices.

    Args:
      x: the input.
      axis: the feature axis, or several.
      mask: which values count.
      axis_name: the layer's mapped axis; left out where the call is not mapped over it.
      axis_index_groups: groups within that axis.
      use_fast_variance: see :func:`~steinnorm.batch_statistics`.
      reference: the running means, in the shape of the features.
      epsilon: the layer's.

    Returns:
      The sums about a reference close to the input's mean, in the shape of the features.

    Raises:
      TypeError: a complex input.
    """
    if jnp.iscomplexobj(x):
        raise TypeError(f"calibrate needs layers with real inputs; got dtype {jnp.result_type(x)}.")
    mapped = axis_name is not None and _is_bound(axis_name)
    plan, x, valid, start, small = planned(
        lax.stop_gradient(x),
        axis=axis,
        mask=mask,
        axis_name=axis_name if mapped else None,
        axis_index_groups=axis_index_groups if mapped else None,
        use_fast_variance=use_fast_variance,
        noise=True,
        examples=False,
        dtype=None,
        reference=reference,
        epsilon=epsilon,
    )
    plan = dataclasses.replace(plan, movable=True)
    sums, about = sums_about(plan, x, valid, start, small)
    shift, variance = shift_and_variance(sums)

    def per_channel(a: jax.Array) -> jax.Array:
        return (a.reshape(()) if a.size == 1 else a) + jnp.zeros_like(variance)

    totals = Totals(reference=about, **{n: per_channel(a) for n, a in sums.items()})
    # A channel that is constant but for roundings has no spread at all.
    spread = ("sum", "squares", "nt", "nw", "tt", "tw", "ww")
    varies = variance != 0  # NaN is kept, to be told
    totals = totals._replace(**{n: select(varies, getattr(totals, n)) for n in spread})
    return totals._replace(reference=about + select(~varies, shift))


def merged(a: Totals, b: Totals, *, on_device: bool = True) -> Totals:
    """Adds what was counted twice, about the mean of both.

    Args:
      a: of the first.
      b: of the second, of the same shape.
      on_device: whether these are JAX's arrays or NumPy's.
    """
    maximum = jnp.maximum if on_device else np.maximum
    gap = b.reference - a.reference
    # Rounded once, so that both are moved by exactly what their references differ by.
    mean = a.reference + (a.sum + b.sum + b.count * gap) / maximum(a.count + b.count, 1)
    first, second = _recentred(a, mean), _recentred(b, mean)
    added = Totals(*(p + q for p, q in zip(first, second, strict=True)))
    return added._replace(reference=mean)


def _recentred(t: Totals, reference: Any) -> Totals:
    """Moves the reference by a step: then t - step n and w - 2 step t + step^2 n are summed."""
    step = reference - t.reference
    s2 = step * step
    return t._replace(
        reference=reference,
        sum=t.sum - step * t.count,
        squares=t.squares - 2 * step * t.sum + s2 * t.count,
        nt=t.nt - step * t.nn,
        nw=t.nw - 2 * step * t.nt + s2 * t.nn,
        tt=t.tt - 2 * step * t.nt + s2 * t.nn,
        tw=t.tw - 2 * step * t.tt - step * t.nw + s2 * (3 * t.nt - step * t.nn),
        ww=t.ww - 4 * step * t.tw + s2 * (4 * t.tt + 2 * t.nw - 4 * step * t.nt + s2 * t.nn),
    )


def _is_bound(axis_name: AxisName) -> bool:
    """Whether the program is mapped over the axis here."""
    try:
        lax.psum(1, axis_name)
    except NameError:
        return False
    return True


def leaves(
    tree: Mapping[str, Any], names: tuple[str, ...], path: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields, by path, what a collection holds for the layers that have such variables."""
    if all(name in tree and not isinstance(tree[name], Mapping) for name in names):
        yield path, {name: tree[name] for name in names}
    for name, held in tree.items():
        if isinstance(held, Mapping):
            yield from leaves(held, names, f"{path}/{name}".lstrip("/"))


class Recorder:
    """Adds up, on the host, what the batches of a pass have shown to each layer.

    Args:
      remedy: what to do about a layer that no batch reached, for the message.
    """

    def __init__(self, remedy: str):
        self._remedy = remedy
        self._totals: dict[str, Totals] = {}
        self._roundings: dict[str, float] = {}  # relative ones, of what each layer counted in
        self.batches = 0

    def has(self, path: str) -> bool:
        """Whether a batch reached the layer."""
        return path in self._totals

    def add(self, batch: Mapping[str, Totals]) -> None:
        """Adds a batch.

        Args:
          batch: what each layer counted, by its path.

        Raises:
          ValueError: a layer saw a value that is not finite.
        """
        self.batches += 1
        for path, totals in jax.device_get(dict(batch)).items():
            self._roundings[path] = float(jnp.finfo(totals.sum.dtype).eps)
            exact = Totals(*(np.asarray(a, np.float64) for a in totals))
            if not all(np.all(np.isfinite(a)) for a in exact):
                raise ValueError(
                    f"the inputs of {_named(path)} in batch {self.batches} are not finite, or too "
                    "large for their squares to be summed; a calibration needs clean inputs."
                )
            before = self._totals.get(path)
            self._totals[path] = exact if before is None else merged(before, exact, on_device=False)

    def calibrations(self, paths: Mapping[str, Any]) -> dict[str, Calibration]:
        """Returns each layer's calibration, in the dtype and place of its running mean.

        Args:
          paths: the running means of all layers, by path.

        Raises:
          ValueError: no batch came, a layer was not reached, or fewer than two examples came.
        """
        if not self.batches:
            raise ValueError("batches is empty: calibrate needs at least two examples, got none.")
        examples = {
            path: int(np.max(self._totals[path].examples, initial=0)) if path in self._totals else 0
            for path in paths
        }
        missed = [_named(path) for path, number in examples.items() if number == 0]
        if missed:
            raise ValueError(f"no batch reached {', '.join(missed)}: {self._remedy}")
        least = min(examples.values())
        if least < 2:
            raise ValueError(
                "calibrate needs at least two examples, whose spread it measures; got one. (The "
                "example axis is the first that is not a feature axis.)"
            )
        if least < FEW_EXAMPLES:
            warnings.warn(
                f"a calibration from {least} examples is rough: below {FEW_EXAMPLES} the natural "
                f"spread between examples is known to no better than "
                f"{100 * (2 / least) ** 0.5:.0f} %",
                stacklevel=3,
            )
        return {
            path: _calibration(self._totals[path], self._roundings[path], mean)
            for path, mean in paths.items()
        }


def _calibration(totals: Totals, rounding: float, like: Any) -> Calibration:
    count = np.maximum(totals.count, 1)
    t = _recentred(totals, totals.reference + totals.sum / count)
    dtype = jnp.result_type(like)
    variance = np.maximum(t.squares, 0) / count
    # What is left of a constant channel are the roundings of its means.
    roundings = 8 * rounding * np.abs(t.reference)
    variance = np.where(variance <= roundings**2, 0, variance)
    some = np.where(variance > 0, variance, 1)
    each = np.where(variance > 0, t.examples / count**2, 0)
    of_means = np.maximum(t.tt, 0)
    of_squares = np.maximum(t.ww - 2 * variance * t.nw + variance**2 * t.nn, 0)

    def placed(a: Any) -> jax.Array:
        # Bound to devices only where the layer is: what is bound to one cannot meet inputs on many.
        bound = isinstance(like, jax.Array) and like.committed
        return jax.device_put(a.astype(dtype), like.sharding if bound else None)

    return Calibration(
        mean=placed(t.reference),
        variance=placed(variance),
        mean_spread=placed(each * of_means / some),
        variance_spread=placed(each * of_squares / some**2),
    )


def _named(path: str) -> str:
    return repr(path) if path else "the model"
