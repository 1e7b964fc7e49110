"""Inputs that are split over devices: the result is that of one device."""

import subprocess
import sys

import jax
import pytest

from tests import children
from tests.attacks.split_inputs import FEW, SOME

pytestmark = pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="explicit meshes need JAX 0.8")


def differences(*arguments, **compiler):
    """What the comparison prints, run with two devices in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacks.split_inputs", *arguments],
        env=children.environment(2, **compiler),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split(";") for line in done.stdout.splitlines()]
    return [(way, name, float(difference)) for way, name, difference in lines]


def test_the_result_is_that_of_one_device():
    found = differences()
    assert [name for way, name, _ in found if way == "explicit"] == list(SOME)
    assert len(found) == len(SOME) + 3 * len(FEW) + 2
    assert max(difference for *_, difference in found) <= 1e-5


@pytest.mark.slow
def test_every_attack_in_every_way_of_splitting():
    found = differences("all", as_users_compile=True)
    assert len(found) == 4 * 20 + 2
    assert max(difference for *_, difference in found) <= 1e-5
