"""Names that people look for in steinnorm itself: the error says where they are."""

import importlib
import subprocess
import sys
import types

import flax.nnx
import pytest

import steinnorm

PLACES = {
    "steinnorm.linen": ["BatchNorm", "SteinBatchNorm", "calibrate", "freeze"],
    "steinnorm.nnx": [
        *("CalibrationStat", "ShrinkageFactor", "SteinBatchNorm"),
        *("calibrate", "convert", "freeze", "revert"),
    ],
    "steinnorm.torch_weights": importlib.import_module("steinnorm.torch_weights").__all__,
    "steinnorm.attacks": [
        name
        for name, value in vars(importlib.import_module("steinnorm.attacks")).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ],
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PLACES.items() for name in names]
)
def test_the_error_names_the_module_that_has_it(module, name):
    assert hasattr(importlib.import_module(module), name)
    with pytest.raises(ImportError, match=rf"{name} is not in steinnorm itself.*{module}\b"):
        exec(f"from steinnorm import {name}", {})
    with pytest.raises(ImportError, match=module):
        getattr(steinnorm, name)


def test_no_name_is_sent_elsewhere_in_vain():
    for where, names in steinnorm._ELSEWHERE.items():
        for name in names:
            assert any(name in PLACES[module] for module in PLACES if module in where), name
            assert name not in vars(steinnorm)


def test_names_that_are_nowhere_are_plain_attribute_errors():
    assert not hasattr(steinnorm, "SteinBathNorm")
    with pytest.raises(ImportError, match="cannot import name 'SteinBathNorm'"):
        exec("from steinnorm import SteinBathNorm", {})


def test_the_nnx_layer_says_which_flax_it_needs(monkeypatch):
    monkeypatch.delattr(flax.nnx, "capture", raising=False)
    monkeypatch.delitem(sys.modules, "steinnorm.nnx", raising=False)
    with pytest.raises(ImportError, match=r"needs flax 0\.12\.6 or newer, installed is \d"):
        importlib.import_module("steinnorm.nnx")


@pytest.mark.skipif(not hasattr(flax.nnx, "capture"), reason="steinnorm.nnx needs Flax 0.12.6")
def test_modules_that_were_not_imported():
    program = """
import steinnorm
try:
    steinnorm.attacks
except AttributeError as error:
    print(error)
from steinnorm import attacks, linen, nnx
print(attacks.pgd.__name__, linen.__name__, nnx.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines() == [
        "module 'steinnorm' has no attribute 'attacks'; write: import steinnorm.attacks",
        "pgd steinnorm.linen steinnorm.nnx",
    ]
