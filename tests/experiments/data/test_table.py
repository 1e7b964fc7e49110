"""The table of volumes: columns that are nearly right, rows that are, and what the user is told."""

import csv

import pytest

from experiments import data
from experiments.configs.data import VolumesData
from experiments.data.columns import check_columns
from experiments.data.problems import DataError
from tests.experiments.data import real
from tests.experiments.data.test_volumes import CONFIG, _fails, _rows, _table, _which

ALL = ["path", "label", "site", "split", "subject"]


def _renamed(column, name):
    return [name if other == column else other for other in ALL]


def test_columns_in_any_order_beside_others_are_right():
    assert check_columns(ALL) == []
    assert check_columns([*ALL[::-1], "age", "sex", "size", "side", "volume_mm3", ""]) == []
    assert check_columns(["path", "label"]) == []
    # Where the column itself is there, what else could be meant is something else.
    assert check_columns([*ALL, "participant_id", "diagnosis", "scanner", "fold", "image"]) == []


@pytest.mark.parametrize("column", ALL)
@pytest.mark.parametrize("change", [str.upper, str.title, "{} _".format, "-{}.".format])
def test_other_spellings_are_refused(column, change):
    name = change(column)
    assert check_columns(_renamed(column, name)) == [
        f"the column {name!r} must be spelled {column}: rename it"
    ]


@pytest.mark.parametrize(
    ("column", "name"),
    [
        *[("path", name) for name in ("file", "FileName", "image", "file_path", "pth_", "paths")],
        *[("label", name) for name in ("class", "target", "diagnosis", "y", "group", "lable")],
        *[("site", name) for name in ("scanner", "Centre", "center", "sites", "sitte", "stie")],
        *[("split", name) for name in ("set", "fold", "partition", "spilt", "slit", "splits")],
        *[("subject", name) for name in ("participant_id", "subject_id", "sub", "patient", "ID")],
        *[("subject", name) for name in ("Patient ID", "subjects", "subjet", "sudject", "usbject")],
    ],
)
def test_near_misses_are_refused_with_the_column_that_was_meant(column, name):
    found = check_columns(_renamed(column, name))
    if name == "pth_":  # too short for a guess, and needed
        assert found == [f"no column path; it has {_renamed(column, name)}"]
    else:
        assert found == [
            f"no column {column}, but {name!r}: rename it to {column} if that is what it holds, "
            "or else give it another name"
        ]


def test_columns_that_occur_twice_are_refused():
    message = "the columns 'label' and 'label' are all label: keep one, under the name label"
    assert check_columns([*ALL, "label"]) == [message]
    assert check_columns([*ALL, "Subject"]) == [
        "the columns 'subject' and 'Subject' are all subject: keep one, under the name subject"
    ]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_named(tmp_path, separator):
    _rows(tmp_path, 1)
    (tmp_path / "participants.csv").write_text(f"path{separator}label\nv/0.nii.gz{separator}1\n")
    _fails(tmp_path, f"the columns are separated by {separator!r}; this table needs commas")


def test_a_table_that_was_read_as_if_it_had_no_split_and_no_subject(tmp_path):
    rows = _rows(tmp_path, Split=lambda i: "train", Subject=lambda i: f"s{i // 2}")
    _table(tmp_path, rows)
    _fails(
        tmp_path,
        "participants.csv: the column 'Split' must be spelled split: rename it",
        "participants.csv: the column 'Subject' must be spelled subject: rename it",
    )


def test_real_table_with_other_names(tmp_path):
    folder = real.folder("hippocampus")
    lines = (folder / "participants.csv").read_text().splitlines()
    (tmp_path / "volumes").symlink_to(folder / "volumes")
    for name in ("Subject", "participant_id"):
        header = lines[0].replace("subject", name)
        (tmp_path / "participants.csv").write_text("\n".join([header, *lines[1:]]))
        with pytest.raises(DataError, match=name):
            data.load(VolumesData(shape=(4, 4, 4)), tmp_path)


def test_cells_without_a_column_are_refused(tmp_path):
    rows = _rows(tmp_path)
    with (tmp_path / "participants.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([row["path"], row["label"], ""] for row in rows[:-1])  # empty: no harm
        writer.writerow(["v/19", "x.nii.gz", "1"])
    _fails(tmp_path, "line 21: more cells than the 2 columns; a path with a comma needs quotation")


def test_subjects_and_sites_in_two_spellings_are_refused(tmp_path):
    rows = _rows(tmp_path, subject=lambda i: f"s{i // 2}", site=lambda i: "x")
    rows[5]["subject"], rows[9]["site"] = "S2", "X"
    _table(tmp_path, rows)
    _fails(
        tmp_path,
        "line 7: the subject 'S2' is 's2' in line 6: spell it the same way",
        "line 11: the site 'X' is 'x' in line 2",
    )


def test_notes_say_how_many_subjects_each_part_has(tmp_path):
    _table(tmp_path, _rows(tmp_path, 40, subject=lambda i: f"s{i // 4}{i % 2}"))
    for _ in range(2):  # decoded, and from the cache
        dataset = data.load(CONFIG, tmp_path, tmp_path / "cache")
        assert dataset.notes == (
            "train 24 volumes of 12 subjects; validation 8 volumes of 4 subjects; "
            "test 8 volumes of 4 subjects",
        )
    owners = {(i // 4, i % 2) for i in _which(dataset.train)}
    assert len(owners) == 12


def test_notes_say_that_no_subject_is_known(tmp_path):
    _table(tmp_path, _rows(tmp_path))
    (note,) = data.load(CONFIG, tmp_path).notes
    assert note == (
        "train 12 volumes; validation 4 volumes; test 4 volumes; the table has no column "
        "subject: every volume counts as a subject of its own"
    )
