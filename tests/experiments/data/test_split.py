"""Seeded orders, the digits, and the choice of the loader."""

import subprocess
import sys

import numpy as np
import pytest

from experiments import data
from experiments.configs.data import Cifar10Data, CityscapesData, DigitsData, VolumesData
from experiments.data import split
from experiments.errors import ConfigError


def test_orders_depend_on_seed_and_stream():
    order = split.shuffled_order(100, 3)
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    np.testing.assert_array_equal(order, split.shuffled_order(100, 3))
    assert not np.array_equal(order, split.shuffled_order(100, 4))
    assert not np.array_equal(order, split.shuffled_order(100, 3, split.TEST))


def test_balanced_keeps_shares():
    labels = np.array([0] * 30 + [1] * 10)
    order = split.balanced_order(labels, 0)
    np.testing.assert_array_equal(np.sort(order), np.arange(40))
    for size in (4, 8, 20, 40):
        assert abs(labels[order[:size]].sum() - size / 4) <= 1
    assert not np.array_equal(order, split.balanced_order(labels, 1))


def test_shares_and_sizes():
    assert split.count_of_share(10, 0.25, "s") == 2
    assert split.count_of_share(2, 0.01, "s") == 1
    assert split.count_of_share(10, 0, "s") == 0
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(ConfigError, match="s must lie in"):
            split.count_of_share(10, share, "s")
    assert len(split.first_of(np.arange(5), None, "n", "items")) == 5
    for wanted in (0, 6):
        with pytest.raises(ConfigError, match=f"n = {wanted}, but there are 5 items"):
            split.first_of(np.arange(5), wanted, "n", "items")


def test_digits_need_no_folder():
    dataset = data.load(DigitsData(train_examples=100, test_examples=50))
    assert len(dataset.train) == 100
    assert len(dataset.validation) == 0
    assert len(dataset.test) == 50
    assert dataset.train.inputs.shape == (100, 8, 8, 1)
    assert dataset.train.inputs.dtype == np.float32
    assert dataset.train.inputs.max() == 1
    assert dataset.train.targets.dtype == np.int32
    assert dataset.classes == len(dataset.class_names) == 10


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (Cifar10Data(), "cifar10/3.0.2"),
        (VolumesData(table="my.csv"), r"my\.csv \(path,label"),
        (CityscapesData(), r"leftImg8bit/\{train,val,test\}/CITY"),
    ],
)
def test_missing_folder_is_refused(config, layout):
    with pytest.raises(ConfigError, match=rf"--data-dir.*{layout}"):
        data.load(config, None)


def test_libraries_load_only_when_needed():
    code = (
        "import sys\n"
        "from experiments import data\n"
        "from experiments.configs.data import DigitsData\n"
        "data.load(DigitsData())\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'nibabel', 'PIL', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
