"""Mixtures of several attacks on one batch, for models whose logits depend on the batch."""

from __future__ import annotations

import jax
import numpy as np

from steinnorm.attacks import _measurements as measurements
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import predict
from steinnorm.attacks._survivors import where


class Mixtures:
    """Puts results of several attacks on one batch together, example by example.

    If logits depend on the batch, an input that breaks its example in one batch need not break it
    beside other companions. So every mixture is evaluated as a batch of its own, and counts only if
    the attack succeeds on more labels than in any batch before. What an attack finds with mixtures
    is therefore never weaker than without them.

    Args:
      problem: the attacked batch.
    """

    def __init__(self, problem: Problem):
        self._problem = problem
        self._x, self._share = problem.x, problem.success_share()

    def add(self, x_adv: jax.Array) -> tuple[jax.Array, np.ndarray]:
        """Tries a result (B, ...), and its mixture with the worst batch so far.

        Returns:
          The worst batch so far, and for every example the share of all the batch's labels on which
          the attack succeeds there, (B,).
        """
        share = self._share_of(x_adv)
        mixture = _take_worse(x_adv, share, self._x, self._share)
        for x, new_share in ((x_adv, share), (mixture, self._share_of(mixture))):
            if np.mean(np.asarray(new_share)) > np.mean(np.asarray(self._share)):
                self._x, self._share = x, new_share
        shares = np.asarray(self._share)
        return self._x, np.full_like(shares, np.mean(shares))

    def _share_of(self, x: jax.Array) -> jax.Array:
        """Returns the share of each example's labels on which the attack succeeds, (B,)."""
        logits = predict(self._problem.model, x)
        return measurements.success_share(logits, self._problem.criterion)


@jax.jit
def _take_worse(
    x: jax.Array, share: jax.Array, than_x: jax.Array, than_share: jax.Array
) -> jax.Array:
    """Returns ``x`` for the examples that it breaks on more labels, ``than_x`` for the others."""
    return where(share > than_share, x, than_x)
