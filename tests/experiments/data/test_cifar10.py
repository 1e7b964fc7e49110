"""CIFAR-10 from prepared folders made here, through TFDS's own writer."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import data
from experiments.configs.data import Cifar10Data
from experiments.data import cifar10
from experiments.data.problems import DataError
from experiments.errors import ConfigError
from tests.experiments.data import real

PER_FILE = 20  # of the original's 10,000 images per file
CONFIG = Cifar10Data()


def _raw(folder, seed=0):
    """The original's binary files, small: labels in the order 0 1 2 ... and random pixels."""
    inner = folder / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    records = []
    for name in names:
        record = rng.integers(0, 256, (PER_FILE, 3073), dtype=np.uint8)
        record[:, 0] = np.arange(PER_FILE) // 2  # sorted by class
        (inner / name).write_bytes(record.tobytes())
        records.append(record)
    (inner / "batches.meta.txt").write_text("\n".join(cifar10.NAMES) + "\n\n")
    return np.concatenate(records)


def _download(monkeypatch, folder):
    """TFDS's own preparation, with the download replaced by files that lie here."""
    import tensorflow_datasets as tfds  # noqa: PLC0415

    monkeypatch.setattr(cifar10, "_reach", lambda host: None)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(folder)
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder, and the records it was made of."""
    root = tmp_path_factory.mktemp("cifar")
    records = _raw(root / "raw")
    with pytest.MonkeyPatch.context() as patch:
        _download(patch, root / "raw")
        data.load(CONFIG, root / "tfds")
    return root / "tfds", records


def _images(records):
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def test_a_copy_that_says_what_it_is_is_told_apart(prepared, tmp_path):
    assert data.load(CONFIG, prepared[0]).notes == ()  # as TFDS describes the original
    info = _copy(prepared, tmp_path) / "dataset_info.json"
    content = json.loads(info.read_text())
    said = "A copy with\n wrong colours. It was made for a test."
    info.write_text(json.dumps(content | {"description": said}))
    (note,) = data.load(CONFIG, tmp_path).notes
    assert note == "The data describe themselves as: A copy with wrong colours."


class _Source:
    """TFDS's data source, of one record over and over."""

    def __init__(self, **record):
        self.record = record

    def __len__(self):
        return 3

    def __getitems__(self, index):
        return [self.record] * len(index)


def _black(*shape):
    return np.zeros(shape, np.uint8)


def test_parts_are_the_originals(prepared):
    folder, records = prepared
    dataset = data.load(CONFIG, folder)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [80, 20, 20]
    assert dataset.classes == 10
    assert dataset.class_names == cifar10.NAMES
    assert dataset.train.inputs.dtype == np.uint8
    assert dataset.train.targets.dtype == np.int32
    label_of = {
        image.tobytes(): label for image, label in zip(_images(records), records[:, 0], strict=True)
    }
    train, test = records[: 5 * PER_FILE], records[5 * PER_FILE :]
    seen = {image.tobytes() for image in (*dataset.train.inputs, *dataset.validation.inputs)}
    assert seen == {image.tobytes() for image in _images(train)}  # disjoint, for all are there
    assert {i.tobytes() for i in dataset.test.inputs} == {i.tobytes() for i in _images(test)}
    for part in (dataset.train, dataset.validation, dataset.test):
        for image, label in zip(part.inputs, part.targets, strict=True):
            assert label_of[image.tobytes()] == label


def test_split_depends_on_the_seed_only(prepared):
    folder, _ = prepared
    one, again = (data.load(CONFIG, folder) for _ in range(2))
    other = data.load(dataclasses.replace(CONFIG, split_seed=7), folder)
    less = data.load(dataclasses.replace(CONFIG, train_examples=10, test_examples=5), folder)
    np.testing.assert_array_equal(one.train.inputs, again.train.inputs)
    np.testing.assert_array_equal(one.test.targets, again.test.targets)
    assert not np.array_equal(one.train.inputs, other.train.inputs)
    assert not np.array_equal(one.test.inputs, other.test.inputs)
    np.testing.assert_array_equal(less.train.inputs, one.train.inputs[:10])
    np.testing.assert_array_equal(less.validation.inputs, one.validation.inputs)
    np.testing.assert_array_equal(less.test.inputs, one.test.inputs[:5])
    assert np.any(np.diff(one.test.targets) < 0)  # not by class


def test_cache_is_used_and_equal(prepared, tmp_path, monkeypatch):
    folder, _ = prepared
    steps = []
    plain = data.load(CONFIG, folder)
    first = data.load(CONFIG, folder, tmp_path, lambda *step: steps.append(step))
    assert steps[-1] == (20, 20, "CIFAR-10 test images")
    monkeypatch.setattr(cifar10, "_decode", None)
    again = data.load(CONFIG, folder, tmp_path)
    for other in (first, again):
        np.testing.assert_array_equal(plain.train.inputs, other.train.inputs)
        np.testing.assert_array_equal(plain.validation.targets, other.validation.targets)
        np.testing.assert_array_equal(plain.test.inputs, other.test.inputs)
    os.utime(next((folder / "cifar10" / "3.0.2").glob("*train*")))
    with pytest.raises(TypeError):
        data.load(CONFIG, folder, tmp_path)  # changed source: decodes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_examples": 81}, "train_examples = 81, but there are 80 training images"),
        ({"test_examples": 21}, "test_examples = 21, but there are 20 test images"),
        ({"train_examples": 0}, "train_examples = 0"),
        ({"validation_share": 1.0}, "validation_share must lie in"),
    ],
)
def test_sizes_are_checked(prepared, changes, message):
    with pytest.raises(ConfigError, match=message):
        data.load(dataclasses.replace(CONFIG, **changes), prepared[0])


