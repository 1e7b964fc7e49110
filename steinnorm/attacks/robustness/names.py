"""Names of the files of an evaluation, which differ for all its attacks and radii."""

import hashlib
import re
from pathlib import Path

PER_EXAMPLE, PICTURES, PLOT, CHECKS = "per_example", "pictures", "accuracy.png", "checks.json"

WRITER = "steinnorm evaluate_robustness"
"""Marks figures as written by an evaluation, in their metadata."""


def is_written_here(path: Path) -> bool:
    """Returns whether a figure was written by an evaluation.

    Args:
      path: a PNG file.
    """
    return path.is_file() and WRITER.encode() in path.read_bytes()


def file_stem(attack: str, epsilon: float) -> str:
    """Returns the file name, without suffix, of one attack at one radius.

    Args:
      attack: name of the attack. If it has characters that are replaced, a hash of it is appended.
      epsilon: the radius.
    """
    name = re.sub(r"[^\w.+-]", "_", attack)
    if name != attack:
        name += "-" + hashlib.sha256(attack.encode()).hexdigest()[:8]
    return f"{name}-{radius_name(epsilon)}"


def radius_name(epsilon: float) -> str:
    """Returns a radius in file names: nine digits, as many as float32 has.

    Args:
      epsilon: the radius.
    """
    return f"{epsilon:.9g}"
