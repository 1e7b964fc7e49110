"""The documentation site leaves nothing out: neither a page nor a public name."""

import ast
import importlib
import pkgutil
import re
import types

import pytest

import steinnorm
from tests.test_architecture import ROOT, relative

API_PAGES = sorted((ROOT / "docs" / "api").glob("*.rst"))
DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)(\w+):: (\S+)$", re.MULTILINE)
# Packages of the attacks that users import from; their modules are named where they are meant.
PACKAGES = ["steinnorm", "steinnorm.attacks"]
PACKAGES += [f"steinnorm.attacks.{name}" for name in ("checks", "robustness")]
ATTACK_MODULES = ["batch_threats", "catalogue"]


def documented():
    """Pairs of kind and full name, as the pages of the reference have them."""
    return [pair for page in API_PAGES for pair in DIRECTIVE.findall(page.read_text())]


def resolve(name):
    """The object of a full name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def public_modules():
    """Modules with ``__all__`` and no underscore, and packages whose names stand for it."""
    for module in pkgutil.iter_modules(steinnorm.__path__, "steinnorm."):
        if "._" not in module.name and not module.ispkg:
            yield module.name
    yield from PACKAGES
    yield from (f"steinnorm.attacks.{name}" for name in ATTACK_MODULES)


def public_names(module):
    """Names that a module offers: ``__all__``, or what it defines or imports from our packages."""
    if hasattr(module, "__all__"):
        return module.__all__
    package = hasattr(module, "__path__")
    return [
        name
        for name, value in vars(module).items()
        if not (name.startswith("_") or isinstance(value, types.ModuleType))
        and (package or getattr(value, "__module__", None) == module.__name__)
        and name != "TYPE_CHECKING"
    ]


@pytest.mark.parametrize("name", list(public_modules()))
def test_every_public_name_is_in_the_reference(name):
    module = importlib.import_module(name)
    names = {full for _, full in documented()}
    objects = [resolve(full) for kind, full in documented() if kind in ("function", "class")]
    assert public_names(module)
    for attribute in public_names(module):
        value = getattr(module, attribute)
        # Also under the name of another module that offers the same function or class.
        known = f"{name}.{attribute}" in names or any(value is other for other in objects)
        assert known, f"{name}.{attribute} has no line in docs/api/"


def test_the_reference_names_what_exists_and_once():
    names = [full for kind, full in documented() if kind != "module"]
    assert len(names) == len(set(names))
    for name in names:
        resolve(name)
    for kind, name in documented():
        if kind == "module":
            assert importlib.import_module(name).__doc__


def assigned(name):
    """The value of a name in the site's configuration, which needs Sphinx to be imported."""
    tree = ast.parse((ROOT / "docs" / "conf.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return node.value
    raise AssertionError(f"docs/conf.py has no {name}")


def test_every_page_is_in_the_sidebar():
    texts = [
        node.value
        for name in ("CONTENTS", "RESULTS")
        for node in ast.walk(assigned(name))
        if isinstance(node, ast.Constant) and not node.value.endswith("/")  # of the f-string
    ]
    listed = {re.sub(r"^.*<(.+)>$", r"\1", text) for text in texts}
    pages = [
        page
        for folder in ("docs", "docs/api")
        for pattern in ("*.md", "*.rst")
        for page in (ROOT / folder).glob(pattern)
        if not page.name.startswith("results")  # found by its name
    ]
    assert len(pages) > 15
    for page in pages:
        assert relative(page.with_suffix("")) in listed, f"{relative(page)}: no place in CONTENTS"
    for page in listed:
        if page.startswith(("docs/", "experiments/", "examples/")):
            assert list(ROOT.glob(f"{page}.*")), f"{page} is in CONTENTS and does not exist"
