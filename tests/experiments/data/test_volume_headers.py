"""NIfTI files whose header says that their voxels cannot be used as they are."""

import dataclasses
import gzip
import struct
import warnings

import nibabel
import numpy as np
import pytest

from experiments import data
from experiments.data.problems import DataError
from tests.experiments.data.test_volumes import (
    CONFIG,
    _fails,
    _parts,
    _rows,
    _save,
    _table,
    _voxels,
)

SFORM_CODE, SFORM = 254, 280  # bytes into the header: an int16, and 12 float32


@pytest.fixture
def root(tmp_path):
    _table(tmp_path, _rows(tmp_path, subject=lambda i: f"s{i}"))
    return tmp_path


def _with_sform(path, value):
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<h", content, SFORM_CODE, 1)
    struct.pack_into("<12f", content, SFORM, *[value] * 12)
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_are_named(root, alpha):
    fields = [(name, np.uint8) for name in ("RGBA" if alpha else "RGB")]
    _save(root / "v" / "3.nii.gz", np.zeros((4, 4, 4), fields))
    _fails(
        root, "v/3.nii.gz (line 5): holds colours (RGB), not one real number per voxel; save one"
    )


def test_complex_numbers_are_named_and_lose_nothing(root):
    _save(root / "v" / "3.nii.gz", (_voxels(3) + 0.5j).astype(np.complex64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fails(root, "v/3.nii.gz (line 5): holds complex numbers", "; save the magnitude instead")


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
def test_affines_without_axes_are_named(root, value):
    _with_sform(root / "v" / "3.nii.gz", value)
    _fails(root, "v/3.nii.gz (line 5): its affine (sform or qform) is zero, singular or not finite")


def test_files_without_permission_are_not_called_cut_short(root, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(nibabel, "load", refused)  # root, who may run this, may read everything
    with pytest.raises(DataError, match=r"line 5\): cannot be read \(Permission denied\)") as error:
        data.load(CONFIG, root)
    assert "cut short" not in str(error.value)


def test_other_images_that_nifti_files_can_hold_are_named(tmp_path):
    rows = _rows(tmp_path)
    axes = [
        nibabel.cifti2.ScalarAxis(["a"]),
        nibabel.cifti2.BrainModelAxis.from_mask(np.ones(4), name="cortex_left"),
    ]
    image = nibabel.Cifti2Image(np.ones((1, 4), np.float32), header=axes)
    nibabel.save(image, tmp_path / "v" / "3.nii")
    rows[3]["path"] = "v/3.nii"
    _table(tmp_path, rows)
    _fails(tmp_path, "v/3.nii (line 5): holds a Cifti2Image, not a volume")


def _resized(root, i, sizes, unit=None):
    image = nibabel.Nifti1Image(_voxels(i), np.diag([*sizes, 1.0]))
    if unit:
        image.header.set_xyzt_units(unit)
    nibabel.save(image, root / "v" / f"{i}.nii.gz")


def test_crop_takes_one_voxel_size_only(root):
    config = dataclasses.replace(CONFIG, fit="crop")
    _resized(root, 3, (1, 1, 2.5))
    _resized(root, 4, (1, 1, 2.5))
    with pytest.raises(DataError) as error:
        data.load(config, root)
    said = str(error.value)
    assert "participants.csv: fit = crop keeps the voxels, but their sizes differ: 1x1x1 mm" in said
    assert "1x1x1 mm in 18 (as v/" in said
    assert "1x1x2.5 mm in 2 (as v/" in said
    assert "data.fit=resample" in said


def test_resample_says_that_voxel_sizes_differ(root, tmp_path):
    _resized(root, 3, (1, 1, 2.5))
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        _, note = data.load(CONFIG, root, cache).notes
        assert note.startswith("voxel sizes differ: 1x1x1 mm in 19 (as v/")
        assert "1x1x2.5 mm in 1 (as v/3.nii.gz); fit = resample stretches every volume" in note


def test_voxel_sizes_that_are_the_same_in_other_words(root):
    config = dataclasses.replace(CONFIG, fit="crop")
    _resized(root, 3, (1.004, 1, 1))  # rounded
    _resized(root, 4, (1000, 1000, 1000), "micron")
    _resized(root, 5, (0.001, 0.001, 0.001), "meter")
    dataset = data.load(config, root)
    assert len(dataset.notes) == 1
    assert sum(len(part) for part in _parts(dataset)) == 20


def test_voxel_sizes_are_compared_along_the_axes_of_the_head(root):
    for i in range(20):
        _resized(root, i, (1, 1, 3))
    turned = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -3, 0, 0], [0, 0, 0, 1]], float)
    _save(root / "v" / "3.nii.gz", _voxels(3), turned)
    data.load(dataclasses.replace(CONFIG, fit="crop"), root)
    _resized(root, 3, (3, 1, 1))
    _fails(root, "3x1x1 mm in 1", fit="crop")
