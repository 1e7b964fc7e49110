"""CIFAR-10 through TensorFlow Datasets, without TensorFlow.

A prepared folder ``DIR/cifar10/3.0.2`` of array_record files is read as it is.  Where there is
none, TFDS downloads the original (170 MB, the University of Toronto) and prepares it in DIR once.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import socket
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.configs.data import Cifar10Data
from experiments.data import split
from experiments.data.cache import Allocate, cached, source_key
from experiments.data.examples import Dataset, Examples
from experiments.data.problems import DataError, OnProgress, first_line

NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
VERSION = "3.0.2"
SHAPE = (32, 32, 3)
HOST = "www.cs.toronto.edu"

_ORIGINAL = "The CIFAR-10 dataset consists of"  # how TFDS's own description begins
_CHUNK = 1000  # images per read: enough to make a call's cost small, 3 MB decoded
_HOW = (
    'prepare it where there is network: python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('cifar10', data_dir='DIR', file_format='array_record').download_and_prepare()\" "
    "(needs TensorFlow; this program prepares it without), and copy DIR/cifar10"
)


def load(
    config: Cifar10Data,
    data_dir: Path,
    cache_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Loads CIFAR-10 and splits its training images by the seed.

    Args:
      config: sizes of the parts and the seed.
      data_dir: TFDS's folder, the one that holds ``cifar10/``.
      cache_dir: where the decoded arrays are kept; None to decode every time (half a minute).
      on_progress: called with (done, total, what).

    Returns:
      Images (N, 32, 32, 3) uint8 and labels (N,) int32.  The first ``validation_share`` of a
      permutation of the training images is for validation, and what follows for training; the
      test images are in a permuted order of their own.

    Raises:
      ConfigError: more images were asked for than there are.
      DataError: the folder holds no usable CIFAR-10 and it cannot be prepared there.
    """
    folder = data_dir / "cifar10" / VERSION
    if not _prepared(folder):
        _prepare(data_dir, folder)
    key = {
        "files": source_key(sorted(p for p in folder.iterdir() if p.is_file()), folder),
        "tfds": importlib.metadata.version("tensorflow-datasets"),
        "pillow": importlib.metadata.version("pillow"),  # decoders of JPEG differ by a little
    }

    def build(allocate: Allocate) -> None:
        with _quiet():
            for part in ("train", "test"):
                _decode(part, data_dir, folder, allocate, on_progress)

    arrays = cached(cache_dir, "cifar10", key, build, on_progress)
    return dataclasses.replace(_split(config, arrays), notes=_description(folder))


def _description(folder: Path) -> tuple[str, ...]:
    """Returns what a prepared folder says it is, where that is not the original CIFAR-10."""
    try:
        said = str(json.loads((folder / "dataset_info.json").read_text()).get("description") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / 'dataset_info.json'} cannot be read ({first_line(error)}): copy or prepare "
            "the folder again"
        ) from error
    sentence = " ".join(said.split()).partition(". ")[0].rstrip(".")
    if not sentence or sentence.startswith(_ORIGINAL):
        return ()
    return (f"The data describe themselves as: {sentence}.",)


def _split(config: Cifar10Data, arrays: dict[str, np.ndarray]) -> Dataset:
    train = Examples(arrays["train_images"], arrays["train_labels"])
    test = Examples(arrays["test_images"], arrays["test_labels"])
    order = split.shuffled_order(len(train), config.split_seed, split.TRAIN)
    kept = split.count_of_share(len(train), config.validation_share, "validation_share")
    chosen = split.first_of(
        order[kept:], config.train_examples, "train_examples", "training images left by validation"
    )
    test_order = split.first_of(
        split.shuffled_order(len(test), config.split_seed, split.TEST),
        config.test_examples,
        "test_examples",
        "test images",
    )
    return Dataset(
        train=train.take(chosen),
        validation=train.take(order[:kept]),
        test=test.take(test_order),
        classes=len(NAMES),
        class_names=NAMES,
    )


def _prepared(folder: Path) -> bool:
    """Returns whether the folder holds a prepared data set.

    Raises:
      DataError: it does, but not completely, or in a form that needs TensorFlow.
    """
    if not (folder / "dataset_info.json").is_file():
        return False
    for part in ("train", "test"):
        if not any(folder.glob(f"cifar10-{part}.array_record-*")):
            raise DataError(
                f"{folder}: prepared, but without files cifar10-{part}.array_record-*; data "
                "prepared as TFRecord cannot be read without TensorFlow: give another folder, or "
                "delete this one, and array_record files are made there"
            )
    return True


