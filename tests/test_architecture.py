"""The rooms of the house: imports point one way, files stay small, docstrings' examples run."""

import ast
import doctest
import graphlib
import importlib
import inspect
import pathlib
import re
import tomllib
from importlib import metadata

import pytest

import steinnorm

ROOT = pathlib.Path(steinnorm.__file__).parents[1]
LIBRARY = sorted((ROOT / "steinnorm").glob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
PYTHON = sorted(
    p
    for d in ("steinnorm", "experiments", "tests", "benchmarks", "examples")
    for p in (ROOT / d).rglob("*.py")
)
MODULES = [f"steinnorm.{p.stem}" for p in LIBRARY if p.stem != "__init__"]

# Each module may import those before it; linen and nnx are beside each other.
LAYERS = [
    ["_compat"],
    ["_numerics", "_sharding"],
    ["_checks"],
    ["_layer_inputs"],
    ["estimators", "_sums", "torch_weights"],
    ["_common_references"],
    ["_references"],
    ["statistics"],
    ["rules", "_affine", "calibrated"],
    ["shrinkage"],
    ["_rules_applied"],
    ["functional"],
    ["shrinkage_factors", "_calibration", "_nnx_modules", "_freezing"],
    ["_nnx_layer", "_linen_pass"],
    ["linen", "nnx"],
]
FLAX_ALLOWED = {"_linen_pass", "_nnx_modules", "_nnx_layer", "linen", "nnx"}
MAX_LINES = 400
MAX_FUNCTION_LINES = 60  # of code; about 40 is the aim


def imported(path):
    """Names of the modules that a file imports, at any level."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def relative(path):
    return str(path.relative_to(ROOT))


def test_every_module_has_a_layer():
    assert sorted(m for layer in LAYERS for m in layer) == sorted(
        p.stem for p in LIBRARY if p.stem != "__init__"
    )


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_imports_point_one_way(path):
    below = set()
    for layer in LAYERS:
        if path.stem in layer:
            break
        below.update(layer)
    for name in imported(path):
        top = name.split(".")[0]
        assert top != "experiments", f"{path.name} imports {name}"
        assert top != "flax" or path.stem in FLAX_ALLOWED, f"{path.name} imports {name}"
        ours = re.match(r"steinnorm\.(\w+)", name)
        if ours and path.stem != "__init__" and ours[1] in {m for la in LAYERS for m in la}:
            assert ours[1] in below, f"{path.name} imports {name}, which is not below it"


def test_the_library_needs_jax_and_flax_only():
    known = {"jax", "flax", "numpy", "steinnorm"}  # numpy comes with jax
    standard = set(__import__("sys").stdlib_module_names)
    for path in LIBRARY:
        for name in imported(path):
            assert name.split(".")[0] in known | standard, f"{path.name} imports {name}"


# What needs more than jax and numpy, and is imported only where it is asked for.
def attack_modules():
    """Modules of the attacks by name, packages by that of their folder."""
    for path in (ROOT / "steinnorm" / "attacks").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_imports_of_attacks_go_round_in_no_circle():
    modules = dict(attack_modules())
    above = {}
    for name, path in modules.items():
        found = set(imported(path)) & set(modules)
        # "from package import module" needs the module, not all that the package names.
        packages = {other.rpartition(".")[0] for other in found}
        above[name] = found - packages
    order = tuple(graphlib.TopologicalSorter(above).static_order())
    assert set(order) == set(modules)


ATTACKS_MORE = {
    "progress_bar.py": {"rich"},
    "plots.py": {"matplotlib"},
    "pictures.py": {"matplotlib"},
    "intervals.py": {"scipy"},  # which JAX itself requires; imported where an interval is computed
    "paired.py": {"scipy"},
}


def test_attacks_need_jax_and_numpy_only():
    known = {"jax", "numpy", *__import__("sys").stdlib_module_names}
    for path in (ROOT / "steinnorm" / "attacks").rglob("*.py"):
        for name in imported(path):
            ours = name == "steinnorm" or name.startswith("steinnorm.attacks")
            allowed = known | ATTACKS_MORE.get(path.name, set())
            assert ours or name.split(".")[0] in allowed, f"{relative(path)} imports {name}"


# The rooms of the experiments, a file or a folder each; inside a folder files may use each other.
ROOMS = [
    ["errors", "results"],
    ["configs"],
    ["data"],
    ["tasks", "models"],
    ["training", "evaluation"],  # neither imports the other
    ["report"],
    ["commands"],
    ["__main__"],
]


def room(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "experiments" and len(parts) > 1 else None


def test_every_file_of_the_experiments_has_a_room():
    found = {p.relative_to(ROOT / "experiments").parts[0].removesuffix(".py") for p in EXPERIMENTS}
    rooms = [name for layer in ROOMS for name in layer]
    assert sorted(found - {"__init__"}) == sorted(rooms)  # none stands in two places
    assert len(set(rooms) - {"__main__"}) <= 10


@pytest.mark.parametrize("path", EXPERIMENTS, ids=relative)
def test_rooms_of_the_experiments_look_one_way(path):
    own = path.relative_to(ROOT / "experiments").parts[0].removesuffix(".py")
    below = {own, "__init__"}
    for layer in ROOMS:
        if own in layer:
            break
        below.update(layer)
    known = {name for layer in ROOMS for name in layer}
    for name in imported(path):
        assert room(name) not in known - below, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_files_and_functions_are_small(path):
    text = path.read_text()
    if "tests" not in path.parts:
        assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            has_docstring = ast.get_docstring(node) is not None
            first = node.body[1] if has_docstring and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name}"


def public_objects():
    for name in [*MODULES, "steinnorm"]:
        module = importlib.import_module(name)
        if name.startswith("steinnorm._"):
            continue
        for attribute in getattr(module, "__all__", vars(module)):
            value = getattr(module, attribute)
            if not attribute.startswith("_") and callable(value):
                yield pytest.param(value, id=f"{name}.{attribute}")


@pytest.mark.parametrize("value", list(public_objects()))
def test_public_names_are_documented(value):
    text = inspect.getdoc(value)
    assert text, f"{value} has no docstring"
    if inspect.isfunction(value):
        arguments = [
            name
            for name, p in inspect.signature(value).parameters.items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        for argument in arguments:
            assert len(arguments) == 1 or re.search(rf"^\s*{argument}:", text, re.MULTILINE), (
                f"{value.__name__} does not describe {argument}"
            )


# Modules of the attacks whose public docstrings have examples.
EXAMPLES = [
    "steinnorm.attacks._model",
    "steinnorm.attacks.apgd",
    "steinnorm.attacks.autoattack",
    "steinnorm.attacks.batch_threats",
    "steinnorm.attacks.catalogue",
    "steinnorm.attacks.checks.run",
    "steinnorm.attacks.dependence",
    "steinnorm.attacks.fab",
    "steinnorm.attacks.intervals",
    "steinnorm.attacks.noise",
    "steinnorm.attacks.pgd",
    "steinnorm.attacks.pgd_scan",
    "steinnorm.attacks.random_models",
    "steinnorm.attacks.result",
    "steinnorm.attacks.robustness.call",
    "steinnorm.attacks.segmentation",
    "steinnorm.attacks.square",
    "steinnorm.attacks.threat",
]


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("name", [*MODULES, *EXAMPLES])
def test_docstring_examples_run(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert attempted or name not in EXAMPLES


def test_no_other_file_of_the_library_says_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert steinnorm.__version__ == version, "pyproject.toml changed: pip install -e . again"
    assert f"[{version}]" in (ROOT / "CHANGELOG.md").read_text()
    for path in [*LIBRARY, ROOT / "README.md"]:
        assert version not in path.read_text(), f"{relative(path)} says the version again"


def test_a_package_that_is_not_installed_has_a_version_below_all(monkeypatch):
    def not_installed(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert steinnorm._version() == "0+unknown"


def test_no_machine_paths():
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|tmp)/|\.\./shared")
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "CITATION.cff"]
    documents += [ROOT / folder / "README.md" for folder in ("experiments", "examples")]
    for path in [*PYTHON, *documents, ROOT / "Makefile", ROOT / "pyproject.toml"]:
        if path.name != "test_architecture.py":
            assert not pattern.search(path.read_text()), relative(path)
