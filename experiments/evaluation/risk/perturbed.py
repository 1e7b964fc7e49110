"""Risk where normal data are perturbed: what the paper's claim about attacks is about.

The truth is that of the clean data.  Perturbations have a root mean square in units of the data's
standard deviation.  ``independent`` ones are drawn for each value, ``shared`` ones once for each
channel of a batch, as an attack may do that moves all examples alike.  Those ``with a mean`` are
moved by half of their root mean square in every channel.
"""

import itertools

import numpy as np
from scipy import stats

from experiments.evaluation.risk.independent import past_of, pattern
from experiments.evaluation.risk.monte_carlo import (
    Progress,
    Row,
    draw_in_chunks,
    observe,
    repetitions,
    rows_of,
)
from experiments.evaluation.risk.rules import Draws

KINDS = ("gaussian", "uniform", "rademacher", "truncated normal", "sparse")
_SHARE = 0.02  # of the values that a sparse perturbation hits
_CUT = 1.5  # where the truncated normal ends, in its deviations
_CHANNELS, _COUNT = 16, 16


def perturbation(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Returns draws of mean 0 and root mean square 1, by the name of their law."""
    if kind == "gaussian":
        return generator.standard_normal(shape, np.float32)
    if kind == "uniform":
        return np.sqrt(12) * (generator.random(shape, np.float32) - 0.5)
    signs = (2 * generator.integers(0, 2, shape, np.int8) - 1).astype(np.float32)
    if kind == "rademacher":
        return signs
    if kind == "sparse":
        return signs * (generator.random(shape, np.float32) < _SHARE) / np.sqrt(_SHARE)
    return _truncated(shape, generator)


def _truncated(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Draws from the normal distribution within 1.5 deviations, scaled to variance 1."""
    drawn = generator.standard_normal(shape, np.float32)
    outside = np.abs(drawn) > _CUT
    while outside.any():
        drawn[outside] = generator.standard_normal(int(outside.sum()), np.float32)
        outside = np.abs(drawn) > _CUT
    return drawn / np.float32(stats.truncnorm(-_CUT, _CUT).std())


def measure(seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``perturbed``: 16 channels of 16 values, kinds, scopes, means and sizes."""
    sizes = (1.0,) if smoke else (0.0, 0.5, 1.0, 2.0, 4.0)
    scopes = ("independent", "shared")
    grid = list(itertools.product(KINDS, scopes, (False, True), sizes))
    truth = 0.5 * pattern("random", _CHANNELS, seed)  # a signal of 4 in units of the clean noise
    rows = []
    for done, (kind, scope, has_mean, size) in enumerate(grid):
        progress(done, len(grid), f"{kind}, {scope}")
        if not size and (kind, scope, has_mean) != (KINDS[0], scopes[0], False):
            continue  # nothing is perturbed: one point for all
        drawn = _draw(kind, scope, has_mean * size / 2, size, seed, smoke)
        extra = size**2 * (0.75 if has_mean else 1.0)
        noise = (1 + extra) / _COUNT if scope == "independent" else 1 / _COUNT + extra
        draws = Draws(
            **{**drawn, "mean": drawn["mean"] + truth},
            values=_COUNT,
            examples=_COUNT,
            known_noise=np.full(_CHANNELS, noise),
            known_dimension=float(_CHANNELS),
        )
        setting = {"kind": kind, "scope": scope, "has_mean": has_mean, "size": size}
        past = past_of(_CHANNELS)
        rows += rows_of("mean", draws, truth, past, setting)
        rows += rows_of("variance", draws, np.ones(_CHANNELS), past, setting)
    return rows


def _draw(  # noqa: PLR0917
    kind: str, scope: str, moved: float, size: float, seed: int, smoke: bool
) -> dict[str, np.ndarray]:
    # The same clean data under every perturbation, and the same perturbation at every size.
    clean = np.random.default_rng((seed, 11))
    added = np.random.default_rng((seed, 12, KINDS.index(kind)))
    within = np.sqrt(size**2 - moved**2)

    def make(batches: int) -> dict[str, np.ndarray]:
        shape = (batches, _COUNT, _CHANNELS)
        values = clean.standard_normal(shape, np.float32)
        each = shape if scope == "independent" else (batches, 1, _CHANNELS)
        shift = moved + within * perturbation(kind, each, added)
        return observe(values + shift.astype(np.float32))

    return draw_in_chunks(repetitions(_CHANNELS, smoke), _COUNT * _CHANNELS, make)
