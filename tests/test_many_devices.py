"""Nothing grows with the number of devices: programs compiled for 1, 8, 64 and 256 of them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests import children

CHANNELS, FEW = 6, 4  # as in many_devices.py; "3 C and a few numbers"


def report(devices, *what):
    """What a process with so many devices has to say."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.many_devices", *what],
        cwd=root,
        env=children.environment(devices, PYTHONPATH=str(root)),
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
def test_what_devices_reduce_and_which_programs_they_run():
    """Some C numbers are reduced forward and as many backward, with 64 as with 8 devices.

    And for an input on one device, and for a mesh of four, the program is the same whatever the
    process sees.  One test, so that each number of devices has one process.
    """
    few, many = (report(devices, "reduced", "programs") for devices in (8, 64))
    assert len(few["reduced"]) == 7  # three rules under jit and in shard_map, one in pmap
    for way, counts in few["reduced"].items():
        assert_little_is_reduced(counts, most=8 if "toward_running" in way else 3)
    assert many["reduced"] == few["reduced"]

    one, few, many = (found["programs"] for found in (report(1, "programs"), few, many))
    assert one["one device"] == few["one device"] == many["one device"]
    assert few["four devices"] == many["four devices"]
    assert len(many["four devices"]) == 6


@pytest.mark.slow
def test_what_256_devices_reduce():
    assert report(256, "reduced") == report(8, "reduced")
