"""Computes scores of whole test sets."""

import math

import numpy as np


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve; ties count one half.

    Args:
      scores: (N,) finite, larger for what is taken for positive.
      positive: (N,) 0 or 1.

    Returns:
      The share of (positive, negative) pairs in the right order; NaN where one kind is missing.
    """
    chosen = np.asarray(positive) > 0
    pairs = int(chosen.sum()) * int((~chosen).sum())
    if not pairs or not np.all(np.isfinite(scores)):
        return math.nan
    # Imported here because scipy.stats takes about a second, and most tasks have no AUC.
    from scipy.stats import rankdata  # noqa: PLC0415

    # From ranks (Mann & Whitney 1947): scikit-learn's function spends nearly all of its time
    # on checks, and the bootstrap asks hundreds of times.
    # In float64: SciPy 1.18 ranks float32 scores in float32.
    ranks = rankdata(np.asarray(scores, np.float64))[chosen]
    return float((ranks.sum() - len(ranks) * (len(ranks) + 1) / 2) / pairs)


def mean_iou(confusion: np.ndarray) -> float:
    """Returns the mean intersection over union of the classes that occur in the truth.

    Args:
      confusion: (K, K) counts of pixels that are not void, rows the truth.

    Returns:
      The mean; NaN where there is no pixel.  A class that is predicted but never present has no
      term of its own; its pixels count against the classes that they were taken from.
    """
    confusion = confusion.astype(np.float64)
    right = np.diag(confusion)
    truth = confusion.sum(axis=1)
    union = truth + confusion.sum(axis=0) - right
    present = truth > 0
    return float(np.mean(right[present] / union[present])) if present.any() else math.nan


def micro_jaccard(right: np.ndarray, pixels: np.ndarray, batch: int) -> float:
    """Returns the score that the paper's released code calls "js" (arXiv 2507.08261).

    Over all pixels of a batch together, intersection / union of the assignments: with h right
    pixels of n it is h / (2n - h).  Void pixels are in n and can never be right, so it stays
    below 1 for a perfect network.  Batches count alike, whatever their size.

    Args:
      right: (N,) right pixels of each image.
      pixels: (N,) all pixels of each image, void included.
      batch: images per batch.

    Returns:
      The mean over batches; NaN where there is no image.
    """
    values = []
    for start in range(0, len(right), batch):
        h = float(right[start : start + batch].sum())
        n = float(pixels[start : start + batch].sum())
        values.append(h / (2 * n - h))
    return float(np.mean(values)) if values else math.nan
