"""The real data sets, where the environment says that they are there."""

import os
from pathlib import Path

import pytest


def folder(name: str) -> Path:
    """A data set's folder below STEINNORM_DATA; skips the test where there is none."""
    root = os.environ.get("STEINNORM_DATA")
    if not root:
        pytest.skip("STEINNORM_DATA is not set: no real data to test on")
    path = Path(root) / name
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    return path
