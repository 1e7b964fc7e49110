"""Some examples of a batch, in batches of few different sizes: every size compiles anew."""

import jax
import numpy as np

_SMALLEST = 8


def bucket(count: int, largest: int) -> int:
    """The smallest of ``largest``, its half, its quarter, ... that holds ``count`` examples.

    Args:
      count: examples that are left.
      largest: size of the whole batch.

    Returns:
      A size, at least ``min(8, largest)``.
    """
    size = largest
    while -(-size // 2) >= max(count, min(_SMALLEST, largest)) and size > 1:
        size = -(-size // 2)
    return size


def padded(index: np.ndarray, size: int) -> np.ndarray:
    """Positions of examples, filled up to ``size`` with copies of the first."""
    return np.concatenate([index, np.full(size - len(index), index[0], index.dtype)])


class Kept:
    """The worst that was found so far for each example, on the host.

    Attributes:
      x: (B, ...) inputs.
      share: (B,) share of the example's labels where the attack has what it wants.
      loss: (B,) loss, which decides between equal shares.
    """

    def __init__(self, x: jax.Array, share: jax.Array):
        self.x = np.array(x)
        self.share = np.array(share)
        self.loss = np.full(len(self.x), -np.inf)

    @property
    def standing(self) -> np.ndarray:
        """Positions of the examples with a label that the attack has not got yet."""
        return np.flatnonzero(self.share < 1)

    def offer(
        self, index: np.ndarray, x: jax.Array, share: jax.Array, loss: jax.Array | None = None
    ) -> None:
        """Keeps what is worse than what there is.

        Args:
          index: positions of the offered examples; the arrays may be longer, by padding.
          x: inputs.
          share: as above; of the whole batch, where it must be kept as a whole.
          loss: as above; without one only a larger share is worse.
        """
        count = len(index)
        share_np = np.asarray(share)[:count]
        worse = share_np > self.share[index]
        if loss is not None:
            loss_np = np.asarray(loss)[:count]
            worse |= (share_np == self.share[index]) & (loss_np > self.loss[index])
            self.loss[index[worse]] = loss_np[worse]
        self.x[index[worse]] = np.asarray(x)[:count][worse]
        self.share[index[worse]] = share_np[worse]


@jax.jit
def gather(tree, index):
    """The given rows of every array of a pytree; scalars stay."""
    return jax.tree.map(lambda a: a[index] if a.ndim else a, tree)
