"""Nothing grows with the number of devices: programs compiled for 1, 8, 64 and 256 of them."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

CHANNELS, FEW = 6, 4  # as in many_devices.py; "3 C and a few numbers"


@functools.cache
def report(devices, what):
    """What a process with so many devices has to say."""
    root = Path(__file__).parents[1]
    forced = f"--xla_force_host_platform_device_count={devices}"
    paths = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": forced, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.many_devices", what],
        cwd=root,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def assert_little_is_reduced(counts, most):
    forward, both = counts["forward"], counts["both"]
    assert forward["always"] + forward["in_branches"] <= most * CHANNELS + FEW
    assert both["always"] - forward["always"] <= 3 * CHANNELS + FEW
    assert both["in_branches"] == forward["in_branches"]
    assert forward["all_reduces"] == 1  # a second only in the branch that sums again
    assert both["all_reduces"] == 2
    assert forward["all_reduces_in_branches"] <= 1
    assert forward["others"] == both["others"] == 0


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="this XLA does not merge all-reduces")
def test_what_devices_reduce():
    """Some C numbers forward and as many backward, with 64 as with 8 devices.

    One test, so that workers do not compile the same twice.
    """
    few = report(8, "reduced")
    assert len(few) == 7  # three rules under jit and in shard_map, one in pmap
    for way, counts in few.items():
        assert_little_is_reduced(counts, most=8 if "toward_running" in way else 3)
    assert report(64, "reduced") == few


@pytest.mark.slow
def test_what_256_devices_reduce():
    assert report(256, "reduced") == report(8, "reduced")


def test_programs_do_not_depend_on_how_many_devices_there_are():
    """For an input on one device, and for a mesh of four, whatever the process sees."""
    one, few, many = (report(devices, "programs") for devices in (1, 8, 64))
    assert one["one device"] == few["one device"] == many["one device"]
    assert few["four devices"] == many["four devices"]
    assert len(many["four devices"]) == 6