def test_truncated_file(prepared, tmp_path):
    where = tmp_path / "cifar10" / "3.0.2"
    where.mkdir(parents=True)
    for file in (prepared[0] / "cifar10" / "3.0.2").iterdir():
        content = file.read_bytes()
        (where / file.name).write_bytes(
            content[: len(content) // 2] if "-test" in file.name else content
        )
    with pytest.raises(DataError, match=r"3\.0\.2: the test part cannot be read"):
        data.load(CONFIG, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (_Source(image=_black(28, 28, 3), label=1), r"train image 0: uint8 of shape \(28, 28, 3\)"),
        (_Source(image=np.zeros((32, 32, 3)), label=1), "train image 0: float64"),
        (_Source(image=_black(32, 32, 3), label=12), "train image 0: label 12, not 0 to 9"),
        (_Source(image=_black(32, 32, 3), label=-1), "train image 0: label -1, not 0 to 9"),
        (_Source(image=_black(32, 32, 3)), r"train part cannot be read \(KeyError: 'label'\)"),
    ],
)
def test_other_records(prepared, monkeypatch, source, message):
    import tensorflow_datasets as tfds  # noqa: PLC0415

    monkeypatch.setattr(tfds, "data_source", lambda *_, **__: source)
    with pytest.raises(DataError, match=message):
        data.load(CONFIG, prepared[0])


def _copy(prepared, root):
    return Path(shutil.copytree(prepared[0] / "cifar10", root / "cifar10")) / "3.0.2"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"other": 1}', '{"version": "3.0.2"}', b"\xff\xfe"]
)
def test_broken_dataset_info(prepared, tmp_path, content):
    info = _copy(prepared, tmp_path) / "dataset_info.json"
    info.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"the train part cannot be read \(.*dataset_info") as error:
        data.load(CONFIG, tmp_path)
    assert "\n" not in str(error.value)
    assert str(info.parent) in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe"])
def test_features_are_not_taken_from_the_file(prepared, tmp_path, content):
    features = _copy(prepared, tmp_path) / "features.json"
    features.unlink()
    if content is not None:
        features.write_bytes(content)
    dataset = data.load(CONFIG, tmp_path)
    np.testing.assert_array_equal(dataset.test.inputs, data.load(CONFIG, prepared[0]).test.inputs)


@pytest.mark.parametrize("content", [b"", b"x" * 100_000])
def test_files_that_are_no_records(prepared, tmp_path, content):
    next(_copy(prepared, tmp_path).glob("*-train.*")).write_bytes(content)
    with pytest.raises(DataError, match="the train part cannot be read") as error:
        data.load(CONFIG, tmp_path)
    assert "\n" not in str(error.value)


def test_fewer_records_than_the_info_says(prepared, tmp_path):
    folder = _copy(prepared, tmp_path)
    shutil.copy(next(folder.glob("*-test.*")), next(folder.glob("*-train.*")))
    with pytest.raises(DataError, match="the train part cannot be read"):
        data.load(CONFIG, tmp_path)


def test_without_permission(prepared, tmp_path, monkeypatch):
    folder = _copy(prepared, tmp_path)

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)  # root, who may run this, may read everything
    with pytest.raises(DataError, match=r"3\.0\.2: cannot be read \(Permission denied\)$"):
        data.load(CONFIG, tmp_path)
    assert folder.is_dir()


def test_prepared_as_tfrecord(tmp_path):
    where = tmp_path / "cifar10" / "3.0.2"
    where.mkdir(parents=True)
    (where / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"without files cifar10-train\.array_record"):
        data.load(CONFIG, tmp_path)


def test_no_network(tmp_path, monkeypatch):
    def unreachable(host):
        raise OSError("Name or service not known")

    monkeypatch.setattr(cifar10, "_reach", unreachable)
    message = r"holds no prepared CIFAR-10 \(expected cifar10/3\.0\.2/.*not known.*prepare it where"
    with pytest.raises(DataError, match=message) as error:
        data.load(CONFIG, tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(error.value)
    assert not (tmp_path / "nothing").exists()


def test_tensorflow_is_never_imported(prepared):
    code = (
        "import sys, pathlib\n"
        "from experiments import data\n"
        "from experiments.configs.data import Cifar10Data\n"
        "assert len(data.load(Cifar10Data(), pathlib.Path(sys.argv[1])).train) == 80\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'tensorflow']\n"
    )
    subprocess.run([sys.executable, "-c", code, str(prepared[0])], check=True)


# All that it goes through is fast on the small folder, which TFDS has written as well.
@pytest.mark.slow
def test_real(tmp_path):
    folder = real.folder("tfds")
    cached = os.environ.get("STEINNORM_TEST_CACHE")  # decoding takes half a minute
    dataset = data.load(CONFIG, folder, Path(cached) if cached else tmp_path)
    assert [len(p) for p in (dataset.train, dataset.validation, dataset.test)] == [
        40_000,
        10_000,
        10_000,
    ]
    np.testing.assert_array_equal(np.bincount(dataset.test.targets), np.full(10, 1000))
    both = np.concatenate([dataset.train.targets, dataset.validation.targets])
    np.testing.assert_array_equal(np.bincount(both), np.full(10, 5000))
    np.testing.assert_allclose(
        dataset.train.inputs.mean(axis=(0, 1, 2)), (125.27, 122.93, 113.86), atol=0.5
    )
