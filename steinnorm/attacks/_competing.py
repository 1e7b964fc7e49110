"""Logits of the classes that compete for the prediction, for tolerances relative to their size."""

import numpy as np

_REACH = 10.0  # how many times the largest lead a class may be behind and still count


def without_unreachable(logits: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Raises the logits of classes that are too far behind to ever be the prediction.

    Heads that are padded to a round size, or whose unused classes are masked, have logits of -1e4,
    -1e9 or minus infinity there. A tolerance that is a share of the largest logit, or of the spread
    of all, would let every change of the others pass.

    Args:
      logits: (B, *S, K), K >= 2.
      like: logits that say what too far is; these themselves by default. Arrays that are compared
        with each other need the same.

    Returns:
      Logits (B, *S, K), those more than ten times the largest lead of any likeliest class over the
      next behind the largest raised to there; NaN where a largest one is not finite.
    """
    largest_two = np.partition(logits if like is None else like, -2)[..., -2:]
    leads = largest_two[..., 1] - largest_two[..., 0]
    reach = _REACH * np.max(leads, where=np.isfinite(leads), initial=0)
    return np.maximum(logits, logits.max(axis=-1, keepdims=True) - reach)
