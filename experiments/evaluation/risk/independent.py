"""Risk where the theory speaks: independent channels, normal values."""

import functools
import itertools

import numpy as np

from experiments.evaluation.risk.exact import true_variances
from experiments.evaluation.risk.monte_carlo import (
    Progress,
    Row,
    draw_in_chunks,
    observe,
    repetitions,
    rows_of,
)
from experiments.evaluation.risk.rules import Draws

PATTERNS = ("zero average", "random", "equal")
"""How the true means lie: alternating about zero, drawn from a normal distribution, all equal."""


def pattern(name: str, channels: int, seed: int) -> np.ndarray:
    """Returns true means (C,) of mean square 1."""
    if name == "equal":
        return np.ones(channels)
    values = np.random.default_rng((seed, channels, 7)).normal(size=channels)
    if name == "zero average":
        values -= values.mean()
    return values / np.sqrt(np.mean(values**2))


def past_of(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the running means (0) and variances (1.5) that ``toward_running`` shrinks to.

    Not 1, which is about the truth of the variances; with 0 and 1 the rule takes them for unset.
    """
    return np.zeros(channels), np.full(channels, 1.5)


@functools.lru_cache(maxsize=4)
def _standard(channels: int, count: int, spread: float, seed: int, smoke: bool) -> tuple:
    """Draws batches of true means 0; the same for all means, which makes points comparable."""
    generator = np.random.default_rng((seed, channels, count))
    deviation = np.sqrt(true_variances(channels, spread)).astype(np.float32)

    def make(batches: int) -> dict[str, np.ndarray]:
        shape = (batches, count, channels)
        return observe(generator.standard_normal(shape, np.float32) * deviation)

    drawn = draw_in_chunks(repetitions(channels, smoke), count * channels, make)
    return drawn, deviation.astype(np.float64) ** 2


def point(  # noqa: PLR0917
    channels: int, count: int, signal: float, spread: float, kind: str, seed: int, smoke: bool
) -> tuple[Draws, np.ndarray, np.ndarray]:
    """Returns batches of N values per channel, the true means and the true variances.

    Args:
      channels: C.
      count: N.
      signal: sum of squared true means over the sum of the sampling variances of the means.
      spread: standard deviation of the logarithms of the true variances.
      kind: one of ``PATTERNS``.
      seed: of all.
      smoke: few batches.
    """
    drawn, variance = _standard(channels, count, spread, seed, smoke)
    noise = variance / count
    truth = pattern(kind, channels, seed) * np.sqrt(signal * noise.mean())
    known = float(noise.sum() / noise.max())
    moved = {**drawn, "mean": drawn["mean"] + truth}
    draws = Draws(**moved, values=count, examples=count, known_noise=noise, known_dimension=known)
    return draws, truth, variance


def measure(seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``independent``: every estimator over C, N, signal, spread of variances, pattern."""
    grid = list(
        itertools.product(
            (16,) if smoke else (3, 8, 16, 64, 256),
            (4,) if smoke else (4, 16, 64),
            (0.0, 1.0),
            PATTERNS,
            (0.0, 4.0) if smoke else (0.0, 0.25, 1.0, 4.0, 16.0, 64.0),
        )
    )
    rows = []
    for done, (channels, count, spread, kind, signal) in enumerate(grid):
        progress(done, len(grid), f"C = {channels}, N = {count}")
        draws, truth, variance = point(channels, count, signal, spread, kind, seed, smoke)
        past = past_of(channels)
        setting = {
            "channels": channels,
            "count": count,
            "signal": signal,
            "spread": spread,
            "pattern": kind,
        }
        if signal or kind == PATTERNS[0]:  # without signal all patterns are one
            rows += rows_of("mean", draws, truth, past, setting)
        if not signal and kind == PATTERNS[0]:  # true means do not matter to variances
            setting = {**setting, "pattern": ""}
            rows += rows_of("variance", draws, variance, past, setting)
    return rows


def measure_map(seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``map``: where the rules for the means are better, C against signal; 16 values each."""
    sizes = (16,) if smoke else (3, 4, 6, 8, 16, 32, 64, 128)
    signals = (0.0, 1.0, 100.0) if smoke else (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
    grid = list(itertools.product(sizes, PATTERNS, signals))
    rows = []
    for done, (channels, kind, signal) in enumerate(grid):
        progress(done, len(grid), f"C = {channels}")
        draws, truth, _ = point(channels, 16, signal, 0.0, kind, seed, smoke)
        past = past_of(channels)
        setting = {"channels": channels, "signal": signal, "pattern": kind, "count": 16}
        rows += rows_of("mean", draws, truth, past, setting)
    return rows
