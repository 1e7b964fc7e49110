"""Cityscapes on small PNG files in its layout."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.configs.data import CityscapesData
from experiments.data import cityscapes
from experiments.data.problems import DataError
from experiments.errors import ConfigError
from steinnorm.attacks import VOID
from tests.experiments.data import real

CONFIG = CityscapesData(shape=(4, 8))
IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)


def _paths(root, name, stem):
    return (
        root / "leftImg8bit" / name / f"{stem}_leftImg8bit.png",
        root / "gtFine" / name / f"{stem}_gtFine_labelIds.png",
    )


def _write(root, name, stem, value=0, size=(4, 8), *, labels=None):
    """A frame of one colour, by which it is recognised."""
    image, label = _paths(root, name, stem)
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(image)
    labels = np.full(size, IDS[value % 19], np.uint8) if labels is None else labels
    Image.fromarray(labels).save(label)
    return image, label


@pytest.fixture
def root(tmp_path):
    for i in range(10):
        _write(tmp_path, "train", f"{'ab'[i % 2]}/{i:03d}", i)
    for i in range(10, 14):
        _write(tmp_path, "val", f"c/{i:03d}", i)
    for i in range(14, 17):
        _write(tmp_path, "test", f"d/{i:03d}", i)
    return tmp_path


def _values(part):
    return [int(image[0, 0, 0]) for image in part.inputs]


def test_split_as_in_the_paper(root):
    dataset = data.load(CONFIG, root)
    assert [len(p) for p in (dataset.train, dataset.validation, dataset.test)] == [8, 2, 4]
    assert sorted(_values(dataset.train) + _values(dataset.validation)) == list(range(10))
    assert sorted(_values(dataset.test)) == [10, 11, 12, 13]
    assert dataset.train.inputs.shape == (8, 4, 8, 3)
    assert dataset.train.inputs.dtype == dataset.train.targets.dtype == np.uint8
    for part in (dataset.train, dataset.validation, dataset.test):
        for value, labels in zip(_values(part), part.targets, strict=True):
            assert (labels == value % 19).all()
    assert dataset.classes == len(dataset.class_names) == 19
    assert dataset.class_names[0] == "road"


def test_split_by_folder(root):
    dataset = data.load(dataclasses.replace(CONFIG, validation="folder"), root)
    assert sorted(_values(dataset.train)) == list(range(10))
    assert sorted(_values(dataset.validation)) == [10, 11, 12, 13]
    assert sorted(_values(dataset.test)) == [14, 15, 16]


def test_seed_and_sizes(root):
    one, again = (data.load(CONFIG, root) for _ in range(2))
    assert _values(one.train) == _values(again.train)
    assert _values(one.train) != sorted(_values(one.train))
    orders = {
        tuple(_values(data.load(dataclasses.replace(CONFIG, split_seed=seed), root).test))
        for seed in range(5)
    }
    assert len(orders) > 1
    less = data.load(dataclasses.replace(CONFIG, train_examples=3), root)
    assert _values(less.train) == _values(one.train)[:3]
    assert _values(less.validation) == _values(one.validation)
    with pytest.raises(ConfigError, match="train_examples = 9, but there are 8 frames"):
        data.load(dataclasses.replace(CONFIG, train_examples=9), root)
    assert len(data.load(dataclasses.replace(CONFIG, validation_share=0), root).validation) == 0


def test_all_label_ids(root):
    labels = np.arange(35, dtype=np.uint8)
    labels[34] = 255
    grid = np.zeros((4, 35), np.uint8) + labels
    _write(root, "val", "c/010", 10, (4, 35), labels=grid)
    dataset = data.load(dataclasses.replace(CONFIG, shape=(4, 35)), root)
    found = dataset.test.targets[_values(dataset.test).index(10)]
    expected = np.full(35, VOID)
    expected[IDS] = np.arange(19)
    np.testing.assert_array_equal(found, np.tile(expected, (4, 1)))


def test_resizing(root):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    image, _ = _write(root, "val", "c/010", 0, (8, 16), labels=rng.choice(IDS, (8, 16)))
    Image.fromarray(pixels).save(image)
    wide = Image.new("RGBA", (16, 8), (200, 200, 200, 7))  # converted; alpha is dropped
    wide.save(_write(root, "val", "c/011", 0, (8, 16))[0])
    test = data.load(CONFIG, root).test
    means = [image.mean() for image in test.inputs]
    assert any(abs(mean - 200) < 1e-6 for mean in means)
    smooth = next(i for i, mean in enumerate(means) if abs(mean - pixels.mean()) < 3)
    assert test.inputs[smooth].std() < 0.7 * pixels.std()  # averaged, not picked
    assert set(np.unique(test.targets[smooth])) <= set(range(19))  # picked, not averaged
    same = data.load(dataclasses.replace(CONFIG, shape=(8, 16)), root).test
    assert any(np.array_equal(image, pixels) for image in same.inputs)


def test_cache(root, tmp_path, monkeypatch):
    cache, steps = tmp_path / "cache", []
    plain = data.load(CONFIG, root)
    first = data.load(CONFIG, root, cache, lambda *step: steps.append(step))
    assert (8, 8, "train frames") in steps
    assert steps[-1][0] == steps[-1][1]
    with monkeypatch.context() as patch:
        patch.setattr(cityscapes, "_decode", None)
        again = data.load(CONFIG, root, cache)
    for other in (first, again):
        for name in ("train", "validation", "test"):
            one, two = getattr(plain, name), getattr(other, name)
            np.testing.assert_array_equal(one.inputs, two.inputs)
            np.testing.assert_array_equal(one.targets, two.targets)
            assert isinstance(two.inputs, np.memmap)
    next(cache.glob("cityscapes-train-*/images.npy")).write_bytes(b"short")
    np.testing.assert_array_equal(data.load(CONFIG, root, cache).train.inputs, plain.train.inputs)
    for i in range(10):
        _write(root, "train", f"{'ab'[i % 2]}/{i:03d}", 99)  # changed sources are seen
    assert set(_values(data.load(CONFIG, root, cache).train)) == {99}


def _fails(root, *messages, config=CONFIG, kind=DataError):
    with pytest.raises(kind) as error:
        data.load(config, root)
    for message in messages:
        assert message in str(error.value)


def test_missing_folders(root, tmp_path):
    _fails(tmp_path / "no", "leftImg8bit/train: no such folder", "gtFine/val: no such folder")
    for path in (root / "leftImg8bit" / "val" / "c").iterdir():
        path.unlink()
    _fails(root, "leftImg8bit/val: no files CITY/*_leftImg8bit.png")


def test_images_without_labels_and_labels_without_images(root):
    _paths(root, "train", "a/000")[1].unlink()
    _paths(root, "val", "c/012")[0].unlink()
    _fails(root, "a/000_leftImg8bit.png: has no labels", "c/012_gtFine_labelIds.png: has no image")


def test_unreadable_frames_are_named_together(root):
    image, _ = _paths(root, "val", "c/010")
    noise = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    image.write_bytes(image.read_bytes()[:3000])
    _, labels = _paths(root, "val", "c/011")
    Image.fromarray(np.full((4, 8), 77, np.uint8)).save(labels)
    other, _ = _write(root, "val", "c/012")
    Image.fromarray(np.zeros((5, 8, 3), np.uint8)).save(other)
    _fails(
        root,
        "c/010_leftImg8bit.png: cannot be read, or is cut short",
        "c/011_gtFine_labelIds.png: the values [77] are no Cityscapes labelIds",
        "c/012_gtFine_labelIds.png: 8x4 pixels, but its image 012_leftImg8bit.png has 8x5",
    )


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_no_png(root, content):
    image, _ = _paths(root, "train", "a/000")
    image.write_bytes(content)
    _fails(root, "a/000_leftImg8bit.png: cannot be read")


@pytest.mark.parametrize("mode", ["RGB", "1", "I;16", "RGBA", "LA"])
def test_labels_of_other_modes(root, mode):
    Image.new(mode, (8, 4)).save(_paths(root, "val", "c/010")[1])
    message = f"c/010_gtFine_labelIds.png: mode {mode}, not 8 bits in one channel or a palette"
    with pytest.raises(DataError) as error:
        data.load(CONFIG, root)
    assert message in str(error.value)
    assert ("color" in str(error.value)) == mode.startswith("RGB")  # the colours are another file


@pytest.mark.parametrize("bits", [8, 4])
def test_labels_with_a_palette_are_its_indices(root, bits):
    values = np.array([[7, 8, 11, 13] * 2] * 4, np.uint8)
    labels = Image.fromarray(values)
    labels.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits, np.uint8).tobytes())
    assert labels.mode == "P"
    labels.save(_write(root, "val", "c/010", 10)[1], bits=bits)
    test = data.load(CONFIG, root).test
    expected = np.array([[0, 1, 2, 4] * 2] * 4)
    np.testing.assert_array_equal(test.targets[_values(test).index(10)], expected)


def _rename_to_train_ids(root):
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))


def _write_train_ids(root, void=VOID):
    """Every frame has the trainIds 0 1 2 ... 18, and void, a column each."""
    grid = np.zeros((4, 20), np.uint8) + np.array([*range(19), void], np.uint8)
    for name, numbers in (("train", range(10)), ("val", range(10, 14))):
        for i in numbers:
            city = "ab"[i % 2] if name == "train" else "c"
            _write(root, name, f"{city}/{i:03d}", i, (4, 20), labels=grid)
    return dataclasses.replace(CONFIG, shape=(4, 20)), grid


@pytest.mark.parametrize("void", [VOID, 0])
def test_train_ids_under_the_name_of_label_ids_are_refused(root, void):
    config, _ = _write_train_ids(root, void)
    _fails(
        root,
        "gtFine/train: the labels of the train part have no value above 18 but 255: they look "
        "like trainIds, not labelIds; name the files *_gtFine_labelTrainIds.png and set "
        "data.labels=trainIds",
        config=config,
    )
    _fails(root, "look like trainIds", config=dataclasses.replace(config, shape=(2, 3)))


@pytest.mark.parametrize(
    "values",
    [
        [7, 8, 11, 255],  # roads and buildings, and licence plates
        [0, 0, 0, 7],  # hardly labelled
        [1, 3, 7, 7, 8, 11, 11, 17],  # with the borders that Cityscapes leaves out
        [0, 1, 2, 3, 4, 255, 26],  # one car
    ],
)
def test_label_ids_of_few_classes_are_not_taken_for_train_ids(root, values):
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        Image.fromarray(np.zeros((4, 1), np.uint8) + np.array(values, np.uint8)).save(path)
        image = str(path).replace("gtFine", "leftImg8bit").replace("_leftImg8bit_labelIds", "")
        Image.new("RGB", (len(values), 4)).save(image.replace(".png", "_leftImg8bit.png"))
    expected = {list(IDS).index(value) if value in IDS else VOID for value in values}
    shape = (4, len(values))
    test = data.load(dataclasses.replace(CONFIG, shape=shape), root).test
    assert set(np.unique(test.targets)) == expected


def test_train_ids_are_read_as_they_are(root, tmp_path):
    config, grid = _write_train_ids(root)
    _rename_to_train_ids(root)
    _fails(root, "no files CITY/*_gtFine_labelIds.png, but *_gtFine_labelTrainIds.png: set")
    config = dataclasses.replace(config, labels="trainIds")
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        for labels in data.load(config, root, cache).train.targets:
            np.testing.assert_array_equal(labels, grid)


def test_label_ids_under_the_name_of_train_ids_are_refused(root):
    _rename_to_train_ids(root)
    config = dataclasses.replace(CONFIG, labels="trainIds")
    _fails(
        root, "_gtFine_labelTrainIds.png: the values [20] are no Cityscapes trainIds", config=config
    )


@pytest.mark.parametrize("mode", ["1", "I;16"])
def test_images_of_other_modes(root, mode):
    Image.new(mode, (8, 4)).save(_paths(root, "val", "c/010")[0])
    _fails(root, f"c/010_leftImg8bit.png: mode {mode}")


def test_part_of_void_only(root):
    for i in range(14, 17):
        _write(root, "test", f"d/{i:03d}", i, labels=np.zeros((4, 8), np.uint8))
    config = dataclasses.replace(CONFIG, validation="folder")
    _fails(root, "gtFine/test", "no pixel of the test part", "validation=split", config=config)
    data.load(CONFIG, root)  # does not read that folder


def test_real(tmp_path):
    folder = real.folder("camvid")
    config = CityscapesData(shape=(96, 128), validation="folder")
    dataset = data.load(config, folder, tmp_path)
    assert [len(p) for p in (dataset.train, dataset.validation, dataset.test)] == [367, 101, 233]
    assert set(np.unique(dataset.test.targets)) == {0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13, VOID}
