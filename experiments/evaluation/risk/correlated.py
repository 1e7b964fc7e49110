"""Risk where channels are correlated, as in a network.

A batch is B examples whose channel means are N(theta, Sigma), Sigma of unit diagonal; the batch's
means have the covariance S = Sigma / B.  Each example has many pixels, so that the channels'
variances (1) are known and only the noise of the means is measured between the examples.
"""

import itertools

import numpy as np

from experiments.evaluation.risk.independent import past_of
from experiments.evaluation.risk.monte_carlo import (
    Progress,
    Row,
    dimension,
    draw_in_chunks,
    repetitions,
    rows_of,
)
from experiments.evaluation.risk.rules import Draws

STRUCTURES = (
    "independent",
    "equal 0.3",
    "equal 0.6",
    "equal 0.9",
    "AR(1) 0.5",
    "AR(1) 0.9",
    "3 factors",
)
"""Correlations: all alike, falling with the distance of channels, of three common factors."""


def correlation(structure: str, channels: int, seed: int) -> np.ndarray:
    """Returns a correlation matrix (C, C) by the name of its structure."""
    name, _, size = structure.partition(" ")
    if structure == "3 factors":
        loadings = np.random.default_rng((seed, channels, 3)).normal(size=(channels, 3))
        loadings /= np.linalg.norm(loadings, axis=1, keepdims=True)
        return 0.2 * np.eye(channels) + 0.8 * loadings @ loadings.T
    if name == "AR(1)":
        place = np.arange(channels)
        return float(size) ** np.abs(place[:, None] - place)
    rho = float(size) if name == "equal" else 0.0
    return (1 - rho) * np.eye(channels) + rho


def measure(seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``correlated``: rules over structures, C, B, and sizes and directions of theta.

    Directions: along the first eigenvector of S, which is the worst, and along a random vector.
    """
    structures = ("independent", "equal 0.6") if smoke else STRUCTURES
    sizes, examples = ((16,), (4,)) if smoke else ((3, 16, 64), (2, 4, 16))
    signals = (0.0, 3.0) if smoke else (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    grid = list(itertools.product(sizes, structures, examples))
    rows = []
    for done, (channels, structure, batch) in enumerate(grid):
        progress(done, len(grid), f"C = {channels}, {structure}")
        matrix = correlation(structure, channels, seed)
        drawn = _draw(matrix, batch, seed, repetitions(channels, smoke))
        values, vectors = np.linalg.eigh(matrix)
        known = float(values.sum() / values[-1])
        for direction, signal in itertools.product(("leading", "random"), signals):
            if not signal and direction == "random":
                continue  # without a signal there is no direction
            unit = vectors[:, -1]
            if direction == "random":
                unit = np.random.default_rng((seed, channels, 5)).normal(size=channels)
                unit /= np.linalg.norm(unit)
            truth = unit * np.sqrt(signal * channels / batch)
            draws = Draws(
                **{**drawn, "mean": drawn["mean"] + truth},
                values=batch * 1000,
                examples=batch,
                known_noise=np.full(channels, 1 / batch),
                known_dimension=known,
            )
            setting = {
                "channels": channels,
                "structure": structure,
                "dimension": known,
                "examples": batch,
                "direction": direction,
                "signal": signal,
            }
            past = past_of(channels)
            rows += rows_of("mean", draws, truth, past, setting)
    return rows


def _draw(matrix: np.ndarray, batch: int, seed: int, batches: int) -> dict[str, np.ndarray]:
    channels = len(matrix)
    generator = np.random.default_rng((seed, channels, batch))  # paired over the structures
    values, vectors = np.linalg.eigh(matrix)
    root = (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)

    def make(size: int) -> dict[str, np.ndarray]:
        examples = generator.standard_normal((size, batch, channels), np.float32) @ root
        mean = examples.mean(axis=1)
        centred = examples - mean[:, None]
        return {
            "mean": mean,
            "variance": np.ones_like(mean),
            "mean_noise": (centred**2).sum(axis=1) / (batch * (batch - 1)),
            "variance_noise": np.zeros_like(mean),
            "dimension": dimension(centred),
        }

    return draw_in_chunks(batches, batch * channels, make)
