"""``pip install .`` and nothing else: the library and its attacks work from any folder."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.test_architecture import ROOT

USE = """
import sys
import steinnorm
assert "steinnorm.attacks" not in sys.modules
assert not any(name.startswith("experiments") for name in sys.modules)

import jax, jax.numpy as jnp
from steinnorm.attacks import Threat, autoattack, evaluate_robustness
unwanted = {"flax", "matplotlib", "rich", "experiments"} & set(sys.modules)
assert not unwanted, unwanted

weights = jnp.array([[3.0, 0.0], [0.0, 3.0]])
x, y = jnp.array([[0.9, 0.1], [0.45, 0.55]]), jnp.array([0, 1])
model = lambda x: x @ weights
found = autoattack(model, x, y, threat=Threat("linf", 0.1), steps=3, queries=3)
assert found.success.tolist() == [False, True]
rows = evaluate_robustness(
    model, x, y, epsilons=0.1, attacks="pgd", checks=False, out=sys.argv[1], progress=False
).rows
assert [row.value for row in rows] == [1.0, 0.5, 0.5]
print(steinnorm.__file__)
"""


# What is installed is under test, not what the compiler makes of it.
_FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def pip(*arguments, python=sys.executable):
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)


def use(python, folder, **environment):
    """Runs the program above in an empty folder; what it prints."""
    script = folder / "use.py"
    script.write_text(textwrap.dedent(USE))
    done = subprocess.run(
        [python, str(script), str(folder / "out")],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **_FAST, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("results.json", "table.md", "table.csv", "per_example"):
        assert (folder / "out" / name).exists()
    return done.stdout.strip()


def test_the_installed_package_has_the_attacks(tmp_path):
    """Beside the dependencies that are here already; the slow test installs these as well."""
    target = tmp_path / "site"
    done = pip("install", "--quiet", "--no-deps", "--target", str(target), str(ROOT))
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index for setuptools, which builds the package")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in target.iterdir() if not p.name.endswith(".dist-info")) == [
        "steinnorm"
    ]
    assert (target / "steinnorm" / "py.typed").exists()
    where = use(sys.executable, tmp_path, PYTHONPATH=str(target), PYTHONSAFEPATH="1")
    assert where.startswith(str(target))


@pytest.mark.slow
def test_in_an_empty_environment(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    done = pip("install", "--quiet", str(ROOT), python=python)
    assert done.returncode == 0, done.stderr[-3000:]
    with_plots = use(python, tmp_path, PYTHONPATH="")
    assert with_plots.startswith(str(tmp_path / "venv"))
    absent = "import matplotlib"
    assert subprocess.run([python, "-c", absent], capture_output=True, check=False).returncode
