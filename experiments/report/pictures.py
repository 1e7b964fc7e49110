"""Attacked examples as pictures, from what an evaluation kept of the first ones; PNG bytes."""

import io
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.evaluation.per_example import PerExampleResults
from experiments.report import Source, strength
from steinnorm.attacks import VOID

COLUMNS = 6
"""Examples per picture."""

# Okabe & Ito's green and vermilion; right and wrong differ in their signs too.
_RIGHT, _WRONG = "#00795A", "#C44601"
_VOID = "#000000"
# 20 colours that lie apart, also when they are mixed with grey.
_CLASSES = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6"),
    *("#bcf60c", "#fabebe", "#008080", "#e6beff", "#9a6324", "#fffac8", "#800000", "#aaffc3"),
    *("#808000", "#ffd8b1", "#000075", "#808080"),
)
_OVERLAY = 0.7  # share of the class's colour, the rest is the image
_TITLE = 9


def grid(
    attacked: PerExampleResults, clean: PerExampleResults | None = None, *, columns: int = COLUMNS
) -> bytes:
    """Originals, what the attack changed, and the attacked examples, with what the network says.

    Of volumes the middle slice along the first axis.  Changes are enlarged by one factor for all,
    grey being none.

    Args:
      attacked: of an attack; ``shown`` holds at least one example.
      clean: of the same network without attack, for its first answers.
      columns: examples at most.
    """
    shown = _first(attacked, columns)
    before = _answers(clean, shown)
    change = shown["x_adv"] - shown["x"]
    factor = _factor(float(np.abs(change).max()))
    rows = (
        ("original", _slices(shown["x"])),
        (f"change × {factor:g}\n(grey: none)", np.clip(0.5 + factor * _slices(change), 0.0, 1.0)),
        ("attacked", _slices(shown["x_adv"])),
    )
    names = attacked.class_names
    count, (height, width) = len(shown["y"]), rows[0][1].shape[1:3]
    side = 1.75 if width <= 1.3 * height else 2.6
    figure, axes = plt.subplots(
        3,
        count,
        figsize=(side * max(count, 3) + 0.8, 3 * (side * height / width + 0.27) + 0.65),
        squeeze=False,
        layout="constrained",
    )
    for row, (label, images) in zip(axes, rows, strict=True):
        for axis, image in zip(row, images, strict=True):
            _image(axis, image)
        row[0].set_ylabel(label, fontsize=_TITLE + 1)
    for i in range(count):
        truth = _truth(shown["y"][i], names)
        answer = None if before is None else before[i]
        _says(axes[0, i], truth, shown["y"][i], answer, names)
        largest = _distance(change[i], attacked.key.norm_order)
        axes[1, i].set_title(largest, fontsize=_TITLE)
        _says(axes[2, i], "", shown["y"][i], shown["prediction"][i], names)
    more = f"; middle slice of {shown['x'].shape[1]}" if shown["x"].ndim == 5 else ""
    figure.suptitle(_heading(attacked) + more, fontsize=_TITLE + 2)
    return _png(figure)


def segmentation(
    attacked: PerExampleResults, clean: PerExampleResults | None = None, *, columns: int = 4
) -> bytes:
    """Images, true classes, and the classes that the network sees before and under an attack.

    Args:
      attacked: of an attack on label maps; ``shown`` holds at least one example.
      clean: of the same network without attack, for its first answers.
      columns: examples at most.
    """
    shown = _first(attacked, columns)
    before = _answers(clean, shown)
    images, attacked_images = _slices(shown["x"]), _slices(shown["x_adv"])
    truth, void = shown["y"].astype(np.int64), shown["y"] == VOID
    rows: list[tuple[str, np.ndarray, np.ndarray | None]] = [
        ("image", images, None),
        ("truth", images, truth),
    ]
    if before is not None:
        rows.append(("prediction", images, before))
    rows.append(("prediction\nunder attack", attacked_images, shown["prediction"]))
    count, (height, width) = len(truth), truth.shape[1:]
    side = 2.9 if width > 1.3 * height else 2.1
    figure, axes = plt.subplots(
        len(rows),
        count,
        figsize=(side * count + 3.0, len(rows) * (side * height / width + 0.22) + 0.5),
        squeeze=False,
        layout="constrained",
    )
    occurring = {VOID} if void.any() else set()
    for row, (label, under, classes) in zip(axes, rows, strict=True):
        for i, axis in enumerate(row):
            if classes is None:
                _image(axis, under[i])
                continue
            seen = np.where(void[i], VOID, classes[i])
            occurring |= set(np.unique(seen).tolist())
            _image(axis, _overlay(under[i], seen))
            if label != "truth":
                axis.set_title(_share_right(truth[i], seen), fontsize=_TITLE)
        row[0].set_ylabel(label, fontsize=_TITLE + 1)
    names = attacked.class_names
    handles = [Patch(color=_in_legend(c), label=_class_name(c, names)) for c in sorted(occurring)]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=_TITLE)
    figure.suptitle(_heading(attacked), fontsize=_TITLE + 2)
    return _png(figure)


