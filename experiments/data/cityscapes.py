"""Images and label maps in the folder layout of Cityscapes (Cordts et al. 2016).

``leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`` are the images and
``gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`` their labels; cities and frame sizes are free.
Frames are decoded one by one and kept at the configured size only.
"""

import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.configs.data import VOID, CityscapesData
from experiments.data import split
from experiments.data.cache import Allocate, OnProgress, cached, fill, report, source_key
from experiments.data.examples import DataError, Dataset, Examples
from experiments.errors import ConfigError

CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The 19 evaluated classes in the order of their trainIds, with their labelIds."""

_LABEL_IDS = (*range(34), 255)  # 255: the labelId -1 (licence plates) in 8 bits
_IMAGE_MODES = ("RGB", "RGBA", "P", "L", "LA")  # 8 bits per channel; all but the first converted
_IMAGE_END = "_leftImg8bit.png"
_LABEL_END = "_gtFine_labelIds.png"

Frame = tuple[Path, Path]
"""The files of an image and of its labels."""


def load(
    config: CityscapesData,
    data_dir: Path,
    cache_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Loads, resizes and splits frames.

    Args:
      config: size and split.
      data_dir: the folder with ``leftImg8bit`` and ``gtFine``.
      cache_dir: where resized frames are kept, one entry per part in the part's order, so that
        the parts are memory maps (a seed of its own has entries of its own); None to decode every
        time and hold everything in memory.
      on_progress: called with (done, total, what).

    Returns:
      Images (N, H, W, 3) uint8 and labels (N, H, W) uint8, trainIds 0 to 18 or ``VOID``; all
      parts in random order.

    Raises:
      ConfigError: more frames were asked for than there are.
      DataError: the files are not as described; up to ten problems at once.
    """
    parts = {
        name: _part(
            frames, config, data_dir, cache_dir=cache_dir, name=name, on_progress=on_progress
        )
        for name, frames in _split(config, data_dir).items()
    }
    return Dataset(**parts, classes=len(CLASSES), class_names=tuple(CLASSES))


def _split(config: CityscapesData, data_dir: Path) -> dict[str, list[Frame]]:
    """Frames of each part, in its order."""
    if config.validation == "folder":
        folders = {"train": "train", "validation": "val", "test": "test"}
    else:
        folders = {"train": "train", "test": "val"}
    problems: list[str] = []
    found = {part: _frames(data_dir, name, problems) for part, name in folders.items()}
    report(problems)
    orders = {
        part: split.shuffled(len(frames), config.split_seed, stream)
        for stream, (part, frames) in enumerate(found.items())
    }
    if config.validation == "split":
        kept = split.share_of(len(found["train"]), config.validation_share, "validation_share")
        found["validation"] = found["train"]
        orders["validation"], orders["train"] = orders["train"][:kept], orders["train"][kept:]
    orders["train"] = split.first(
        orders["train"], config.train_examples, "train_examples", "frames for training"
    )
    if len(orders["train"]) == 0:
        raise ConfigError(f"validation_share {config.validation_share} leaves no training frames")
    return {part: [found[part][i] for i in order] for part, order in orders.items()}


def _frames(data_dir: Path, name: str, problems: list[str]) -> list[Frame]:
    """The frames of one folder, sorted by city and name; what is missing is added to problems."""
    images = _files(data_dir / "leftImg8bit" / name, _IMAGE_END, problems)
    labels = _files(data_dir / "gtFine" / name, _LABEL_END, problems)
    if images is None or labels is None:
        return []
    for stem in sorted(images.keys() - labels.keys()):
        problems.append(f"{images[stem]}: has no labels ({stem}{_LABEL_END} in gtFine/{name})")
    for stem in sorted(labels.keys() - images.keys()):
        problems.append(f"{labels[stem]}: has no image ({stem}{_IMAGE_END} in leftImg8bit/{name})")
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]


def _files(folder: Path, end: str, problems: list[str]) -> dict[str, Path] | None:
    """Files CITY/STEM + end of a folder, by "CITY/STEM"."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder (expected CITY/*{end} in it)")
        return None
    files = {
        path.relative_to(folder).as_posix().removesuffix(end): path
        for path in folder.glob(f"*/*{end}")
    }
    if not files:
        problems.append(f"{folder}: no files CITY/*{end}")
        return None
    return files


def _part(
    frames: Sequence[Frame],
    config: CityscapesData,
    data_dir: Path,
    *,
    cache_dir: Path | None,
    name: str,
    on_progress: OnProgress | None,
) -> Examples:
    """Frames decoded and resized, from the cache if they are there."""
    height, width = config.shape
    if not frames:
        return Examples(
            np.empty((0, height, width, 3), np.uint8), np.empty((0, height, width), np.uint8)
        )

    def build(allocate: Allocate) -> None:
        images = allocate("images", (len(frames), height, width, 3), np.uint8)
        labels = allocate("labels", (len(frames), height, width), np.uint8)

        def decode(position: int, frame: Frame) -> None:
            images[position], labels[position] = _decode(frame, (width, height))

        report(fill(frames, decode, f"{name} frames", on_progress))
        if all((one == VOID).all() for one in labels):
            raise DataError(
                f"{frames[0][1].parents[1]}: no pixel of the {name} part is of one of the "
                f"{len(CLASSES)} classes (the official labels of test are not public: use "
                "validation = split)"
            )

    key = {
        "files": source_key([file for frame in frames for file in frame], data_dir),
        "shape": config.shape,
        "classes": CLASSES,
        "pillow": importlib.metadata.version("pillow"),
    }
    arrays = cached(cache_dir, f"cityscapes-{name}", key, build)
    return Examples(arrays["images"], arrays["labels"])


def _decode(frame: Frame, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One frame at the given (width, height).

    Returns:
      (H, W, 3) uint8 image, (H, W) uint8 trainIds.

    Raises:
      DataError: the files cannot be read, or are not an image and its labels.
    """
    image, labels = _open(frame[0]), _open(frame[1])
    if image.mode not in _IMAGE_MODES:
        raise DataError(f"{frame[0]}: mode {image.mode}, not an 8-bit colour image")
    if labels.mode != "L":
        raise DataError(
            f"{frame[1]}: mode {labels.mode}, not 8 bits in one channel (mode L); take the files "
            "labelIds, not color"
        )
    if image.size != labels.size:
        raise DataError(
            f"{frame[1]}: {labels.width}x{labels.height} pixels, but its image {frame[0].name} "
            f"has {image.width}x{image.height}"
        )
    counts = labels.histogram()
    strange = [value for value in range(256) if counts[value] and value not in _LABEL_IDS]
    if strange:
        raise DataError(f"{frame[1]}: the values {strange} are no Cityscapes labelIds")
    labels = labels.point(_train_ids())
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != size:
        # Pillow's bilinear widens its kernel when it shrinks, which is the antialiasing.
        image = image.resize(size, Image.Resampling.BILINEAR)
        labels = labels.resize(size, Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(labels)


def _open(file: Path) -> Image.Image:
    """A PNG file, decoded in full."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # Pillow: a broken PNG is a SyntaxError
        raise DataError(f"{file}: cannot be read, or is cut short ({error})") from error


@functools.cache
def _train_ids() -> list[int]:
    """The trainId of every 8-bit labelId."""
    table = [VOID] * 256
    for train_id, label_id in enumerate(CLASSES.values()):
        table[label_id] = train_id
    return table
