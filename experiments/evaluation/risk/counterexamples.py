"""The smallest counterexamples, computed exactly: where a rule is worse than the sample means."""

import itertools
from collections.abc import Callable

import numpy as np
from scipy import optimize

from experiments.evaluation.risk import exact
from experiments.evaluation.risk.exact import Noise, enumerated_ratio, signs, sparse_signs
from experiments.evaluation.risk.monte_carlo import Progress, Row

KNOWN = (1.41, -1.63, 1.68)
"""Where random signs were first seen to break James & Stein's dominance with three channels."""
_FARTHEST = 6.0  # of theta in a search; farther out all ratios come down to 1
_SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_SIZES = (3, 4, 6, 8, 16, 32, 64, 128, 256)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)


def measure(seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``counterexamples``: exact, so that nothing but the search depends on the seed."""
    works: list[Callable[[], list[Row]]] = [
        _thresholds,
        _growth,
        lambda: _signs(seed, smoke),
        lambda: _sparse(seed, smoke),
    ]
    rows = []
    for done, work in enumerate(works):
        progress(done, len(works), "exact counterexamples")
        rows += work()
    return rows


def threshold(channels: int, share: float) -> float:
    """Returns |theta|^2 / C, in units of the noise, beyond which the rule loses.

    Of the rules that take the spread between channels for noise, for true means of average zero.

    Args:
      channels: C >= 3.
      share: c of ``exact.spread_rule_ratio``.
    """

    def lead(centred: float) -> float:
        return exact.spread_rule_ratio(channels, centred, 0.0, share) - 1

    return float(optimize.brentq(lead, 1e-6, 100.0 * channels)) / channels


def _thresholds() -> list[Row]:
    return [
        {
            "kind": "threshold",
            "channels": channels,
            "stein": threshold(channels, exact.paper_share(channels)),
            "jsnorm": threshold(channels, exact.jsnorm_share(channels)),
            "approximation": (channels**2 + 6 * channels - 4) / (channels * (channels - 2)),
        }
        for channels in _SIZES
    ]


def _growth() -> list[Row]:
    """Ratios against N for theta = (1, -1, 0) and noise of variance 1 a value."""
    rows = []
    theta = np.array([1.0, -1.0, 0.0])
    for count in _COUNTS:
        signal = count * float(theta @ theta)
        ratio = exact.spread_rule_ratio(3, signal, 0.0, exact.paper_share(3))
        rows.append(
            {
                "kind": "growth",
                "count": count,
                "stein": ratio,
                "stein_risk": ratio * 3 / count,
                "sample_risk": 3 / count,
                "jsnorm": exact.spread_rule_ratio(3, signal, 0.0, exact.jsnorm_share(3)),
                "james_stein": exact.james_stein_ratio(3, signal),
            }
        )
    return rows


def worst(channels: int, noise: Noise, seed: int, starts: int) -> tuple[float, list[float]]:
    """Searches the theta where James & Stein's rule does worst; returns the ratio and theta.

    Args:
      channels: C.
      noise: its law in each channel.
      seed: of the starting points, which are spread over [0, 3]^C and the diagonal.
      starts: how many.
    """
    generator = np.random.default_rng((seed, channels))
    # Around the diagonal, where three channels of random signs do worst, and anywhere else.
    diagonal = np.linspace(0.25, 3.0, starts // 2 + 1)[:, None] * np.ones(channels)
    points = [*diagonal, *generator.uniform(0, 3, (starts - len(diagonal), channels))]
    best = (1.0, [0.0] * channels)
    for point in points:
        found = optimize.minimize(
            lambda theta: -enumerated_ratio(np.clip(theta, -_FARTHEST, _FARTHEST), noise),
            point,
            method="Nelder-Mead",
            options={"xatol": 1e-4, "fatol": 1e-7, "maxiter": 300 * channels},
        )
        if -found.fun > best[0]:
            best = (float(-found.fun), np.clip(found.x, -_FARTHEST, _FARTHEST).tolist())
    return best


def _signs(seed: int, smoke: bool) -> list[Row]:
    """Random signs: the known point, then the worst over theta, by C and by values averaged."""
    rows: list[Row] = [
        {
            "kind": "signs, given theta",
            "channels": 3,
            "draws": 1,
            "ratio": enumerated_ratio(np.array(KNOWN), signs()),
            "theta": list(KNOWN),
        }
    ]
    cases = ((3, 1),) if smoke else ((3, 1), (3, 2), (3, 3), (3, 4), (3, 8), (4, 1), (5, 1), (6, 1))
    for channels, draws in cases:
        ratio, theta = worst(channels, signs(draws), seed, 4 if smoke else 16)
        rows.append(
            {"kind": "signs", "channels": channels, "draws": draws, "ratio": ratio, "theta": theta}
        )
    return rows


def _sparse(seed: int, smoke: bool) -> list[Row]:
    """Noise that hits few channels hard: the worst over theta along the diagonal."""
    sizes = (3,) if smoke else (3, 4, 6, 8)
    rows = []
    for channels, share in itertools.product(sizes, _SHARES):
        lengths = np.linspace(0.05, 4.0, 80)
        noise = sparse_signs(share)
        ratios = [enumerated_ratio(t * np.ones(channels), noise) for t in lengths]
        place = int(np.argmax(ratios))
        rows.append(
            {
                "kind": "sparse",
                "channels": channels,
                "share": share,
                "ratio": float(ratios[place]),
                "theta": [float(lengths[place])] * channels,
            }
        )
    return rows