def is_segmentation(cell: PerExampleResults) -> bool:
    """Whether the cell's labels are maps."""
    return "y" in cell.shown and cell.shown["y"].ndim == 3


def class_colour(label: int) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a class; black for void.

    Args:
      label: of the class.
    """
    if label == VOID:
        return to_rgb(_VOID)
    red, green, blue = to_rgb(_CLASSES[label % len(_CLASSES)])
    shade = 0.6 ** (label // len(_CLASSES))  # of more classes: the same, darker
    return red * shade, green * shade, blue * shade


def _first(cell: PerExampleResults, columns: int) -> dict[str, np.ndarray]:
    if not len(cell.shown.get("y", ())):
        raise ValueError("this cell holds no examples to show")
    return {name: value[:columns] for name, value in cell.shown.items()}


def _answers(clean: PerExampleResults | None, shown: dict[str, np.ndarray]) -> np.ndarray | None:
    """The clean predictions of the shown examples; None where they are of others."""
    if clean is None or len(clean.shown.get("x", ())) < len(shown["x"]):
        return None
    same = np.array_equal(clean.shown["x"][: len(shown["x"])], shown["x"])
    return clean.shown["prediction"][: len(shown["x"])] if same else None


def _slices(x: np.ndarray) -> np.ndarray:
    """(k, H, W, C) of images; of volumes (k, D, H, W, C) the middle of D; C is 1 or 3."""
    flat = x[:, x.shape[1] // 2] if x.ndim == 5 else x
    return flat if flat.shape[-1] in (1, 3) else flat[..., :1]


def _factor(largest: float) -> float:
    """1, 2, 3, 4, 5, 6, 8, 10, 20, ...: the most that a change on grey has room for."""
    if largest <= 0:
        return 1.0
    room = 0.5 / largest * 1.001  # differences of float32 numbers are a little off
    decade = 10.0 ** math.floor(math.log10(room))
    return max(m * decade for m in (1, 2, 3, 4, 5, 6, 8) if m * decade <= room)


def _distance(change: np.ndarray, norm_order: str) -> str:
    largest = f"largest {255 * float(np.abs(change).max()):.1f}/255"
    if norm_order != "l2":
        return largest
    return f"{largest}\nl2: {float(np.linalg.norm(change)):.2f}"


def _image(axis: Axes, image: np.ndarray) -> None:
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axis.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])


def _says(
    axis: Axes, truth: str, y: np.ndarray, answer: np.ndarray | None, names: Sequence[str]
) -> None:
    """Writes truth and answer above a picture, and frames it in the colour of right or wrong."""
    if answer is None:
        axis.set_title(truth, fontsize=_TITLE)
        return
    if y.ndim:
        axis.set_title(_share_right(y, answer), fontsize=_TITLE)
        return
    right = int(y) == int(answer)
    colour = _RIGHT if right else _WRONG
    said = f"{'✓' if right else '✗'} says {_class_name(int(answer), names)}"
    axis.set_title(f"{truth}\n{said}".strip(), fontsize=_TITLE, color=colour)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5)


def _share_right(y: np.ndarray, answer: np.ndarray) -> str:
    known = y != VOID
    if not known.any():
        return "all void"
    return f"{100 * np.mean(answer[known] == y[known]):.0f} % of pixels right"


def _truth(y: np.ndarray, names: Sequence[str]) -> str:
    return "" if y.ndim else f"is {_class_name(int(y), names)}"


def _class_name(label: int, names: Sequence[str]) -> str:
    if label == VOID:
        return "void (does not count)"
    return names[label] if label < len(names) else f"class {label}"


def _in_legend(label: int) -> tuple[float, float, float]:
    """As it looks over a medium grey."""
    share = 1.0 if label == VOID else _OVERLAY
    red, green, blue = (share * part + (1 - share) * 0.5 for part in class_colour(label))
    return red, green, blue


def _overlay(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The image in grey under its classes' colours; void is black."""
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    colours = np.zeros_like(grey)
    for label in np.unique(classes):
        colours[classes == label] = class_colour(int(label))
    mixed = (1 - _OVERLAY) * grey + _OVERLAY * colours
    return np.where((classes == VOID)[..., None], 0.0, mixed)


def _heading(attacked: PerExampleResults) -> str:
    key = attacked.key
    source = Source(key.statistics, key.threat_model)
    order = {"linf": "l∞", "l2": "l2"}.get(key.norm_order, key.norm_order)
    kind = f" ({order} ball)" if order else ""
    return (
        f"{key.config}, norm {key.norm}, {source.name} statistics, seed {key.seed}: "
        f"{key.attack} {strength(key.epsilon)}{kind}"
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()
