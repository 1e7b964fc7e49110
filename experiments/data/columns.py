"""Finds the columns of a table by name, and refuses names that are nearly right.

A column that is not recognised is not read.  If it is ``participant_id`` instead of ``subject``,
volumes of one subject end up in training and test, and nothing else would say so.
"""

import re
from collections.abc import Sequence

REQUIRED = ("path", "label")
NAMES = (*REQUIRED, "site", "split", "subject")

# Without case, blanks and punctuation, as ``_plain`` leaves them.
_SYNONYMS = {
    "path": "file files filename filepath image images imagename imagepath imagefile img nifti "
    "niftipath niftifile nii volume volumepath volumefile scan scanpath",
    "label": "class classes target diagnosis dx y outcome group classlabel",
    "site": "scanner scannerid center centre centerid centreid siteid sitename institution "
    "institute hospital",
    "split": "set subset fold partition part datasplit splitname",
    "subject": "subjectid subjectname sub subid subj subjid participant participantid patient "
    "patientid person personid pid individual case caseid id groupid",
}
_MEANT = {word: name for name, words in _SYNONYMS.items() for word in words.split()}
_NOT_TYPOS = {"side", "size"}  # words of their own, and usual columns
_CLOSE = 4  # shorter names have too many neighbours for one edit to say anything


def check_columns(columns: Sequence[str]) -> list[str]:
    """Returns what is wrong with the header of a table.

    Args:
      columns: the names as they are in the file, without surrounding blanks.

    Returns:
      One line each for a missing column, a column that occurs twice, and a name that is nearly
      that of a known column: another case, blanks or punctuation in it; or, where the known
      column is not there, a usual synonym or one letter wrong.  Other columns may be there.
    """
    if len(columns) == 1 and (separators := re.findall(r"[;\t|]", columns[0])):
        return [f"the columns are separated by {separators[0]!r}; this table needs commas"]
    problems, missing = [], []
    for name in NAMES:
        spelled = [column for column in columns if _plain(column) == name]
        others = [column for column in columns if _nearly(column) == name]
        if len(spelled) > 1:
            problems.append(
                f"the columns {_listed(spelled)} are all {name}: keep one, under the name {name}"
            )
        elif spelled and spelled != [name]:
            problems.append(f"the column {spelled[0]!r} must be spelled {name}: rename it")
        elif not spelled and others:
            problems.append(
                f"no column {name}, but {_listed(others)}: rename it to {name} if that is what it "
                "holds, or else give it another name"
            )
        elif not spelled and name in REQUIRED:
            missing.append(name)
    if missing:
        problems.append(f"no column {' and no '.join(missing)}; it has {list(columns)}")
    return problems


def _plain(column: str) -> str:
    """Returns a name without case, blanks and punctuation."""
    return re.sub(r"[\W_]", "", column.casefold())


def _nearly(column: str) -> str | None:
    """Returns the known column that a name stands for, though it is not that name; or None."""
    plain = _plain(column)
    if plain in NAMES or plain in _NOT_TYPOS:
        return None
    if plain in _MEANT:
        return _MEANT[plain]
    if len(plain) >= _CLOSE:
        return next((name for name in NAMES if _one_edit(plain, name)), None)
    return None


def _one_edit(word: str, name: str) -> bool:
    """Returns whether a word is a name with one letter missing, too many, wrong, or two swapped."""
    for i in range(len(name) + 1):
        if word[:i] != name[:i]:
            return False
        rest, wanted = word[i:], name[i:]
        missing, extra, wrong = rest == wanted[1:], rest[1:] == wanted, rest[1:] == wanted[1:]
        swapped = len(wanted) > 1 and rest == wanted[1] + wanted[0] + wanted[2:]
        if missing or extra or wrong or swapped:
            return True
    return False


def _listed(columns: Sequence[str]) -> str:
    return " and ".join(repr(column) for column in columns)
