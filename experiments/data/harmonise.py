"""ComBat: removes differences of level and spread between sites (Johnson, Li & Rabinovic 2007).

Every voxel g of a volume from site i is taken as alpha_g + sigma_g (gamma_ig + delta_ig * noise).
The site's offsets gamma and scales delta are estimated per voxel and drawn towards what is usual
at that site, by the paper's parametric empirical Bayes; their effect is then removed.
There are no covariates: the one that matters is the label, and a test label must not be used.

No package does this here (tried in 2026).  neuroHarmonize 2.5.2 requires NumPy below 2; installed
beside NumPy 2.4 all the same, it agrees with this code to 3e-8, but returns NaN everywhere if one
voxel is constant (background is), fails on new volumes unless they come from all the sites, and
needs pandas, statsmodels and 14 times the memory.  combatlearn 2.3 takes its priors over sites
instead of over voxels, and left a quarter of a plain shift in.  neuroCombat has had no release
since 2021 and fails on new volumes under NumPy 2.
"""

import dataclasses

import numpy as np

from experiments.data.problems import DataError

_BLOCK = 65_536  # voxels at a time: 0.5 MB in float64 per volume of a site
_TOLERANCE = 1e-4  # relative, of the fixed point; as in the paper's own program
_MOST_ITERATIONS = 1000


@dataclasses.dataclass(frozen=True)
class Combat:
    """A fitted model.

    Attributes:
      sites: (S,) names, sorted.
      mean: (V,) float64, alpha.
      std: (V,) float64, sigma; 0 at voxels that are left as they are, because they are constant
        within some site (background).
      offset: (S, V) float64, gamma*, in units of ``std``.
      scale: (S, V) float64, delta*, likewise.
    """

    sites: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, volumes: np.ndarray, sites: np.ndarray) -> "Combat":
        """Estimates the sites' offsets and scales.

        Args:
          volumes: (N, ...) training volumes; may be a memory map.
          sites: (N,) name of the site of each; at least two sites, of two volumes or more.

        Raises:
          DataError: no voxel varies within every site.
        """
        names, index = np.unique(np.asarray(sites), return_inverse=True)
        counts = np.bincount(index)
        means, variances = _moments(volumes.reshape(len(volumes), -1), index, len(names))
        mean = counts @ means / len(volumes)
        within = (counts - 1) @ variances / len(volumes)
        varies = (variances > 0).all(axis=0)
        if not varies.any():
            raise DataError("harmonise: no voxel varies within every site")
        std = np.where(varies, np.sqrt(within), 0)
        offset = np.zeros_like(means)
        scale = np.ones_like(means)
        for i, count in enumerate(counts):
            gamma = (means[i, varies] - mean[varies]) / std[varies]
            delta2 = variances[i, varies] / within[varies]
            offset[i, varies], squared = _shrink(gamma, delta2, int(count))
            scale[i, varies] = np.sqrt(squared)
        return cls(names, mean, std, offset, scale)

    def apply(self, volumes: np.ndarray, sites: np.ndarray) -> None:
        """Removes the sites' effects in place, and clips to [0, 1].

        Args:
          volumes: (N, ...) of the shape fitted on; may be a memory map.
          sites: (N,) names, all of them among the fitted.
        """
        flat = volumes.reshape(len(volumes), -1)
        used = self.std > 0
        mean, std = self.mean[used], self.std[used]
        for row, i in enumerate(np.searchsorted(self.sites, np.asarray(sites))):
            # alpha + sigma (z - gamma*) / delta*, with z = (value - alpha) / sigma
            level = mean + std * self.offset[i, used]
            changed = mean + (flat[row, used] - level) / self.scale[i, used]
            flat[row, used] = np.clip(changed, 0, 1)


def _moments(flat: np.ndarray, index: np.ndarray, sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns means and variances (over n - 1) per site and voxel, each (S, V) float64."""
    means = np.empty((sites, flat.shape[1]))
    variances = np.empty_like(means)
    for start in range(0, flat.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        for i in range(sites):
            values = flat[index == i, block].astype(np.float64)
            means[i, block] = values.mean(axis=0)
            variances[i, block] = values.var(axis=0, ddof=1)
    return means, variances


def _shrink(gamma: np.ndarray, delta2: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates the posterior offsets and squared scales of one site (section 3.1 of the paper).

    Over the voxels, offsets have a normal prior and squared scales an inverse gamma prior, with
    parameters by the method of moments.  The two posterior means depend on each other, and are
    iterated to their fixed point.

    Args:
      gamma: (V,) mean of the site's standardised values.
      delta2: (V,) their variance over n - 1.
      count: n, volumes of the site.

    Returns:
      gamma*, delta*^2, each (V,).
    """
    centre, spread = gamma.mean(), gamma.var(ddof=1) if len(gamma) > 1 else 0.0
    usual, variance = delta2.mean(), delta2.var(ddof=1) if len(delta2) > 1 else 0.0
    if spread == 0 or variance == 0:  # nothing to learn from the other voxels
        return gamma, delta2
    shape = 2 + usual**2 / variance
    rate = usual * (shape - 1)
    offset, scale2 = gamma, delta2
    for _ in range(_MOST_ITERATIONS):
        before = offset, scale2
        offset = (count * spread * gamma + scale2 * centre) / (count * spread + scale2)
        squares = (count - 1) * delta2 + count * (gamma - offset) ** 2
        scale2 = (rate + squares / 2) / (count / 2 + shape - 1)
        change = max(
            np.max(np.abs(offset - before[0]) / np.maximum(np.abs(before[0]), 1e-6)),
            np.max(np.abs(scale2 - before[1]) / before[1]),
        )
        if change < _TOLERANCE:
            break
    return offset, scale2
