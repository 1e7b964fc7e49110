"""Attacked examples as pictures, from what an evaluation kept of the first ones; PNG bytes."""

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.evaluation.per_example import PerExampleResults
from experiments.report.labels import Source, strength
from experiments.report.plots import style
from steinnorm.attacks import VOID

COLUMNS = 5
"""Examples per picture: as many as have room for their classes' names."""

# Okabe & Ito's green and vermilion; right and wrong differ in their signs too.
_RIGHT, _WRONG = "#00795A", "#C44601"
_VOID = "#000000"
# The colours of Cityscapes' trainIds, by which readers know the classes.
CITYSCAPES_COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""Name of a class of Cityscapes -> red, green and blue of 0 to 255."""

# For other classes 20 colours that lie apart, also when they are mixed with grey.
_CLASSES = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6"),
    *("#bcf60c", "#fabebe", "#008080", "#e6beff", "#9a6324", "#fffac8", "#800000", "#aaffc3"),
    *("#808000", "#ffd8b1", "#000075", "#808080"),
)
_OVERLAY = 0.7  # share of the class's colour, the rest is the image
_TITLE = 9  # points
_LARGEST, _NARROWEST = 2.6, 4.0  # inches of a picture and of a figure
_LETTERS_PER_INCH = 14.7  # of a line above a picture
# How far from grey the largest change is drawn, of 0.5: at the ends of the range every change of
# one size would be black, white or a full colour, whichever its kind.
_ROOM = 0.35


def grid(
    attacked: PerExampleResults, clean: PerExampleResults | None = None, *, columns: int = COLUMNS
) -> bytes:
    """Draws originals, what the attack changed, and attacked examples, with their classes.

    Above a picture stand the true and the predicted class.  Examples that were right before the
    attack come first.  Of volumes the middle slice along the first axis is shown.  Changes are
    enlarged by one factor for all, chosen from the largest change that is shown; grey is none.

    Args:
      attacked: of an attack; ``shown`` holds at least one example.
      clean: of the same network without attack, for its first answers.
      columns: examples at most.

    Returns:
      PNG bytes.

    Raises:
      ValueError: ``attacked`` holds no examples.
    """
    shown, before = _right_ones_first(attacked, clean, columns)
    change = shown["x_adv"] - shown["x"]
    factor = _factor(float(np.abs(change).max()))
    rows = (
        ("original", _slices(shown["x"])),
        (f"change × {factor:g}\n(grey: none)", np.clip(0.5 + factor * _slices(change), 0.0, 1.0)),
        ("attacked", _slices(shown["x_adv"])),
    )
    names = attacked.class_names
    height, width = rows[0][1].shape[1:3]
    with style.letters():
        figure, axes = plt.subplots(
            3,
            len(shown["y"]),
            figsize=_size(3, len(shown["y"]), height / width, 0.37),
            squeeze=False,
            layout="constrained",
        )
        for row, (label, images) in zip(axes, rows, strict=True):
            for axis, image in zip(row, images, strict=True):
                _image(axis, image)
            row[0].set_ylabel(label)
        letters = int(_LETTERS_PER_INCH * (figure.get_figwidth() - 0.8) / len(shown["y"]))
        for i, y in enumerate(shown["y"]):
            if before is None:
                axes[0, i].set_title(
                    "" if y.ndim else _line("true", int(y), names, letters), fontsize=_TITLE
                )
            else:
                _title_answer(axes[0, i], y, before[i], names, letters)
            largest = _distance(change[i], attacked.key.norm_order)
            axes[1, i].set_title(largest, fontsize=_TITLE)
            _title_answer(axes[2, i], y, shown["prediction"][i], names, letters)
        more = f"; middle slice of {shown['x'].shape[1]}" if shown["x"].ndim == 5 else ""
        _add_heading(figure, _heading(attacked) + more)
        return style.png(figure)


def segmentation(
    attacked: PerExampleResults, clean: PerExampleResults | None = None, *, columns: int = 4
) -> bytes:
    """Draws images, true classes, and the predicted ones before and under an attack.

    Args:
      attacked: of an attack on label maps; ``shown`` holds at least one example.
      clean: of the same network without attack, for its first answers.
      columns: examples at most.

    Returns:
      PNG bytes.

    Raises:
      ValueError: ``attacked`` holds no examples.
    """
    shown, before = _first(attacked, clean, columns)
    images, attacked_images = _slices(shown["x"]), _slices(shown["x_adv"])
    truth, void = shown["y"].astype(np.int64), shown["y"] == VOID
    rows: list[tuple[str, np.ndarray, np.ndarray | None]] = [
        ("image", images, None),
        ("truth", images, truth),
    ]
    if before is not None:
        rows.append(("prediction", images, before))
    rows.append(("prediction\nunder attack", attacked_images, shown["prediction"]))
    names = attacked.class_names
    height, width = truth.shape[1:]
    occurring = {VOID} if void.any() else set()
    with style.letters():
        figure, axes = plt.subplots(
            len(rows),
            len(truth),
            figsize=_size(len(rows), len(truth), height / width, 0.22, below=0.9),
            squeeze=False,
            layout="constrained",
        )
        for row, (label, under, classes) in zip(axes, rows, strict=True):
            for i, axis in enumerate(row):
                if classes is None:
                    _image(axis, under[i])
                    continue
                seen = np.where(void[i], VOID, classes[i])
                occurring |= set(np.unique(seen).tolist())
                _image(axis, _overlay(under[i], seen, names))
                if label != "truth":
                    axis.set_title(_share_right(truth[i], seen), fontsize=_TITLE)
            row[0].set_ylabel(label)
        figure.legend(
            handles=[
                Patch(color=_in_legend(c, names), label=_class_name(c, names))
                for c in sorted(occurring)
            ],
            loc="outside lower center",
            ncols=max(1, round(figure.get_figwidth() / 1.5)),
            frameon=False,
            fontsize=_TITLE,
        )
        _add_heading(figure, _heading(attacked))
        return style.png(figure)


def is_segmentation(results: PerExampleResults) -> bool:
    """Returns whether the labels are maps."""
    return "y" in results.shown and results.shown["y"].ndim == 3


def class_colour(label: int, names: Sequence[str] = ()) -> tuple[float, float, float]:
    """Returns red, green and blue in [0, 1] of a class; black for void.

    Args:
      label: of the class.
      names: of all classes; where all are classes of Cityscapes, the colours are its own.
    """
    if label == VOID:
        return to_rgb(_VOID)
    if label < len(names) and all(name in CITYSCAPES_COLOURS for name in names):
        red, green, blue = CITYSCAPES_COLOURS[names[label]]
        return red / 255, green / 255, blue / 255
    red_part, green_part, blue_part = to_rgb(_CLASSES[label % len(_CLASSES)])
    shade = 0.6 ** (label // len(_CLASSES))  # of more classes: the same, darker
    return red_part * shade, green_part * shade, blue_part * shade


_Shown = tuple[dict[str, np.ndarray], np.ndarray | None]
"""Arrays of the examples that are shown, and the clean predictions, None where there are none."""


def _first(attacked: PerExampleResults, clean: PerExampleResults | None, columns: int) -> _Shown:
    if not len(attacked.shown.get("y", ())):
        raise ValueError("these results hold no examples to show")
    shown = {name: value[:columns] for name, value in attacked.shown.items()}
    return shown, _answers(clean, shown)


def _right_ones_first(
    attacked: PerExampleResults, clean: PerExampleResults | None, columns: int
) -> _Shown:
    """Returns examples in their order, but those first that were right before the attack.

    An attack on what was wrong already shows nothing.
    """
    shown, before = _first(attacked, clean, len(attacked.shown.get("y", ())))
    if before is not None and shown["y"].ndim == 1:
        order = np.argsort(before != shown["y"], kind="stable")
        shown = {name: value[order] for name, value in shown.items()}
        before = before[order]
    shown = {name: value[:columns] for name, value in shown.items()}
    return shown, None if before is None else before[:columns]


def _answers(clean: PerExampleResults | None, shown: dict[str, np.ndarray]) -> np.ndarray | None:
    """Returns the clean predictions of the shown examples; None where they are of others."""
    if clean is None or len(clean.shown.get("x", ())) < len(shown["x"]):
        return None
    same = np.array_equal(clean.shown["x"][: len(shown["x"])], shown["x"])
    return clean.shown["prediction"][: len(shown["x"])] if same else None


def _size(
    rows: int, columns: int, height_of_width: float, title: float, below: float = 0.0
) -> tuple[float, float]:
    """Returns inches of a figure in which pictures fill the width, titles above each row."""
    side = min((style.WIDTH - 0.8) / columns, _LARGEST / max(1.0, height_of_width))
    height = rows * (side * height_of_width + title) + 0.45 + below
    return max(_NARROWEST, side * columns + 0.8), height


def _slices(x: np.ndarray) -> np.ndarray:
    """Returns (k, H, W, C) of images; of volumes (k, D, H, W, C) the middle of D; C is 1 or 3."""
    flat = x[:, x.shape[1] // 2] if x.ndim == 5 else x
    return flat if flat.shape[-1] in (1, 3) else flat[..., :1]


def _factor(largest: float) -> float:
    """Returns the largest of 1, 2, 3, 4, 5, 6, 8, 10, 20, ... that leaves changes unsaturated."""
    if largest <= 0:
        return 1.0
    room = _ROOM / largest * 1.001  # differences of float32 numbers are a little off
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


def _title_answer(
    axis: Axes, y: np.ndarray, answer: np.ndarray, names: Sequence[str], letters: int
) -> None:
    """Writes true and predicted class above a picture; colours say which are right."""
    if y.ndim:
        axis.set_title(_share_right(y, answer), fontsize=_TITLE)
        return
    right = int(y) == int(answer)
    colour = _RIGHT if right else _WRONG
    predicted = _line("✓ predicted" if right else "✗ predicted", int(answer), names, letters)
    axis.set_title(
        f"{_line('true', int(y), names, letters)}\n{predicted}", fontsize=_TITLE, color=colour
    )
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5)


def _line(what: str, label: int, names: Sequence[str], letters: int) -> str:
    """Returns a line of a title; what does not fit goes on below."""
    return "\n".join(textwrap.wrap(f"{what}: {_class_name(label, names)}", letters))


def _share_right(y: np.ndarray, answer: np.ndarray) -> str:
    known = y != VOID
    if not known.any():
        return "all void"
    return f"{100 * np.mean(answer[known] == y[known]):.0f} % of pixels right"


def _class_name(label: int, names: Sequence[str]) -> str:
    if label == VOID:
        return "void (does not count)"
    return names[label] if label < len(names) else f"class {label}"


def _in_legend(label: int, names: Sequence[str]) -> tuple[float, float, float]:
    """Returns a class's colour as it looks over a medium grey."""
    share = 1.0 if label == VOID else _OVERLAY
    red, green, blue = (share * part + (1 - share) * 0.5 for part in class_colour(label, names))
    return red, green, blue


def _overlay(image: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns the image in grey under its classes' colours; void is black."""
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    colours = np.zeros_like(grey)
    for label in np.unique(classes):
        colours[classes == label] = class_colour(int(label), names)
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


def _add_heading(figure: Figure, text: str) -> None:
    letters = int(11.5 * figure.get_figwidth())  # at 11 points
    figure.suptitle("\n".join(textwrap.wrap(text, letters)))
