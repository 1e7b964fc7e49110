"""Pictures of the first examples: clean, attacked and the difference; needs matplotlib."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from steinnorm.attacks._criterion import VOID
from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness.plots import png
from steinnorm.attacks.robustness.tables import radius_text

_COLUMNS = 6
_RIGHT, _WRONG = (
    "#00795A",
    "#C44601",
)  # dark green and vermilion after Okabe & Ito; the titles' signs differ too


def are_images(results: PerExample) -> bool:
    """Returns whether the kept examples are images: (k, H, W, C) with C = 1 or 3."""
    x = results.shown.get("x")
    return x is not None and len(x) > 0 and x.ndim == 4 and x.shape[-1] in (1, 3)


def picture(
    attacked: PerExample,
    clean: PerExample,
    bounds: Any,
    class_names: Sequence[str] = (),
    norm_order: str = "",
) -> bytes:
    """Returns three rows of images with the model's predictions, as PNG.

    Args:
      attacked: results of an attack for which ``are_images`` holds.
      clean: results of the clean inputs.
      bounds: values shown as black and white; None for the smallest and largest values.
      class_names: names of the classes; may be empty.
      norm_order: norm of the ball; empty if there is none.
    """
    shown = {name: values[:_COLUMNS] for name, values in attacked.shown.items()}
    x, x_adv, y = shown["x"], shown["x_adv"], shown["y"]
    low, high = (x.min(), x.max()) if bounds is None else (np.asarray(b) for b in bounds)
    change = (x_adv - x) / (2 * max(float(np.abs(x_adv - x).max()), 1e-12)) + 0.5
    largest = float(np.abs(x_adv - x).max())
    rows = (
        ("clean", (x - low) / (high - low)),
        ("attacked", (x_adv - low) / (high - low)),
        (f"difference\n(white: +{largest:.3g})", change),
    )
    predictions_of_rows = (clean.shown["prediction"][: len(x)], shown["prediction"], None)
    figure = Figure(figsize=(1.8 * max(len(x), 3) + 0.8, 6.2), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    for line, (label, images), predictions in zip(axes, rows, predictions_of_rows, strict=True):
        line[0].set_ylabel(label)
        for place, axis in enumerate(line):
            axis.imshow(
                np.clip(images[place], 0, 1).squeeze(-1)
                if x.shape[-1] == 1
                else np.clip(images[place], 0, 1),
                cmap="gray",
                vmin=0.0,
                vmax=1.0,
                interpolation="nearest",
            )
            axis.set_xticks([])
            axis.set_yticks([])
            if predictions is not None:
                text, right = _title(y[place], predictions[place], class_names)
                axis.set_title(text, fontsize=9, color=_RIGHT if right else _WRONG)
    about = attacked.about
    figure.suptitle(f"{about['attack']} {radius_text(about['epsilon'], norm_order)}")
    return png(figure)


def _title(y: np.ndarray, prediction: np.ndarray, names: Sequence[str]) -> tuple[str, bool]:
    if y.ndim:
        labelled = y != VOID
        share = float(np.mean(prediction[labelled] == y[labelled])) if labelled.any() else 0.0
        return f"{100 * share:.0f} % of pixels right", share == 1.0
    right, label = bool(y == prediction), int(prediction)
    name = names[label] if label < len(names) else str(label)
    return f"{'✓' if right else '✗'} says {name}", right
