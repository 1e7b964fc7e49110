"""Programs that several tests of the experiments compile alike are compiled once."""

import importlib
import io

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from experiments.data import devices

_SETTINGS = {
    # Smaller programs are compiled faster than they are read.
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(autouse=True, scope="package")
def _compiled_once(tmp_path_factory):
    """Commands make their programs anew each time, which JAX then compiles anew.

    In a folder of this process: JAX writes its files in place, so that another one might read half
    of one.
    """
    settings = {**_SETTINGS, "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX asks for the folder once, when it first compiles
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def figures_are_not_rendered(monkeypatch):
    """Figures are made but not rendered, which takes longest; for tests that look at none."""
    style = importlib.import_module("experiments.report.plots.style")
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, format="png")

    def png(figure):
        style.plt.close(figure)
        return buffer.getvalue()

    monkeypatch.setattr(style, "png", png)


@pytest.fixture
def several_devices():
    """For tests of evaluations whose batches lie on all four devices."""


@pytest.fixture(autouse=True)
def _one_device_evaluates(request, monkeypatch):
    """Evaluations run on one device in all other tests: programs for four take longer to compile.

    tests/experiments/evaluation/test_measure.py took 37 s of processor time with four, 30 s so.
    """
    if "several_devices" not in request.fixturenames:
        only = devices.own_mesh(1)
        monkeypatch.setattr(devices, "own_mesh", lambda count: only)
