"""The package, installed and nothing else: it works from any folder, as wheel and as sdist."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile

import pytest

from tests.test_architecture import ROOT
from tests.test_documents import programs

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


def fresh_environment():
    """The variables of a user: flags of the suite may be unknown to the JAX that pip chooses."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    # What is installed is under test, not what the compiler makes of it.
    return kept | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": ""}


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
        env=fresh_environment() | environment,
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


def newer_python():
    """Another Python than this one, newer, or None."""
    for minor in range(20, sys.version_info.minor, -1):
        found = shutil.which(f"python3.{minor}")
        works = found and subprocess.run([found, "-c", "import venv"], capture_output=True)  # noqa: PLW1510
        if works and works.returncode == 0:  # pyenv has a command for versions that are not in use
            return found
    return None


def environment(folder, python=sys.executable):
    """A fresh virtual environment; its interpreter."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The files that ``python -m build`` makes, by their kind."""
    folder = tmp_path_factory.mktemp("build")
    python = environment(folder / "venv")
    done = pip("install", "--quiet", "build", python=python)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index for what builds the package")
    assert done.returncode == 0, done.stderr[-3000:]
    command = [python, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.suffix: path for path in (folder / "dist").iterdir()}
    assert sorted(found) == [".gz", ".whl"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert all(path.name.startswith(f"steinnorm-{version}") for path in found.values())
    return found


def install(distribution, python):
    done = pip("install", "--quiet", str(distribution), python=python)
    assert done.returncode == 0, done.stderr[-3000:]


def run(command, folder):
    """Runs a command of a fresh environment away from the checkout; what it prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=fresh_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def run_front_page(python, folder):
    """Runs the programs of README.md in an empty folder."""
    for number, program in enumerate(programs("README.md")):
        script = folder / f"program{number}.py"
        script.write_text(program)
        out = run([python, str(script)], folder)
    assert re.search(r"^worst +0\.05 ", out, re.MULTILINE)  # the last one prints its results


def passes_the_type_checker(python, folder):
    """Checks types as a user of the installed package does: those of examples/, and a mistake."""
    done = pip("install", "--quiet", "mypy", "optax", "scikit-learn", python=python)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "examples").mkdir()
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, folder / "examples")
    check = [python, "-m", "mypy", "--check-untyped-defs", "--ignore-missing-imports"]
    assert "Success" in run([*check, "examples"], folder)
    mistaken = folder / "mistaken.py"
    mistaken.write_text("import steinnorm\nsteinnorm.stein(fraction=0.5).name + 1\n")
    done = subprocess.run(
        [*check, str(mistaken)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "Unsupported operand types for +" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(distributions, tmp_path):
    python = environment(tmp_path / "venv")
    install(distributions[".whl"], python)
    with_plots = use(python, tmp_path)
    assert with_plots.startswith(str(tmp_path / "venv"))
    absent = "import matplotlib"
    assert subprocess.run([python, "-c", absent], capture_output=True, check=False).returncode
    run_front_page(python, tmp_path)
    passes_the_type_checker(python, tmp_path)


@pytest.mark.slow
def test_the_source_distribution_with_a_newer_python(distributions, tmp_path):
    newer = newer_python()
    if newer is None:
        pytest.skip(f"no Python newer than 3.{sys.version_info.minor} on this machine")
    python = environment(tmp_path / "venv", newer)
    install(distributions[".gz"], python)
    assert use(python, tmp_path).startswith(str(tmp_path / "venv"))
    run_front_page(python, tmp_path)


@pytest.mark.slow
def test_the_source_distribution_with_this_python(distributions, tmp_path):
    """Without its dependencies, which the wheel's test installs: what lies in it is the same."""
    target = tmp_path / "site"
    done = pip(
        "install", "--quiet", "--no-deps", "--target", str(target), str(distributions[".gz"])
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files = {p.relative_to(target) for p in (target / "steinnorm").rglob("*") if p.suffix != ".pyc"}
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        names = {pathlib.Path(n) for n in wheel.namelist() if n.startswith("steinnorm/")}
    assert {f for f in files if (target / f).is_file()} == names
