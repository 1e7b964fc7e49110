"""Set up before JAX starts: four host devices, strict promotion, fixtures that many tests share."""

import contextlib
import ctypes
import gc
import importlib
import os
import re
import sys
import traceback
import types
from importlib.metadata import version
from pathlib import Path

# Four devices on one machine, for the multi-device tests. The tests of a single device do not
# mind; what depends on there being one (memory, the demo) runs in a process of its own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's older code for fused loops compiles faster (tests/experiments/commands/test_formats.py and
# test_evaluate.py took 87 s of processor time with the new one, 58 s with this), and it need not
# split a program of the tests' size into 32 parts to compile them side by side
# (tests/test_functional.py: 27 s with the parts, 23 s without). A jaxlib that does not know a flag
# ends the process.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10.")
    + " --xla_cpu_parallel_codegen_split_count=1" * version("jaxlib").startswith(("0.10.", "0.12."))
).strip()

import chex
import flax.nnx
import hypothesis
import jax
import pytest

if not hasattr(jax, "enable_x64"):  # before JAX 0.8
    jax.enable_x64 = importlib.import_module("jax.experimental").enable_x64
# Implicit promotion hides mistakes: ranks are never, dtypes only in tests that mix them.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Nearly all of the suite's time is compilation, and this saves 30 % of it (tests/test_functional.py
# and tests/test_agreement.py: 206 s of processor time with it off, 144 s on).
jax.config.update("jax_disable_most_optimizations", True)

collect_ignore = []
if not hasattr(jax, "set_mesh"):
    collect_ignore.append("test_meshes.py")  # all of it on explicit meshes
if not hasattr(flax.nnx, "capture"):
    # The Linen layer runs with an older Flax than the NNX layer, whose tests in the same files this
    # stand-in skips.
    collect_ignore.append("test_nnx.py")

    class _NoNNXLayer(types.ModuleType):
        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {"__new__": lambda cls, *_, **__: _skip_nnx()})

    def _skip_nnx() -> None:
        pytest.skip(f"steinnorm.nnx needs Flax 0.12.6 or newer, here is {flax.__version__}")

    sys.modules["steinnorm.nnx"] = _NoNNXLayer("steinnorm.nnx")

hypothesis.settings.register_profile(
    "steinnorm",
    deadline=None,  # the first example of a shape compiles
    derandomize=True,  # the same examples on every machine
    max_examples=25,
)
hypothesis.settings.load_profile("steinnorm")


def pytest_collection_finish() -> None:
    """Stops the garbage collector, which visits everything that was imported again and again.

    A worker imports every test file before its first test, and tracing makes many objects: tests
    of networks and of plots took 52 s of processor time without the freeze, 43 s with it; tests of
    networks, devices and robustness 43 s then, and 38 s with the collector off.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """Skips a test that itself uses what this JAX or Flax does not have; not one whose code does.

    The suite also runs on the oldest versions that the library supports (``make test-oldest``).
    """
    try:
        return (yield)
    except AttributeError as error:
        # Modules that look their old names up do so in a function of their own.
        code = [f.f_code for f, _ in traceback.walk_tb(error.__traceback__)]
        asked = [c.co_filename for c in code if c.co_name not in ("getattr", "__getattr__")]
        by_test = Path(asked[-1]).is_relative_to(Path(__file__).parent)
        if by_test and re.match(r"module '(jax|flax\.nnx)' has no attribute", str(error)):
            pytest.skip(f"{error} (jax {jax.__version__}, flax {flax.__version__})")
        raise


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def mixed_dtypes():
    """Flax's own layers mix dtypes, so that comparisons with them need standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="class")
def as_users_compile():
    """All of XLA's optimisations, for tests of what the compiled program does.

    For a class at a time: each change of the compiler throws away all that was compiled.
    """
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.fixture(autouse=True)
def _fresh_trace_counter():
    chex.clear_trace_counter()


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up():
    """Lets go of garbage and of compiled programs when there are many: each has memory maps.

    Without it a worker grew to 5 GiB, and one crashed in the compiler: Linux allows a process
    65,530 maps. At 4,000 it holds about 1.5 GiB.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_text().count("\n") > 4_000:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # where it is not glibc
            ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed


# Modules whose tests start processes of their own and take longest.
_LONGEST = {"test_distributed", "test_killed", "test_documents", "test_many_devices", "test_demo"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest tests first: at the end one worker would wait for the other's."""
    items.sort(key=lambda item: item.path.stem not in _LONGEST)
