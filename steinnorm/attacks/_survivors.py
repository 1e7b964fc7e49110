"""The examples that an attack has not broken yet, and the worst that was found for each.

Examples leave in batches of few different sizes: every size compiles anew.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import for_batch
from steinnorm.attacks._geometry import per_example

_SMALLEST = 8

Tree = TypeVar("Tree")


def is_worse(share: Any, loss: Any, than_share: Any, than_loss: Any) -> Any:
    """Returns where one result is worse for the model than another, bool; NumPy or JAX arrays.

    A result is worse where more of an example's labels are reached, or as many at a larger loss.

    Args:
      share: share of the labels that are reached, (B,).
      loss: of which the attack wants more, (B,).
      than_share: that of the other result.
      than_loss: that of the other result.
    """
    return (share > than_share) | ((share == than_share) & (loss > than_loss))


def where(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns ``a`` for the examples of which a condition (B,) holds, ``b`` for the others."""
    return jnp.where(per_example(condition, a), a, b)


@functools.partial(jax.jit, static_argnames="joint")
def keep_worse(
    a: tuple[jax.Array, jax.Array, jax.Array],
    b: tuple[jax.Array, jax.Array, jax.Array],
    *,
    joint: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns per example, or for the batch as a whole, the worse of two results.

    Args:
      a: inputs (B, ...), share of the labels that are reached (B,), loss (B,).
      b: the same of another attack.
      joint: the batch is kept as a whole, because its examples depend on each other.
    """
    compared = [v for result in (b, a) for v in result[1:]]
    if joint:
        compared = [for_batch(v, joint=True) for v in compared]
    take_b = is_worse(*compared)
    return where(take_b, b[0], a[0]), where(take_b, b[1], a[1]), where(take_b, b[2], a[2])


def shards(x: Any) -> int:
    """Returns over how many devices the examples of ``x`` are spread."""
    if not isinstance(x, jax.Array) or not len(x):
        return 1
    return len(x) // x.sharding.shard_shape(x.shape)[0]


def bucket(count: int, largest: int, multiple: int = 1) -> int:
    """Returns the smallest of ``largest``, its half, its quarter, ... that holds some examples.

    Args:
      count: examples that are left.
      largest: size of the whole batch.
      multiple: of which every size is one, such as the number of devices.

    Returns:
      A size, at least ``min(8, largest)``.
    """

    def half(size: int) -> int:
        return -(-size // (2 * multiple)) * multiple

    size = largest
    while half(size) >= max(count, min(_SMALLEST, largest)) and half(size) < size:
        size = half(size)
    return size


def padded(index: np.ndarray, size: int) -> np.ndarray:
    """Returns positions of examples, filled up to ``size`` with copies of the first."""
    return np.concatenate([index, np.full(size - len(index), index[0], index.dtype)])


def placed_like(rows: Any, like: Any) -> jax.Array:
    """Returns rows (n, ...) on the devices of a batch ``like`` (B, ...), split as that is.

    Rows whose number the devices do not divide go to all of them.
    """
    rows = np.asarray(rows)
    if not isinstance(like, jax.Array):
        return jnp.asarray(rows)
    if len(like.sharding.device_set) == 1:
        # Where nobody chose a device, the rows may still go where a model's arrays are.
        return jax.device_put(rows, like.sharding) if like.committed else jnp.asarray(rows)
    if len(rows) % shards(like):
        return jnp.asarray(rows)
    if like.ndim == rows.ndim:
        return jax.device_put(rows, like.sharding)
    if isinstance(like.sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*like.sharding.spec[:1])
        return jax.device_put(rows, jax.sharding.NamedSharding(like.sharding.mesh, spec))
    return jnp.asarray(rows)


@jax.jit
def take_rows(tree: Tree, index: jax.Array) -> Tree:
    """Returns the given rows of every array of a pytree, split over devices as it was.

    Scalars stay. The number of rows is a multiple of that of the devices.
    """

    def rows(a: jax.Array) -> jax.Array:
        if not a.ndim:
            return a
        sharding = jax.typeof(a).sharding
        if any(axis is not None for axis in sharding.spec):  # an explicit mesh
            return a.at[index].get(out_sharding=sharding)
        return a[index]

    return jax.tree.map(rows, tree)


class Worst:
    """The worst that was found so far for each example, on the host.

    Attributes:
      x: (B, ...) inputs.
      share: (B,) share of the example's labels where the attack has what it wants.
      loss: (B,) loss, which decides between equal shares.
    """

    def __init__(self, x: Any, share: Any):
        self.x = np.array(x)
        self.share = np.array(share)
        self.loss = np.full(len(self.x), -np.inf)

    @property
    def standing(self) -> np.ndarray:
        """Positions of the examples with a label that the attack has not got yet."""
        return np.flatnonzero(self.share < 1)

    def offer(self, index: np.ndarray, x: Any, share: Any, loss: Any = None) -> None:
        """Keeps what is worse than what there is.

        Args:
          index: positions of the offered examples; the arrays may be longer, by padding.
          x: inputs.
          share: as above; of the whole batch, where it must be kept as a whole.
          loss: as above; without one only a larger share is worse.
        """
        count = len(index)
        new_share = np.asarray(share)[:count]
        new_loss = self.loss[index] if loss is None else np.asarray(loss)[:count]
        worse = is_worse(new_share, new_loss, self.share[index], self.loss[index])
        self.x[index[worse]] = np.asarray(x)[:count][worse]
        self.share[index[worse]] = new_share[worse]
        self.loss[index[worse]] = new_loss[worse]
