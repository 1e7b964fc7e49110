"""Risk on real feature maps: the norm layers of a network that was trained with plain batch norm.

In evaluation mode, with running statistics, the inputs of each norm layer are recorded for all
training images.  **The population is this finite set**: the truth of a channel is its mean and its
biased variance over all of its images, clean, and all pixels.  Nothing here speaks of other images.

Batches of distinct images are drawn, clean ones, noisy ones or attacked ones.  The risk of an
estimator is its total squared error over the channels, averaged over batches; the ratio is to the
risk of the sample statistics of the same batches.  Intervals are bootstraps over batches, paired:
all estimators and layers of one resample saw the same batches.
"""

from typing import NamedTuple

import numpy as np

from experiments.evaluation.risk.monte_carlo import Progress, Row, dimension, verdict
from experiments.evaluation.risk.networks import CONDITIONS, Networks, perturbed
from experiments.evaluation.risk.rules import MEANS, SAMPLE, VARIANCES, Draws, Target, estimates
from experiments.models.recording import NormLayer, norm_layers

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCHES, SMOKE_BATCHES, RESAMPLES = 400, 20, 2000
ALL_LAYERS = "all"
_NAMES: dict[Target, tuple[str, ...]] = {"mean": tuple(MEANS), "variance": tuple(VARIANCES)}


class Moments(NamedTuple):
    """The moments of each image of a population, in float64.

    Attributes:
      mean: (N, C), over the image's pixels.
      square: (N, C), mean of the squares about ``shift``.
      shift: (C,), near the means, so that squares lose no digits.
      pixels: of an image.
    """

    mean: np.ndarray
    square: np.ndarray
    shift: np.ndarray
    pixels: int

    @property
    def variance(self) -> np.ndarray:
        """The population's biased variance, (C,)."""
        return self.square.mean(axis=0) - (self.mean.mean(axis=0) - self.shift) ** 2


def image_moments(inputs: np.ndarray) -> Moments:
    """Returns the moments of images (N, ..., C)."""
    values = inputs.astype(np.float64).reshape(len(inputs), -1, inputs.shape[-1])
    shift = values.mean(axis=(0, 1))
    mean, square = values.mean(axis=1), ((values - shift) ** 2).mean(axis=1)
    return Moments(mean, square, shift, values.shape[1])


def draw(images: int, batch_size: int, batches: int, seed: int) -> np.ndarray:
    """Returns indices (batches, batch_size); the images of one batch are distinct."""
    generator = np.random.default_rng((seed, batch_size))
    return np.stack([generator.permutation(images)[:batch_size] for _ in range(batches)])


def batch_draws(moments: Moments, indices: np.ndarray, clean: Moments) -> Draws:
    """Returns the statistics of batches, those of ``batch_statistics(..., noise=True)``.

    Args:
      moments: of the images that the batches consist of.
      indices: (R, B).
      clean: of the population, for what is called known.
    """
    batch, images = indices.shape[1], len(clean.mean)
    means, squares = moments.mean[indices] - moments.shift, moments.square[indices]
    mean = means.mean(axis=1)
    variance = np.maximum(squares.mean(axis=1) - mean**2, 0)
    centred = means - mean[:, None]
    about = squares - 2 * mean[:, None] * means + (mean**2 - variance)[:, None]
    pairs = max(batch * (batch - 1), 1)  # a single image differs from none: noise 0
    spread = np.cov(clean.mean, rowvar=False).reshape((clean.mean.shape[1],) * 2)
    left = 1 - batch / images  # batches are drawn without replacement
    return Draws(
        mean=mean + moments.shift,
        variance=variance,
        mean_noise=(centred**2).sum(axis=1) / pairs,
        variance_noise=(about**2).sum(axis=1) / pairs,
        dimension=dimension(centred) if batch > 1 else np.ones(len(indices)),
        values=batch * moments.pixels,
        examples=batch,
        known_noise=np.diag(spread) * left / batch,
        known_dimension=true_dimension(clean),
    )


def true_dimension(moments: Moments) -> float:
    """Returns tr S / lmax of the covariance of the images' channel means."""
    return float(dimension((moments.mean - moments.mean.mean(axis=0))[None])[0])


