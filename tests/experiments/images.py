"""Helpers: pictures read back from PNG, and per-example results to draw."""

import io

import numpy as np
from PIL import Image

from experiments.evaluation.per_example import PerExampleResults, Values


def decoded(png):
    """(H, W, 3) uint8 of a PNG that is not blank."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert pixels.std() > 5
    return pixels


def share(pixels, colour, tolerance=8):
    """Share of the pixels that have about this colour, as (R, G, B) of 0 to 255."""
    return float(np.mean(np.all(np.abs(pixels.astype(int) - np.array(colour)) <= tolerance, -1)))


def results_of(x, x_adv, y, prediction, **about):
    """Results of these examples; classification ones are right where the prediction is."""
    defaults = {
        "config": "digits",
        "norm": "stein",
        "seed": 0,
        "statistics": "running",
        "threat_model": "",
        "attack": "pgd",
        "epsilon": 8 / 255,
        "norm_order": "linf",
        "class_names": [],
        "attack_settings": {},
        "identity": {"weights": "abc"},
    }
    shown = {"x": x, "x_adv": x_adv, "y": y, "prediction": prediction}
    right = (y == prediction).reshape(len(y), -1).all(1)
    zeros = np.zeros(len(y))
    return PerExampleResults(
        {**defaults, **about},
        {"right": right},
        zeros,
        zeros.astype(int),
        Values(0.0, 1.0, 0),
        0,
        shown,
    )
