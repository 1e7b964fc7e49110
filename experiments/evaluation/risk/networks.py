"""Images and trained networks whose layers are measured, and how images are perturbed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.evaluation.attack_batch import as_logits_fn
from experiments.models.norms import in_evaluation
from steinnorm import attacks
from steinnorm.attacks import Threat

CONDITIONS = ("clean", "gaussian", "pgd")
NOISE, RADIUS, STEPS = 0.3, 0.07, 10
"""Root mean square of the noise; radius (l-infinity) and steps of the attack; images in [0, 1]."""

Trained = Callable[[str, int], nnx.Module]
"""Returns the network that was trained with a norm and a seed."""


class Networks(NamedTuple):
    """What the parts on real images need.

    Attributes:
      name: of the configuration.
      trained: trains a network, or returns it where that was done.
      images: (N, H, W, C) in [0, 1], the population of the feature maps: all training images.
      labels: (N,) of them.
      test_images: others, for the Lipschitz constants.
      test_labels: of those.
    """

    name: str
    trained: Trained
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def perturbed(
    condition: str, model: nnx.Module, images: np.ndarray, labels: np.ndarray, seed: int
) -> np.ndarray:
    """Returns images after noise or an attack.

    Args:
      condition: one of ``CONDITIONS``; the attack is PGD on the network with running statistics.
      model: the network, in training mode.
      images: (N, H, W, C) in [0, 1].
      labels: (N,).
      seed: of noise and random starts.
    """
    key = jax.random.key(seed)
    if condition == "clean":
        return images
    if condition == "gaussian":
        return np.asarray(attacks.NOISES["gaussian"](key, images, NOISE, (0.0, 1.0)))
    logits_fn = as_logits_fn(in_evaluation(model, "running"))
    threat = Threat("linf", RADIUS)
    found = attacks.pgd(
        logits_fn,
        images,
        labels,
        threat=threat,
        key=key,
        steps=STEPS,
        random_start=True,
        batch_dependent=False,
    )
    found.check(threat, "pgd")
    return np.asarray(found.x_adv)
