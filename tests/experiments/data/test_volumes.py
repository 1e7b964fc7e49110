"""Volumes on small NIfTI files with tables."""

import csv
import dataclasses

import nibabel
import numpy as np
import pytest

from experiments import data
from experiments.configs.data import VolumesData
from experiments.data import volumes
from experiments.data.problems import DataError
from experiments.errors import ConfigError
from tests.experiments.data import real

CONFIG = VolumesData(shape=(4, 4, 4), normalise="none")


def _voxels(i, shape=(4, 4, 4)):
    """Values in [0, 1]; the first voxel tells which volume it is."""
    voxels = np.random.default_rng(i).uniform(0.2, 0.9, shape).astype(np.float32)
    voxels.flat[0] = i / 100
    return voxels


def _save(path, voxels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def _table(root, rows):
    """Rows are dictionaries, all with the same keys."""
    with (root / "participants.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _rows(root, count=20, **more):
    """Volumes on disk and their rows, labels 0 1 0 1 ..."""
    rows = []
    for i in range(count):
        _save(root / "v" / f"{i}.nii.gz", _voxels(i))
        row = {"path": f"v/{i}.nii.gz", "label": i % 2}
        rows.append({**row, **{name: values(i) for name, values in more.items()}})
    return rows


def _which(part):
    return [round(float(volume.flat[0]) * 100) for volume in part.inputs]


def _parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def _fails(root, *messages, kind=DataError, **changes):
    with pytest.raises(kind) as error:
        data.load(dataclasses.replace(CONFIG, **changes), root)
    for message in messages:
        assert message in str(error.value)


def test_parts_by_the_table(tmp_path):
    words = ["train", "val", "validation", "TEST", "test"]
    rows = _rows(tmp_path, split=lambda i: words[(i // 2) % 5], other=lambda i: "ignored")
    rows[0]["path"] = str(tmp_path / rows[0]["path"])  # absolute
    _table(tmp_path, rows)
    dataset = data.load(CONFIG, tmp_path)
    assert [len(part) for part in _parts(dataset)] == [4, 8, 8]
    assert sorted(_which(dataset.train)) == [0, 1, 10, 11]
    assert sorted(_which(dataset.test)) == [6, 7, 8, 9, 16, 17, 18, 19]
    assert _which(dataset.test) != sorted(_which(dataset.test))
    for part in _parts(dataset):
        assert part.inputs.shape[1:] == (4, 4, 4, 1)
        assert part.inputs.dtype == np.float32
        assert part.targets.dtype == np.int32
        for i, label, volume in zip(_which(part), part.targets, part.inputs, strict=True):
            assert label == i % 2
            np.testing.assert_allclose(volume[..., 0], _voxels(i), atol=1e-6)
    assert dataset.classes == 2


def test_parts_by_the_seed_and_subject(tmp_path):
    _table(tmp_path, _rows(tmp_path, 40, subject=lambda i: f"s{i // 4}{i % 2}"))
    seen = set()
    for seed in range(4):
        dataset = data.load(dataclasses.replace(CONFIG, split_seed=seed), tmp_path)
        again = data.load(dataclasses.replace(CONFIG, split_seed=seed), tmp_path)
        assert [len(part) for part in _parts(dataset)] == [24, 8, 8]
        assert sorted(i for part in _parts(dataset) for i in _which(part)) == list(range(40))
        subjects = [{(i // 4, i % 2) for i in _which(part)} for part in _parts(dataset)]
        assert sum(len(one) for one in subjects) == 20  # none in two parts
        for part, other in zip(_parts(dataset), _parts(again), strict=True):
            assert _which(part) == _which(other)
            assert part.targets.mean() == 0.5  # stratified
        seen.add(tuple(sorted(_which(dataset.test))))
    assert len(seen) == 4


def test_parts_drawn_whatever_the_table_says(tmp_path):
    words = ["train", "val", "test"]
    _table(tmp_path, _rows(tmp_path, 40, subject=lambda i: f"s{i // 4}{i % 2}"))
    without = data.load(dataclasses.replace(CONFIG, split_seed=3), tmp_path)
    rows = _rows(
        tmp_path, 40, subject=lambda i: f"s{i // 4}{i % 2}", split=lambda i: words[i // 4 % 3]
    )
    _table(tmp_path, rows)
    drawn = data.load(dataclasses.replace(CONFIG, split_seed=3, split="drawn"), tmp_path)
    given = data.load(dataclasses.replace(CONFIG, split_seed=3), tmp_path)
    for part, other in zip(_parts(drawn), _parts(without), strict=True):
        assert _which(part) == _which(other)
    assert sorted(_which(given.test)) == [i for i in range(40) if words[i // 4 % 3] == "test"]


def test_training_part_cut(tmp_path):
    _table(tmp_path, _rows(tmp_path))
    whole = data.load(CONFIG, tmp_path)
    less = data.load(dataclasses.replace(CONFIG, train_examples=4), tmp_path)
    assert set(_which(less.train)) < set(_which(whole.train))
    assert less.train.targets.mean() == 0.5
    assert _which(less.test) == _which(whole.test)
    _fails(tmp_path, "train_examples = 13, but there are 12", kind=ConfigError, train_examples=13)


def test_shares(tmp_path):
    _table(tmp_path, _rows(tmp_path))
    assert len(data.load(dataclasses.replace(CONFIG, validation_share=0), tmp_path).validation) == 0
    _fails(tmp_path, "the test part is empty", test_share=0)
    _fails(tmp_path, "leave none for training", kind=ConfigError, test_share=0.8)
    _fails(tmp_path, "test_share must lie in", kind=ConfigError, test_share=1.5)


def test_orientation_and_trailing_dimension(tmp_path):
    rows = _rows(tmp_path)
    voxels = _voxels(50)
    flipped = voxels[::-1].transpose(0, 2, 1)[..., None]  # x to the left, y and z exchanged
    affine = np.array([[-1, 0, 0, 3], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    _save(tmp_path / "v" / "0.nii.gz", flipped, affine)
    _table(tmp_path, rows)
    dataset = data.load(CONFIG, tmp_path)
    both = [volume[..., 0] for part in _parts(dataset) for volume in part.inputs]
    assert sum(np.allclose(volume, voxels) for volume in both) == 1


@pytest.mark.parametrize("old", [(4, 6, 3), (9, 8, 2)])
def test_crop(old):
    voxels = _voxels(1, old)
    fitted = volumes._fit(voxels, (4, 4, 4), "crop")
    low, high = [(o - 4) // 2 if o > 4 else 0 for o in old], [min(o, 4) for o in old]
    inner = voxels[tuple(slice(a, a + n) for a, n in zip(low, high, strict=True))]
    edge = [(4 - n) // 2 for n in high]
    place = tuple(slice(e, e + n) for e, n in zip(edge, high, strict=True))
    np.testing.assert_array_equal(fitted[place], inner)
    outside = np.ones((4, 4, 4), bool)
    outside[place] = False
    assert (fitted[outside] == voxels.min()).all()


def test_resample_is_linear_between_voxel_centres():
    ramp = np.tile(((np.arange(8) + 0.5) / 8).astype(np.float32)[:, None, None], (1, 3, 3))
    fitted = volumes._fit(ramp, (4, 6, 3), "resample")
    assert fitted.shape == (4, 6, 3)
    assert fitted.dtype == np.float32
    np.testing.assert_allclose(fitted[:, 0, 0], (np.arange(4) + 0.5) / 4, atol=1e-6)
    finer = volumes._fit(ramp, (16, 3, 3), "resample")
    np.testing.assert_allclose(finer[1:-1, 0, 0], (np.arange(16) + 0.5)[1:-1] / 16, atol=1e-6)


def test_normalisation():
    voxels = np.linspace(-1000, 3000, 4001, dtype=np.float32).reshape(1, 1, -1)
    whole = volumes._normalise(voxels, "minmax", "f")
    np.testing.assert_allclose(whole.ravel()[[0, 2000, 4000]], [0, 0.5, 1], atol=1e-6)
    inner = volumes._normalise(voxels, "percentile", "f")
    np.testing.assert_allclose(
        inner.ravel()[[0, 40, 2000, 3960, 4000]], [0, 0, 0.5, 1, 1], atol=1e-6
    )
    assert inner.dtype == whole.dtype == np.float32


def test_cache(tmp_path, monkeypatch):
    _table(tmp_path, _rows(tmp_path))
    cache, steps = tmp_path / "cache", []
    plain = data.load(CONFIG, tmp_path)
    first = data.load(CONFIG, tmp_path, cache, lambda *step: steps.append(step))
    assert steps[-1] == (20, 20, "volumes")
    with monkeypatch.context() as patch:
        patch.setattr(volumes, "_decode", None)
        again = data.load(CONFIG, tmp_path, cache)
        for name, value in (("shape", (5, 4, 4)), ("fit", "crop"), ("normalise", "minmax")):
            with pytest.raises(TypeError):  # another result: another entry
                data.load(dataclasses.replace(CONFIG, **{name: value}), tmp_path, cache)
    for other in (first, again):
        for one, two in zip(_parts(plain), _parts(other), strict=True):
            np.testing.assert_array_equal(one.inputs, two.inputs)
            np.testing.assert_array_equal(one.targets, two.targets)
            assert isinstance(two.inputs, np.memmap)


def test_table_missing_or_empty(tmp_path):
    _fails(tmp_path / "no", "no: no such folder")
    _fails(tmp_path, "participants.csv: no such table")
    table = tmp_path / "participants.csv"
    table.write_text("")
    _fails(tmp_path, "no column path and no label")
    table.write_text("path,site\na,b\n")
    _fails(tmp_path, "participants.csv: no column label; it has ['path', 'site']")
    table.write_text("path,label\n")
    _fails(tmp_path, "has a header and no rows")
    table.write_bytes(b"path,label\n\xff\xfe,1\n")
    _fails(tmp_path, "participants.csv: cannot be read")


def test_rows_are_named_together(tmp_path):
    rows = _rows(tmp_path, split=lambda i: "train", subject=lambda i: f"s{i}")
    rows[0]["path"] = "v/none.nii.gz"
    rows[1]["label"] = "2"
    rows[2]["label"] = "sick"
    rows[3]["split"] = "dev"
    rows[4]["subject"] = ""
    rows[5]["path"] = ""
    rows[6]["path"] = "participants.csv"
    rows[8]["path"] = "v/../v/7.nii.gz"
    rows[9]["label"] = ""
    _table(tmp_path, rows)
    _fails(
        tmp_path,
        "line 2: no such file",
        "none.nii.gz",
        "line 3: the label is '2', not 0 or 1",
        "line 4: the label is 'sick'",
        "line 5: the split is 'dev', not train, val or test",
        "line 6: no subject",
        "line 7: no path",
        "line 8: not .nii or .nii.gz",
        "line 10: ",
        "7.nii.gz is already in line 9",
        "line 11: the label is ''",
    )


def test_bad_splits(tmp_path):
    words = ["train", "val", "test"]
    rows = _rows(tmp_path, 12, split=lambda i: words[i % 6 // 2], subject=lambda i: f"s{i}")
    _table(tmp_path, [{**row, "split": "train"} for row in rows])
    _fails(tmp_path, "the validation part is empty", "the test part is empty")
    _table(tmp_path, [row for row in rows if row["split"] != "test" or row["label"] == 1])
    _fails(tmp_path, "the test part has volumes of label 1 only")
    _table(tmp_path, [{**row, "subject": f"s{i % 3}"} for i, row in enumerate(rows)])
    _fails(tmp_path, "line 5: subject s0 is in validation, and in train in line 2")
    rows[7]["split"] = ""
    _table(tmp_path, rows)
    _fails(tmp_path, "line 9: no split, though other rows have one")


def test_one_class_without_split(tmp_path):
    _table(tmp_path, [{**row, "label": 1} for row in _rows(tmp_path)])
    _fails(tmp_path, "the train part has volumes of label 1 only", "the test part has")


def test_bad_volumes_are_named_together(tmp_path):
    rows = _rows(tmp_path)
    folder = tmp_path / "v"
    packed = (folder / "0.nii.gz").read_bytes()
    (folder / "0.nii.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "1.nii.gz").write_bytes(b"")
    (folder / "2.nii.gz").write_bytes(b"no volume at all")
    for i, value in ((3, np.nan), (4, np.inf)):
        voxels = _voxels(i)
        voxels[1, 1, 1] = value
        _save(folder / f"{i}.nii.gz", voxels)
    _save(folder / "5.nii.gz", np.full((4, 4, 4), 0.5, np.float32))
    _save(folder / "6.nii.gz", np.zeros((4, 4, 4, 2), np.float32))
    _save(folder / "7.nii.gz", np.zeros((4, 4), np.float32))
    _save(folder / "8.nii.gz", _voxels(8) * 100)
    plain = folder / "9.nii"
    _save(plain, _voxels(9))
    plain.write_bytes(plain.read_bytes()[:-50])
    rows[9]["path"] = "v/9.nii"
    _table(tmp_path, rows)
    _fails(
        tmp_path,
        *(f"v/{i}.nii.gz (line {i + 2}): cannot be read as NIfTI" for i in range(3)),
        "v/3.nii.gz (line 5): 1 of 64 voxels are NaN or infinite",
        "v/4.nii.gz (line 6): 1 of 64 voxels",
        "v/5.nii.gz (line 7): constant, every voxel is 0.5",
        "v/6.nii.gz (line 8): has the shape (4, 4, 4, 2); three dimensions",
        "v/7.nii.gz (line 9): has the shape (4, 4)",
        "v/8.nii.gz (line 10): values from",
        "v/9.nii (line 11): cannot be read as NIfTI",
    )


def test_nearly_constant_volume(tmp_path):
    rows = _rows(tmp_path)
    voxels = np.zeros((10, 10, 10), np.float32)
    voxels[0, 0, 0] = 1
    _save(tmp_path / "v" / "0.nii.gz", voxels)
    _table(tmp_path, rows)
    _fails(tmp_path, "0.nii.gz", "1st and 99th percentiles are both 0", normalise="percentile")


def test_real(tmp_path):
    folder = real.folder("hippocampus")
    config = VolumesData(shape=(16, 24, 16))
    dataset = data.load(config, folder, tmp_path)
    assert [len(part) for part in _parts(dataset)] == [156, 52, 52]
    assert [int(part.targets.sum()) for part in _parts(dataset)] == [78, 26, 26]
    assert 0 <= dataset.train.inputs.min() < dataset.train.inputs.max() <= 1
    with pytest.raises(ConfigError, match="harmonise needs the column site, filled in every row"):
        data.load(dataclasses.replace(config, harmonise=True), folder)
