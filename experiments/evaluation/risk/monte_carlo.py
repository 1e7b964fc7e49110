"""Monte Carlo: drawing statistics of batches, and paired ratios of risks with intervals."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.evaluation.risk.rules import SAMPLE, Draws, Target, estimates

Progress = Callable[[int, int, str], None]
"""Is told steps done, steps in all, and what comes next."""
Row = dict[str, Any]
"""One line of a table, as JSON keeps it."""

VALUES = 400_000  # estimates of single channels per point
SMOKE_REPETITIONS = 400
_CHUNK = 4_000_000  # random numbers that are held at a time
_Z = 1.959964  # of a 95 % interval


def repetitions(channels: int, smoke: bool) -> int:
    """Returns how many batches are drawn: more where few channels leave more to chance."""
    return SMOKE_REPETITIONS if smoke else int(np.clip(VALUES // channels, 4_000, 80_000))


class Ratio(NamedTuple):
    """A ratio of two risks, with its 95 % interval.

    Attributes:
      value: risk of the estimator over that of the sample statistics of the same batches.
      low: lower end.
      high: upper end.
    """

    value: float
    low: float
    high: float


def paired_ratio(losses: np.ndarray, reference: np.ndarray) -> Ratio:
    """Returns the ratio of mean losses; both saw the same batches (delta method).

    Args:
      losses: (R,) of the estimator.
      reference: (R,) of the sample statistics.
    """
    ratio = float(losses.mean() / reference.mean())
    residual = losses - ratio * reference
    half = _Z * float(residual.std(ddof=1)) / math.sqrt(len(losses)) / float(reference.mean())
    return Ratio(ratio, ratio - half, ratio + half)


def verdict(low: float, high: float) -> str:
    """Returns ``better``, ``tie`` or ``worse`` than the sample statistics.

    A tie is an interval that contains 1, or a difference below a thousandth, of no use to anyone.
    """
    if low <= 1 <= high or (abs(low - 1) < 1e-3 and abs(high - 1) < 1e-3):
        return "tie"
    return "better" if high < 1 else "worse"


def rows_of(
    target: Target,
    draws: Draws,
    truth: np.ndarray,
    running: tuple[np.ndarray, np.ndarray],
    setting: Mapping[str, Any],
) -> list[Row]:
    """Returns a row for each estimator: its risk relative to that of the sample statistics.

    Args:
      target: what is estimated.
      draws: the batches.
      truth: (C,), what the estimates are compared with.
      running: that ``toward_running`` shrinks to.
      setting: columns that say where this is.
    """
    found = estimates(target, draws, running)
    losses = {name: np.sum((value - truth) ** 2, axis=1) for name, value in found.items()}
    rows = []
    for name, loss in losses.items():
        if name == SAMPLE:
            continue
        ratio = paired_ratio(loss, losses[SAMPLE])
        rows.append(
            {
                **setting,
                "target": target,
                "estimator": name,
                "ratio": ratio.value,
                "ci_low": ratio.low,
                "ci_high": ratio.high,
                "risk": float(loss.mean()),
                "batches": len(loss),
                "verdict": verdict(ratio.low, ratio.high),
            }
        )
    return rows


def observe(samples: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the statistics (R, C) of samples (R, N, C), N examples of one value per channel.

    Those of ``steinnorm.batch_statistics(..., noise=True)``, many batches at once.
    """
    count = samples.shape[1]
    mean = samples.mean(axis=1)
    centred = samples - mean[:, None]
    squares = centred**2
    variance = squares.mean(axis=1)
    spread = ((squares - variance[:, None]) ** 2).sum(axis=1)
    return {
        "mean": mean,
        "variance": variance,
        "mean_noise": variance / (count - 1),
        "variance_noise": spread / (count * (count - 1)),
        "dimension": dimension(centred),
    }


def dimension(centred: np.ndarray) -> np.ndarray:
    """Returns tr S / lmax (R,) of samples (R, N, C) that are centred over N.

    lmax of a small sample is too large on average, so that this errs to the side of too few.
    """
    rows = centred if centred.shape[1] <= centred.shape[2] else np.swapaxes(centred, 1, 2)
    gram = rows @ np.swapaxes(rows, 1, 2)
    trace = np.trace(gram, axis1=1, axis2=2)
    return trace / np.maximum(np.linalg.eigvalsh(gram)[:, -1], np.finfo(gram.dtype).tiny)


def draw_in_chunks(
    batches: int, values: int, make: Callable[[int], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Calls ``make(R)`` until so many batches are drawn; returns them together.

    Args:
      batches: how many.
      values: random numbers that one takes; few batches are held at a time.
      make: returns arrays of R rows.
    """
    chunk = max(1, _CHUNK // values)
    sizes = [min(chunk, batches - start) for start in range(0, batches, chunk)]
    parts = [make(size) for size in sizes]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
