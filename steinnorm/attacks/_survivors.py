"""The examples that an attack has not broken yet, and the worst input found for each.

Broken examples leave the batch. Its size takes few values only, because each is compiled again.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import mean_if_joint
from steinnorm.attacks._explicit_meshes import explicit_sharding
from steinnorm.attacks._geometry import per_example

_SMALLEST = 8

Tree = TypeVar("Tree")


def is_worse(share: Any, loss: Any, than_share: Any, than_loss: Any) -> Any:
    """Returns where one result is worse for the model than another, (B,) bool.

    A result is worse if the attack succeeds on more of the example's labels, or on as many with a
    larger loss.

    Args:
      share: share of the labels on which the attack succeeds, (B,); NumPy or JAX array.
      loss: the loss that the attack increases, (B,).
      than_share: share of the other result.
      than_loss: loss of the other result.
    """
    return (share > than_share) | ((share == than_share) & (loss > than_loss))


def where(condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns ``a`` for the examples for which a condition (B,) holds, ``b`` for the others."""
    return jnp.where(per_example(condition, a), a, b)


@functools.partial(jax.jit, static_argnames="joint")
def keep_worse(
    a: tuple[jax.Array, jax.Array, jax.Array],
    b: tuple[jax.Array, jax.Array, jax.Array],
    *,
    joint: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the worse of two results, per example or for the batch as a whole.

    Args:
      a: inputs (B, ...), share of the labels on which the attack succeeds (B,), loss (B,).
      b: the same for another attack.
      joint: whether the batch is kept as a whole, because its examples depend on each other.
    """
    compared = [v for result in (b, a) for v in result[1:]]
    if joint:
        compared = [mean_if_joint(v, joint=True) for v in compared]
    take_b = is_worse(*compared)
    return where(take_b, b[0], a[0]), where(take_b, b[1], a[1]), where(take_b, b[2], a[2])


def shard_count(x: Any) -> int:
    """Returns the number of devices among which the examples of ``x`` are divided."""
    if not isinstance(x, jax.Array) or not len(x):
        return 1
    return len(x) // x.sharding.shard_shape(x.shape)[0]


def padded_size(count: int, largest: int, multiple: int = 1) -> int:
    """Returns the smallest of ``largest``, its half, its quarter, ... that is at least ``count``.

    Args:
      count: number of examples that remain.
      largest: size of the whole batch.
      multiple: divisor of every size, such as the number of devices.

    Returns:
      A size, at least ``min(8, largest)``.
    """

    def half(size: int) -> int:
        return -(-size // (2 * multiple)) * multiple

    size = largest
    while half(size) >= max(count, min(_SMALLEST, largest)) and half(size) < size:
        size = half(size)
    return size


def pad_indices(index: np.ndarray, size: int) -> np.ndarray:
    """Returns positions of examples, padded to ``size`` with copies of the first."""
    return np.concatenate([index, np.full(size - len(index), index[0], index.dtype)])


def place_like(examples: Any, like: Any) -> jax.Array:
    """Returns examples (n, ...) on the devices of a batch ``like`` (B, ...), divided as that is.

    If n is not divisible by the number of devices, the examples are replicated.
    """
    # A copy, because a device of the host may keep the array itself, which others change in place.
    # Without a device, like jnp.asarray, which would compile a program for every shape.
    examples = np.array(examples)
    if not isinstance(like, jax.Array):
        return jax.device_put(examples)
    if len(like.sharding.device_set) == 1:
        # Uncommitted arrays follow the model's arrays to their device.
        return jax.device_put(examples, like.sharding if like.committed else None)
    if len(examples) % shard_count(like):
        return jax.device_put(examples)
    if like.ndim == examples.ndim:
        return jax.device_put(examples, like.sharding)
    if isinstance(like.sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(*like.sharding.spec[:1])
        return jax.device_put(examples, jax.sharding.NamedSharding(like.sharding.mesh, spec))
    return jax.device_put(examples)


def placed_back(x_adv: jax.Array, x: jax.Array) -> jax.Array:
    """Returns attacked inputs (B, ...) on the devices of the inputs, divided as those are.

    Weights that are divided among devices may have divided what was computed with them.
    """
    if x_adv.sharding.is_equivalent_to(x.sharding, x.ndim):
        return x_adv
    return jax.device_put(x_adv, x.sharding) if x.committed else place_like(x_adv, x)


@jax.jit
def take_rows(tree: Tree, index: jax.Array) -> Tree:
    """Returns the examples at the given positions in every array of a pytree, sharded as before.

    Scalars are unchanged; without jit, Python's numbers come as they are. The number of positions
    must be divisible by that of the devices.
    """

    def select(a: Any) -> Any:
        if not jnp.ndim(a):
            return a
        sharding = explicit_sharding(a)
        return a[index] if sharding is None else a.at[index].get(out_sharding=sharding)

    return jax.tree.map(select, tree)


class WorstInputs:
    """The worst input found so far for each example, as NumPy arrays.

    Attributes:
      x: inputs, (B, ...).
      share: share of the example's labels on which the attack succeeds, (B,).
      loss: loss, which decides between equal shares, (B,).
    """

    def __init__(self, x: Any, share: Any):
        self.x = np.array(x)
        self.share = np.array(share)
        self.loss = np.full(len(self.x), -np.inf)

    @property
    def unbroken(self) -> np.ndarray:
        """Positions of the examples with a label on which the attack does not succeed yet."""
        return np.flatnonzero(self.share < 1)

    def update(self, index: np.ndarray, x: Any, share: Any, loss: Any = None) -> None:
        """Replaces the inputs of examples for which a new one is worse.

        Args:
          index: positions of the examples; the other arrays may be longer, by padding.
          x: new inputs.
          share: their shares; the mean over the batch if it is kept as a whole.
          loss: their losses; if None, only a larger share is worse.
        """
        count = len(index)
        new_share = np.asarray(share)[:count]
        new_loss = self.loss[index] if loss is None else np.asarray(loss)[:count]
        worse = is_worse(new_share, new_loss, self.share[index], self.loss[index])
        self.x[index[worse]] = np.asarray(x)[:count][worse]
        self.share[index[worse]] = new_share[worse]
        self.loss[index[worse]] = new_loss[worse]
