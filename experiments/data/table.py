"""Reads and checks the table of volumes, and splits it by subject."""

import csv
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np

from experiments.configs.data import VolumesData
from experiments.data import split
from experiments.data.columns import check_columns
from experiments.data.problems import DataError, raise_problems
from experiments.errors import ConfigError

PARTS = ("train", "validation", "test")
_PART_OF_WORD = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclasses.dataclass(frozen=True)
class Volume:
    """One volume, as its line of the table describes it.

    Attributes:
      line: in the table, from 1; the header is line 1.
      name: of the file, as the table writes it.
      path: of the file.
      label: 0 or 1.
      site: empty if unknown.
      part: ``train``, ``validation`` or ``test``; empty if the table does not say.
      subject: whose volume it is; empty if the table does not say.
    """

    line: int
    name: str
    path: Path
    label: int
    site: str
    part: str
    subject: str

    @property
    def owner(self) -> str:
        """Returns what must not be in two parts: the subject, or the file where none is known."""
        return self.subject or self.name


def read_table(table: Path) -> list[Volume]:
    """Reads and checks the table; the volumes are not opened.

    Raises:
      DataError: the table is missing, empty, or wrong in its header or in one or more rows.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", skipinitialspace=True)
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise DataError(f"{table}: no such table (expected CSV with path,label)") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read ({error})") from error
    raise_problems([f"{table}: {problem}" for problem in check_columns(columns)])
    if not rows:
        raise DataError(f"{table}: has a header and no rows")
    problems: list[str] = []
    volumes = []
    for line, row in rows:
        # What the reader puts under None are cells that no column is left for.
        if any(cell.strip() for cell in row.pop(None, [])):
            problems.append(
                f"{table}, line {line}: more cells than the {len(columns)} columns; a path with a "
                "comma needs quotation marks"
            )
            continue
        text = {name: (row.get(name) or "").strip() for name in (*columns, "site", "split")}
        volume = _volume(table, line, text, problems)
        if volume is not None:
            volumes.append(volume)
    _check_twice(table, volumes, problems)
    _check_spelling(table, volumes, problems)
    raise_problems(problems)
    return volumes


def split_volumes(
    volumes: list[Volume], config: VolumesData, table: Path
) -> dict[str, list[Volume]]:
    """Puts volumes into parts: as the table says, or drawn by subject with the seed.

    Returns:
      Volumes of each of ``PARTS``, in random order.  Where ``train_examples`` cuts the training
      part, both labels keep about their shares.

    Raises:
      ConfigError: a share is out of range, or ``train_examples`` too large.
      DataError: a part is empty or of one class; a subject is in two parts.
    """
    given = config.split == "table" and any(volume.part for volume in volumes)
    parts = _given(volumes, table) if given else _drawn(volumes, config)
    problems = []
    for stream, name in enumerate(PARTS):
        labels = np.array([volume.label for volume in parts[name]])
        if name == "validation" and len(labels) == 0 and config.validation_share == 0:
            continue
        if len(labels) == 0:
            problems.append(f"{table}: the {name} part is empty ({len(volumes)} volumes in all)")
            continue
        if name == "train":
            order = split.balanced_order(labels, config.split_seed, split.CHOICE)
            order = split.first_of(order, config.train_examples, "train_examples", "for training")
            parts[name] = [parts[name][i] for i in order]
        # Shuffled after the choice: in a test part whose labels alternate, every batch would have
        # the same number of each, which is another experiment where it has its own statistics.
        order = split.shuffled_order(len(parts[name]), config.split_seed, stream)
        parts[name] = [parts[name][i] for i in order]
        if len({volume.label for volume in parts[name]}) < 2:
            problems.append(
                f"{table}: the {name} part has volumes of label {parts[name][0].label} only"
            )
    raise_problems(problems)
    return parts


def subjects_note(parts: dict[str, list[Volume]]) -> str:
    """Returns one line for the user: how many volumes and subjects each part has."""
    if not any(volume.subject for volumes in parts.values() for volume in volumes):
        sizes = [f"{name} {len(volumes)} volumes" for name, volumes in parts.items()]
        return (
            f"{'; '.join(sizes)}; the table has no column subject: every volume counts as a "
            "subject of its own"
        )
    sizes = [
        f"{name} {len(volumes)} volumes of {len({volume.owner for volume in volumes})} subjects"
        for name, volumes in parts.items()
    ]
    return "; ".join(sizes)


def _volume(table: Path, line: int, text: dict[str, str], problems: list[str]) -> Volume | None:
    """Returns the volume of one row; or None, and adds to the problems."""
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
    part = _PART_OF_WORD.get(text["split"].lower(), "")
    if text["split"] and not part:
        problems.append(f"{where}: the split is {text['split']!r}, not train, val or test")
    if "subject" in text and not text["subject"]:
        problems.append(f"{where}: no subject, though the table has that column")
    if len(problems) > before:
        return None
    return Volume(
        line=line,
        name=text["path"],
        path=path,
        label=int(label),
        site=text["site"],
        part=part,
        subject=text.get("subject", ""),
    )


def _check_twice(table: Path, volumes: list[Volume], problems: list[str]) -> None:
    """Adds to the problems files that stand in the table twice."""
    seen: dict[Path, int] = {}
    for volume in volumes:
        line = seen.setdefault(volume.path.resolve(), volume.line)
        if line != volume.line:
            problems.append(f"{table}, line {volume.line}: {volume.path} is already in line {line}")


def _check_spelling(table: Path, volumes: list[Volume], problems: list[str]) -> None:
    """Adds to the problems subjects and sites that differ in case only, and so would be two."""
    for column in ("subject", "site"):
        seen: dict[str, Volume] = {}
        for volume in volumes:
            name = getattr(volume, column)
            other = seen.setdefault(name.casefold(), volume)
            if name != getattr(other, column):
                problems.append(
                    f"{table}, line {volume.line}: the {column} {name!r} is "
                    f"{getattr(other, column)!r} in line {other.line}: spell it the same way"
                )


def _given(volumes: list[Volume], table: Path) -> dict[str, list[Volume]]:
    """Returns the parts as the column ``split`` says."""
    problems = [
        f"{table}, line {volume.line}: no split, though other rows have one"
        for volume in volumes
        if not volume.part
    ]
    first: dict[str, Volume] = {}
    for volume in volumes:
        other = first.setdefault(volume.owner, volume)
        if volume.part and other.part and volume.part != other.part:
            problems.append(
                f"{table}, line {volume.line}: subject {volume.subject} is in {volume.part}, and "
                f"in {other.part} in line {other.line}"
            )
    raise_problems(problems)
    return {name: [volume for volume in volumes if volume.part == name] for name in PARTS}


def _drawn(volumes: list[Volume], config: VolumesData) -> dict[str, list[Volume]]:
    """Deals the subjects out by the seed, so that each part has about its share of each label.

    Raises:
      ConfigError: the shares leave nothing for training.
    """
    groups: dict[str, list[Volume]] = defaultdict(list)
    for volume in volumes:
        groups[volume.owner].append(volume)
    names = sorted(groups)
    # A subject with volumes of both labels is a kind of its own: 0, 1 or the mean between them.
    kinds = np.array([np.mean([volume.label for volume in groups[name]]) for name in names])
    kinds = np.where((kinds > 0) & (kinds < 1), 0.5, kinds)
    order = split.balanced_order(kinds, config.split_seed, split.CHOICE)
    test = split.count_of_share(len(names), config.test_share, "test_share")
    validation = split.count_of_share(len(names), config.validation_share, "validation_share")
    if test + validation >= len(names):
        raise ConfigError(
            f"test_share {config.test_share} and validation_share {config.validation_share} of "
            f"{len(names)} subjects leave none for training"
        )
    cuts = np.split(order, [test, test + validation])
    chosen = dict(zip(("test", "validation", "train"), cuts, strict=True))
    return {name: [volume for i in chosen[name] for volume in groups[names[i]]] for name in PARTS}
