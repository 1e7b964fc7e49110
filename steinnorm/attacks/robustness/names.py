"""Names of files, of which no two attacks share one."""

import hashlib
import re
from pathlib import Path

PER_EXAMPLE, PICTURES, PLOT, CHECKS = "per_example", "pictures", "accuracy.png", "checks.json"

WRITER = "steinnorm evaluate_robustness"
"""What figures say of who wrote them."""


def is_ours(path: Path) -> bool:
    """Returns whether a figure was written by an evaluation.

    Args:
      path: of a PNG.
    """
    return path.is_file() and WRITER.encode() in path.read_bytes()


def stem(attack: str, epsilon: float) -> str:
    """Returns the name, without its ending, of the files of one attack at one radius.

    Args:
      attack: its name.  Where characters of it are replaced, a hash tells it from other ones.
      epsilon: the radius.
    """
    name = re.sub(r"[^\w.+-]", "_", attack)
    if name != attack:
        name += "-" + hashlib.sha256(attack.encode()).hexdigest()[:8]
    return f"{name}-{epsilon:.9g}"