def _prepare(data_dir: Path, folder: Path) -> None:
    """Downloads CIFAR-10 with TFDS and prepares it as array_record files."""
    try:
        _reach(HOST)
        with _quiet():
            import tensorflow_datasets as tfds  # noqa: PLC0415

            builder = tfds.builder("cifar10", data_dir=str(data_dir), file_format="array_record")
            # TFDS's own generator opens files with TensorFlow; this one does not.
            builder._generate_examples = _examples_of
            builder.download_and_prepare()
    except Exception as error:  # network, disk, checksum: TFDS raises what its parts raise
        raise DataError(
            f"{data_dir}: holds no prepared CIFAR-10 (expected cifar10/{VERSION}/ with "
            f"dataset_info.json and cifar10-{{train,test}}.array_record-*, looked in {folder}), "
            f"and it could not be downloaded ({first_line(error)}); {_HOW}"
        ) from error


def _reach(host: str) -> None:
    """Checks within seconds that a host can be reached; TFDS itself would try for minutes.

    Raises:
      OSError: it cannot.
    """
    if not urllib.request.getproxies():  # with a proxy, the host need not be known here
        socket.create_connection((host, 443), timeout=15).close()


def _examples_of(prefix: str, paths: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the examples of CIFAR-10's binary files with the ids and keys that TFDS gives them.

    A record is 1 byte of label and 3,072 bytes of image, (3, 32, 32).
    """
    index = 0
    for path in paths:
        for record in np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32):
            image = np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
            encoded = io.BytesIO()  # of an array, TFDS would make a PNG with TensorFlow
            Image.fromarray(image).save(encoded, "PNG")
            encoded.seek(0)
            yield (
                index,
                {"id": f"{prefix}{index:05d}", "label": int(record[0]), "image": encoded},
            )
            index += 1


def _decode(
    part: str, data_dir: Path, folder: Path, allocate: Allocate, on_progress: OnProgress | None
) -> None:
    """Decodes one part into ``PART_images`` and ``PART_labels``, in the order of the files.

    Raises:
      DataError: the folder cannot be read as CIFAR-10.
    """
    with _readable(folder, part), _quiet():
        import tensorflow_datasets as tfds  # noqa: PLC0415

        source = tfds.data_source("cifar10", split=part, data_dir=str(data_dir), download=False)
        count = len(source)
    images = allocate(f"{part}_images", (count, *SHAPE), np.uint8)
    labels = allocate(f"{part}_labels", (count,), np.int32)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        with _readable(folder, part):
            records = source.__getitems__(list(range(start, stop)))
            where = f"{folder}: {part} image"
            _store(records, images[start:stop], labels[start:stop], where, start)
        if on_progress is not None:
            on_progress(stop, count, f"CIFAR-10 {part} images")


@contextlib.contextmanager
def _readable(folder: Path, part: str) -> Iterator[None]:
    """Turns whatever TFDS raises about broken files into a ``DataError`` of one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # protobuf's ParseError, AssertionError, what the file format raises
        raise DataError(
            f"{folder}: the {part} part cannot be read ({first_line(error)}); a file there "
            "(dataset_info.json, or one of the part) is broken: copy or prepare the folder again"
        ) from error


def _store(
    records: list[dict[str, Any]],
    images: np.ndarray,
    labels: np.ndarray,
    where: str,
    start: int,
) -> None:
    """Checks the records of one chunk and writes them to the arrays."""
    for offset, record in enumerate(records):
        image, label = np.asarray(record["image"]), record["label"]
        if image.shape != SHAPE or image.dtype != np.uint8:
            raise DataError(
                f"{where} {start + offset}: {image.dtype} of shape {image.shape}, not uint8 {SHAPE}"
            )
        if not 0 <= label < len(NAMES):
            raise DataError(f"{where} {start + offset}: label {label}, not 0 to {len(NAMES) - 1}")
        images[offset] = image
        labels[offset] = label


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses TFDS's advice to install OpenCV."""
    import absl.logging  # noqa: PLC0415

    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)
