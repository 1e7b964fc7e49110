"""The table of volumes: read, checked, and split by subject."""

import csv
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np

from experiments.configs.data import VolumesData
from experiments.data import split
from experiments.data.cache import report
from experiments.data.examples import DataError
from experiments.errors import ConfigError

PARTS = ("train", "validation", "test")
_WORDS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One volume of the table.

    Attributes:
      line: in the table, from 1; the header is line 1.
      path: of the volume.
      label: 0 or 1.
      site: empty if unknown.
      part: ``train``, ``validation`` or ``test``; empty if the table does not say.
      subject: whose volume it is.
    """

    line: int
    path: Path
    label: int
    site: str
    part: str
    subject: str


def read(table: Path) -> list[Row]:
    """Reads and checks the table; the volumes are not opened.

    Raises:
      DataError: the table is missing, empty, or wrong in one or more rows.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", skipinitialspace=True)
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            cells = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise DataError(f"{table}: no such table (expected CSV with path,label)") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error})") from error
    missing = [name for name in ("path", "label") if name not in columns]
    if missing:
        raise DataError(f"{table}: no column {' and no '.join(missing)}; it has {columns}")
    if not cells:
        raise DataError(f"{table}: has a header and no rows")
    problems: list[str] = []
    rows = []
    for line, row in cells:
        text = {name: (row.get(name) or "").strip() for name in (*columns, "site", "split")}
        found = _row(table, line, text, problems)
        if found is not None:
            rows.append(found)
    _check_twice(table, rows, problems)
    report(problems)
    return rows


def split_rows(rows: list[Row], config: VolumesData, table: Path) -> dict[str, list[Row]]:
    """Puts rows into parts: as the table says, or by the seed and by subject.

    Returns:
      Rows of each of ``PARTS``, in random order.  Where ``train_examples`` cuts the training part,
      both labels keep about their shares.

    Raises:
      ConfigError: a share is out of range, or ``train_examples`` too large.
      DataError: a part is empty or of one class; a subject is in two parts.
    """
    given = any(row.part for row in rows)
    parts = _given(rows, table) if given else _drawn(rows, config)
    problems = []
    for stream, name in enumerate(PARTS):
        labels = np.array([row.label for row in parts[name]])
        if name == "validation" and len(labels) == 0 and config.validation_share == 0:
            continue
        if len(labels) == 0:
            problems.append(f"{table}: the {name} part is empty ({len(rows)} rows in all)")
            continue
        if name == "train":
            order = split.balanced(labels, config.split_seed, split.CHOICE)
            order = split.first(order, config.train_examples, "train_examples", "for training")
            parts[name] = [parts[name][i] for i in order]
        # Shuffled after the choice: in a test part whose labels alternate, every batch would have
        # the same number of each, which is another experiment where it has its own statistics.
        order = split.shuffled(len(parts[name]), config.split_seed, stream)
        parts[name] = [parts[name][i] for i in order]
        if len({row.label for row in parts[name]}) < 2:
            problems.append(
                f"{table}: the {name} part has volumes of label {parts[name][0].label} only"
            )
    report(problems)
    return parts


def _row(table: Path, line: int, text: dict[str, str], problems: list[str]) -> Row | None:
    """One row, or None and a problem more."""
    where = f"{table}, line {line}"
    before = len(problems)
    path = table.parent / text["path"]  # an absolute path stays as it is
    if not text["path"]:
        problems.append(f"{where}: no path")
    elif not path.is_file():
        problems.append(f"{where}: no such file: {path}")
    elif not path.name.endswith((".nii", ".nii.gz")):
        problems.append(f"{where}: not .nii or .nii.gz: {path}")
    try:
        label = float(text["label"])
    except ValueError:
        label = -1
    if label not in (0, 1):
        problems.append(f"{where}: the label is {text['label']!r}, not 0 or 1")
    part = _WORDS.get(text["split"].lower(), "")
    if text["split"] and not part:
        problems.append(f"{where}: the split is {text['split']!r}, not train, val or test")
    if "subject" in text and not text["subject"]:
        problems.append(f"{where}: no subject, though the table has that column")
    if len(problems) > before:
        return None
    subject = text.get("subject", text["path"])
    return Row(line, path, int(label), text["site"], part, subject)


def _check_twice(table: Path, rows: list[Row], problems: list[str]) -> None:
    seen: dict[Path, int] = {}
    for row in rows:
        first = seen.setdefault(row.path.resolve(), row.line)
        if first != row.line:
            problems.append(f"{table}, line {row.line}: {row.path} is already in line {first}")


def _given(rows: list[Row], table: Path) -> dict[str, list[Row]]:
    """Parts as the column ``split`` says."""
    problems = [
        f"{table}, line {row.line}: no split, though other rows have one"
        for row in rows
        if not row.part
    ]
    subjects: dict[str, Row] = {}
    for row in rows:
        other = subjects.setdefault(row.subject, row)
        if row.part and other.part and row.part != other.part:
            problems.append(
                f"{table}, line {row.line}: subject {row.subject} is in {row.part}, and in "
                f"{other.part} in line {other.line}"
            )
    report(problems)
    return {name: [row for row in rows if row.part == name] for name in PARTS}


def _drawn(rows: list[Row], config: VolumesData) -> dict[str, list[Row]]:
    """Parts by the seed: the subjects are dealt out, with each label in about its share.

    Raises:
      ConfigError: the shares leave nothing for training.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.subject].append(row)
    names = sorted(groups)
    # A subject with volumes of both labels is a kind of its own: 0, 1 or the mean between them.
    kinds = np.array([np.mean([row.label for row in groups[name]]) for name in names])
    kinds = np.where((kinds > 0) & (kinds < 1), 0.5, kinds)
    order = split.balanced(kinds, config.split_seed, split.CHOICE)
    test = split.share_of(len(names), config.test_share, "test_share")
    validation = split.share_of(len(names), config.validation_share, "validation_share")
    if test + validation >= len(names):
        raise ConfigError(
            f"test_share {config.test_share} and validation_share {config.validation_share} of "
            f"{len(names)} subjects leave none for training"
        )
    cuts = np.split(order, [test, test + validation])
    chosen = dict(zip(("test", "validation", "train"), cuts, strict=True))
    return {name: [row for i in chosen[name] for row in groups[names[i]]] for name in PARTS}
