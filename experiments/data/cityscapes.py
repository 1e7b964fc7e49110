"""Images and label maps in the folder layout of Cityscapes (Cordts et al. 2016).

``leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`` are the images and
``gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`` (or ``..._labelTrainIds.png``) their labels; cities
and frame sizes are free.  Label files have one channel of 8 bits or a palette, whose indices are
the labels.  Frames are decoded one by one and kept at the configured size only.
"""

import functools
import importlib.metadata
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.configs.data import CityscapesData
from experiments.data import split
from experiments.data.cache import Allocate, cached, source_key
from experiments.data.examples import Dataset, Examples
from experiments.data.problems import DataError, OnProgress, decode_all, raise_problems
from experiments.errors import ConfigError
from steinnorm.attacks import VOID

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

_KNOWN = {
    "labelIds": (*range(34), 255),  # 255: the labelId -1 (licence plates) in 8 bits
    "trainIds": (*range(len(CLASSES)), 255),
}
_IMAGE_MODES = ("RGB", "RGBA", "P", "L", "LA")  # 8 bits per channel; all but the first converted
_IMAGE_END = "_leftImg8bit.png"
_LABEL_ENDS = {"labelIds": "_gtFine_labelIds.png", "trainIds": "_gtFine_labelTrainIds.png"}

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
    return Dataset(
        parts["train"],
        parts["validation"],
        parts["test"],
        classes=len(CLASSES),
        class_names=tuple(CLASSES),
    )


def _split(config: CityscapesData, data_dir: Path) -> dict[str, list[Frame]]:
    """Returns the frames of each part, in its order."""
    if config.validation == "folder":
        folders = {"train": "train", "validation": "val", "test": "test"}
    else:
        folders = {"train": "train", "test": "val"}
    problems: list[str] = []
    found = {
        part: _frames(data_dir, name, config.labels, problems) for part, name in folders.items()
    }
    raise_problems(problems)
    orders = {
        part: split.shuffled_order(len(frames), config.split_seed, stream)
        for stream, (part, frames) in enumerate(found.items())
    }
    if config.validation == "split":
        kept = split.count_of_share(
            len(found["train"]), config.validation_share, "validation_share"
        )
        found["validation"] = found["train"]
        orders["validation"], orders["train"] = orders["train"][:kept], orders["train"][kept:]
    orders["train"] = split.first_of(
        orders["train"], config.train_examples, "train_examples", "frames for training"
    )
    if len(orders["train"]) == 0:
        raise ConfigError(f"validation_share {config.validation_share} leaves no training frames")
    return {part: [found[part][i] for i in order] for part, order in orders.items()}


