"""The constant of the paper's rule for variances: its risk over ``fraction``.

Exactly for independent normal values, and on the feature maps of a network.  The rule is linear in
``fraction``, so its risk is a parabola in it.
"""

import itertools

import numpy as np

from experiments.evaluation.risk.exact import variance_ratio
from experiments.evaluation.risk.feature_maps import (
    BATCHES,
    SMOKE_BATCHES,
    batch_draws,
    draw,
    image_moments,
)
from experiments.evaluation.risk.monte_carlo import Progress, Row, paired_ratio
from experiments.evaluation.risk.networks import Networks
from experiments.models.recording import norm_layers

FRACTIONS = tuple(np.linspace(0, 3, 25).tolist())


def measure(networks: Networks, seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``fraction``: ratios to N/(N+1) v and to v over C, N, spread and fraction."""
    progress(0, 2, "exact risks over fraction")
    rows: list[Row] = [
        {
            "kind": "exact",
            "channels": channels,
            "count": count,
            "spread": spread,
            "fraction": fraction,
            "ratio": variance_ratio(channels, count, spread, fraction),
            "ratio_to_sample": variance_ratio(
                channels, count, spread, fraction, reference="sample"
            ),
        }
        for channels, count, spread, fraction in itertools.product(
            (3, 16, 64), (2, 4, 8, 32, 256), (0.0, 1.0, 2.0), FRACTIONS
        )
    ]
    progress(1, 2, "feature maps over fraction")
    batches = SMOKE_BATCHES if smoke else BATCHES
    for layer in norm_layers(networks.trained("batch", seed), networks.images):
        moments = image_moments(layer.inputs)
        for size in (2, 8, 64):
            draws = batch_draws(moments, draw(len(moments.mean), size, batches, seed), moments)
            rows += _on_maps(layer.name, draws.variance, draws.values, moments.variance, size)
    return rows


def _on_maps(
    layer: str, variance: np.ndarray, count: float, truth: np.ndarray, size: int
) -> list[Row]:
    """Returns the ratios of one layer to its sample variances (R, C)."""
    channels = variance.shape[1]
    scaled = variance * count / (count + 1)
    largest = 4 * (channels - 1) * count / ((count + 1) * ((count - 1) * channels + 2))
    with np.errstate(divide="ignore"):
        added = largest * np.exp(np.log(variance).mean(axis=1, keepdims=True))
    sample = np.sum((variance - truth) ** 2, axis=1)
    rows = []
    for fraction in FRACTIONS:
        found = paired_ratio(np.sum((scaled + fraction * added - truth) ** 2, axis=1), sample)
        rows.append(
            {
                "kind": "maps",
                "layer": layer,
                "batch_size": size,
                "fraction": fraction,
                "ratio_to_sample": found.value,
                "ci_low": found.low,
                "ci_high": found.high,
            }
        )
    return rows