def measure(networks: Networks, seed: int, smoke: bool, progress: Progress) -> list[Row]:
    """Part ``maps``: rows per layer and over all layers, by condition, batch size and estimator."""
    model = networks.trained("batch", seed)
    clean = norm_layers(model, networks.images)
    population = [image_moments(layer.inputs) for layer in clean]
    conditions = CONDITIONS[:2] if smoke else CONDITIONS
    sizes = (2, 8) if smoke else BATCH_SIZES
    rows: list[Row] = [
        {"kind": "layer", "layer": layer.name, "channels": m.mean.shape[1],
         "dimension": true_dimension(m)}
        for layer, m in zip(clean, population, strict=True)
    ]  # fmt: skip
    for place, condition in enumerate(conditions):
        images = perturbed(condition, model, networks.images, networks.labels, seed)
        layers = clean if condition == "clean" else norm_layers(model, images)
        moments = [image_moments(layer.inputs) for layer in layers]
        for done, size in enumerate(sizes):
            progress(place * len(sizes) + done, len(conditions) * len(sizes), f"{condition} maps")
            found = ratios(
                clean, population, moments, size, SMOKE_BATCHES if smoke else BATCHES, seed
            )
            rows += [{"kind": "ratio", "condition": condition, **row} for row in found]
    return rows


def ratios(  # noqa: PLR0917
    layers: list[NormLayer],
    population: list[Moments],
    moments: list[Moments],
    batch_size: int,
    batches: int,
    seed: int,
) -> list[Row]:
    """Returns ratios of risks at one batch size, per layer and over all layers.

    Args:
      layers: of one network, in evaluation, clean.
      population: the moments of each, clean: the truth.
      moments: of the images that batches are drawn from; of the same images, maybe perturbed.
      batch_size: images per batch.
      batches: how many are drawn; the same for all layers.
      seed: of the batches.
    """
    indices = draw(len(population[0].mean), batch_size, batches, seed)
    per_layer = [_errors(*each, indices) for each in zip(layers, population, moments, strict=True)]
    # How often each batch is in each resample: one draw for all layers and estimators pairs them.
    generator = np.random.default_rng((seed, batch_size, 1))
    weights = generator.multinomial(batches, np.full(batches, 1 / batches), RESAMPLES)
    rows = []
    for key in per_layer[0]:
        target, estimator = key
        own = np.stack([errors[key] for errors in per_layer], axis=1)
        reference = np.stack([errors[target, SAMPLE] for errors in per_layer], axis=1)
        ratio = _with_average(own.mean(0) / reference.mean(0))
        low, high = np.quantile(
            _with_average((weights @ own) / (weights @ reference)), [0.025, 0.975], axis=0
        )
        for i, name in enumerate([*(layer.name for layer in layers), ALL_LAYERS]):
            behind = ratio[:-1] if name == ALL_LAYERS else ratio[[i]]
            rows.append(
                {
                    "target": target,
                    "estimator": estimator,
                    "batch_size": batch_size,
                    "layer": name,
                    "ratio": float(ratio[i]),
                    "lowest": float(behind.min()),
                    "highest": float(behind.max()),
                    "ci_low": float(low[i]),
                    "ci_high": float(high[i]),
                    "verdict": verdict(float(low[i]), float(high[i])),
                    # Over all layers there is no risk: their units differ.
                    "risk": None if name == ALL_LAYERS else float(own[:, i].mean()),
                    "batches": batches,
                }
            )
    return rows


def _with_average(values: np.ndarray) -> np.ndarray:
    """Appends the geometric mean over the layers, the last axis."""
    return np.append(values, np.exp(np.log(values).mean(-1, keepdims=True)), axis=-1)


def _errors(
    layer: NormLayer, clean: Moments, moments: Moments, indices: np.ndarray
) -> dict[tuple[Target, str], np.ndarray]:
    """Returns the total squared errors (R,) of every estimator."""
    draws = batch_draws(moments, indices, clean)
    running = (np.asarray(layer.running.mean), np.asarray(layer.running.variance))
    truth: dict[Target, np.ndarray] = {"mean": clean.mean.mean(axis=0), "variance": clean.variance}
    return {
        (target, name): np.sum((value - truth[target]) ** 2, axis=1)
        for target, names in _NAMES.items()
        for name, value in estimates(target, draws, running, names).items()
    }