def _frames(data_dir: Path, name: str, kind: str, problems: list[str]) -> list[Frame]:
    """Returns the frames of one folder, sorted by city and name; adds what is missing to problems.

    Args:
      data_dir: the folder with ``leftImg8bit`` and ``gtFine``.
      name: of the folder below these.
      kind: of the label files, a key of ``_LABEL_ENDS``.
      problems: gets one line per missing file.
    """
    label_end = _LABEL_ENDS[kind]
    images = _files(data_dir / "leftImg8bit" / name, _IMAGE_END, problems)
    labels = _files(data_dir / "gtFine" / name, label_end, problems)
    if images is None or labels is None:
        return []
    for stem in sorted(images.keys() - labels.keys()):
        problems.append(f"{images[stem]}: has no labels ({stem}{label_end} in gtFine/{name})")
    for stem in sorted(labels.keys() - images.keys()):
        problems.append(f"{labels[stem]}: has no image ({stem}{_IMAGE_END} in leftImg8bit/{name})")
    return [(images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]


def _files(folder: Path, end: str, problems: list[str]) -> dict[str, Path] | None:
    """Returns the files CITY/STEM + end of a folder, by "CITY/STEM"."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder (expected CITY/*{end} in it)")
        return None
    files = {
        path.relative_to(folder).as_posix().removesuffix(end): path
        for path in folder.glob(f"*/*{end}")
    }
    if not files:
        others = [kind for kind, other in _LABEL_ENDS.items() if any(folder.glob(f"*/*{other}"))]
        hint = f", but *{_LABEL_ENDS[others[0]]}: set data.labels={others[0]}" if others else ""
        problems.append(f"{folder}: no files CITY/*{end}{hint}")
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
    """Returns frames decoded and resized, from the cache if they are there."""
    height, width = config.shape
    if not frames:
        return Examples(
            np.empty((0, height, width, 3), np.uint8), np.empty((0, height, width), np.uint8)
        )

    def build(allocate: Allocate) -> None:
        images = allocate("images", (len(frames), height, width, 3), np.uint8)
        labels = allocate("labels", (len(frames), height, width), np.uint8)
        pixels, lock = np.zeros(256, np.int64), threading.Lock()  # of each value in the label files

        def decode(position: int, frame: Frame) -> None:
            images[position], labels[position], counts = _decode(
                frame, (width, height), config.labels
            )
            with lock:
                pixels[:] += counts

        decode_all(frames, decode, f"{name} frames", on_progress)
        folder = frames[0][1].parents[1]
        if config.labels == "labelIds":
            _check_label_ids(pixels, f"{folder}: the labels of the {name} part")
        if all((one == VOID).all() for one in labels):
            raise DataError(
                f"{folder}: no pixel of the {name} part is of one of the {len(CLASSES)} classes "
                "(the official labels of test are not public: use data.validation=split)"
            )

    key = {
        "files": source_key([file for frame in frames for file in frame], data_dir),
        "shape": config.shape,
        "classes": CLASSES,
        "labels": config.labels,
        "pillow": importlib.metadata.version("pillow"),
    }
    arrays = cached(cache_dir, f"cityscapes-{name}", key, build, on_progress)
    return Examples(arrays["images"], arrays["labels"])


def _check_label_ids(pixels: np.ndarray, where: str) -> None:
    """Refuses a part whose label files hold trainIds under the name of labelIds.

    Both are small numbers, so that they would load as other classes.  Street scenes in labelIds
    have values above 18 (vegetation, sky, person, car); trainIds have none but 255.  Other scenes
    in labelIds may have none either; they are told by what the values 1 to 18 mean: trainIds use
    most of those that no class of labelIds has.

    Args:
      pixels: (256,) number of pixels of each value in the whole part.
      where: the part, as the message begins.

    Raises:
      DataError: these look like trainIds.
    """
    classes = len(CLASSES)
    unused = [value for value in range(classes) if value not in CLASSES.values()]
    if pixels[classes:VOID].any() or not pixels[unused[1:]].any():
        return
    if pixels[VOID] or 2 * pixels[unused].sum() > pixels[:classes].sum():
        raise DataError(
            f"{where} have no value above {classes - 1} but 255: they look like trainIds, not "
            f"labelIds; name the files *{_LABEL_ENDS['trainIds']} and set data.labels=trainIds"
        )


def _decode(
    frame: Frame, size: tuple[int, int], kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes one frame and resizes it to the given (width, height).

    Args:
      frame: its files.
      size: (width, height).
      kind: what the values of the label file are, a key of ``_LABEL_ENDS``.

    Returns:
      (H, W, 3) uint8 image, (H, W) uint8 trainIds, and the (256,) numbers of pixels of each value
      in the label file.

    Raises:
      DataError: the files cannot be read, or are not an image and its labels.
    """
    image, labels = _open(frame[0]), _open(frame[1])
    if image.mode not in _IMAGE_MODES:
        raise DataError(f"{frame[0]}: mode {image.mode}, not an 8-bit colour image")
    if labels.mode not in ("L", "P"):
        hint = f"; take the files *{_LABEL_ENDS[kind]}, not *_gtFine_color.png"
        raise DataError(
            f"{frame[1]}: mode {labels.mode}, not 8 bits in one channel or a palette (modes L, P)"
            f"{hint if labels.mode.startswith('RGB') else ''}"
        )
    if image.size != labels.size:
        raise DataError(
            f"{frame[1]}: {labels.width}x{labels.height} pixels, but its image {frame[0].name} "
            f"has {image.width}x{image.height}"
        )
    values = np.asarray(labels)  # of a palette: the indices
    counts = np.array(labels.histogram())
    strange = [value for value in range(256) if counts[value] and value not in _KNOWN[kind]]
    if strange:
        raise DataError(f"{frame[1]}: the values {strange} are no Cityscapes {kind}")
    labels = Image.fromarray(values if kind == "trainIds" else _train_ids()[values])
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != size:
        # Pillow's bilinear widens its kernel when it shrinks, which is the antialiasing.
        image = image.resize(size, Image.Resampling.BILINEAR)
        labels = labels.resize(size, Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(labels), counts


def _open(file: Path) -> Image.Image:
    """Opens a PNG file and decodes all of it."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # Pillow: a broken PNG is a SyntaxError
        raise DataError(f"{file}: cannot be read, or is cut short ({error})") from error


@functools.cache
def _train_ids() -> np.ndarray:
    """Returns the trainId of every 8-bit labelId, (256,) uint8."""
    table = np.full(256, VOID, np.uint8)
    for train_id, label_id in enumerate(CLASSES.values()):
        table[label_id] = train_id
    return table


def in_file_order(config: CityscapesData, test_frames: int) -> np.ndarray:
    """Returns the positions of the test frames in the order of their files, (test_frames,).

    Args:
      config: with which they were loaded.
      test_frames: how many there are.
    """
    stream = 2 if config.validation == "folder" else 1  # the test is the last part that is split
    return np.argsort(split.shuffled_order(test_frames, config.split_seed, stream))
