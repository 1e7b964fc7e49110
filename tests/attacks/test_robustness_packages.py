"""Packages that few calls need are imported late, and may be missing."""

import importlib
import subprocess
import sys

import pytest

from tests.attacks.one_call import measure


def test_imports_are_lazy():
    code = (
        "import sys, steinnorm\n"
        "assert 'steinnorm.attacks' not in sys.modules\n"
        "import steinnorm.attacks\n"
        "names = ('flax', 'matplotlib', 'rich', 'scipy.stats')\n"
        "assert not [name for name in names if name in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert importlib.import_module("steinnorm.attacks.robustness").Row


def test_progress_without_rich(monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    measure(tmp_path, progress=True)
    assert f"written: {tmp_path}" in capsys.readouterr().out


def test_without_matplotlib_everything_else_is_written(tmp_path, monkeypatch):
    package = importlib.import_module("steinnorm.attacks.robustness")
    for name in ("plots", "pictures"):
        monkeypatch.delitem(sys.modules, f"steinnorm.attacks.robustness.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning, match=r'pip install "steinnorm\[plots\]"'):
        measure(tmp_path, figures=True)
    assert {p.name for p in tmp_path.iterdir()} == {
        "per_example",
        "results.json",
        "settings.json",
        "table.csv",
        "table.md",
    }
