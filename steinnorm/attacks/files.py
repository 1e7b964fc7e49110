"""Atomic writing of files: a reader finds the old content or the new, never a part.

Missing folders are created. An interrupted or failed write leaves the old file unchanged.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, atomically.

    Args:
      path: file to create or replace.
      text: its new content.

    Raises:
      OSError: the file cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically: into a temporary file in the same folder, which is then renamed.

    Args:
      path: file to create or replace; readable by everyone.
      content: its new content.

    Raises:
      OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp creates files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file in errors of the system that name none, such as that of a full disk.

    Args:
      path: the file that is written.

    Raises:
      OSError: the same error.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, atomically.

    Args:
      path: file to create or replace.
      value: anything that ``json.dumps`` takes.

    Raises:
      ValueError: the value contains NaN or infinity, which JSON does not have.
      OSError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
