"""The programs of examples/ run as a user runs them, and what they print holds."""

import re
import subprocess
import sys

import pytest

from steinnorm.attacks.checks import NAMES
from tests import children
from tests.test_architecture import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PERCENT = r"(\d+\.\d)%"
NUMBER = r"([\d.e+-]+)"


def printed_by(name):
    """What an example prints, in a process of its own with the devices that a user has."""
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py"],
        cwd=ROOT,
        env=children.environment(PYTHONPATH=str(ROOT)),  # this checkout, whichever is installed
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(pattern, text):
    """The numbers of all places where a pattern with one group fits."""
    return [float(found) for found in re.findall(pattern, text, re.MULTILINE)]


def test_every_example_is_short_listed_and_run():
    page = (ROOT / "examples" / "README.md").read_text()
    tests = (ROOT / "tests" / "test_examples.py").read_text()
    assert EXAMPLES
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 80
        assert f"`python examples/{path.name}`" in page
        assert f'printed_by("{path.stem}")' in tests


def test_linen_training():
    out = printed_by("linen_training")
    losses = numbers(rf"^epoch \d: loss of the last batch {NUMBER}$", out)
    assert losses[-1] < losses[0] / 2
    # A network whose statistics are not recorded has nearly the same accuracy (94.7).
    (means,) = re.findall(rf"^running means of the layer: {NUMBER} to {NUMBER}$", out, re.M)
    assert float(means[0]) < -0.05 < 0.05 < float(means[1])
    (accuracy,) = numbers(rf"^test accuracy: {PERCENT} of 360 images$", out)
    assert accuracy > 90  # of ten classes; measured: 96.7


def test_nnx_convert():
    out = printed_by("nnx_convert")
    assert "converted: SteinBatchNorm in place of BatchNorm\n" in out
    (accuracy,) = numbers(rf"^test accuracy: {PERCENT} of 360 images$", out)
    assert accuracy > 90  # measured: 95.3
    # The logits of a network that was not loaded differ by 14.
    differences = numbers(rf"^loaded into \w+: logits differ by at most {NUMBER}$", out)
    assert len(differences) == 2
    assert max(differences) < 1e-4


def test_two_devices():
    out = printed_by("two_devices")
    assert "devices: 2, 32 examples of each batch on each\n" in out
    one, two = numbers(rf"^loss of step 20 on \w+ devices?: +{NUMBER}$", out)
    assert one < 1  # 2.3 for a network that has learned nothing
    assert two == pytest.approx(one, rel=1e-5)
    (difference,) = numbers(rf"^largest relative difference of 20 steps: {NUMBER}$", out)
    assert difference < 1e-5


def test_evaluate_robustness():
    out = printed_by("evaluate_robustness")
    (clean,) = numbers(r"^none +([\d.]+) %", out)
    assert clean > 90
    worst = numbers(r"^worst +[\d.]+ +([\d.]+) %", out)
    assert worst[1] < worst[0] < clean
    for attack in ("pgd", "pgd-margin", "square"):
        under_attack = numbers(rf"^{attack} +[\d.]+ +([\d.]+) %", out)
        assert all(w <= a < clean for w, a in zip(worst, under_attack, strict=True))
    verdicts = re.findall(r"^(PASS|FAIL|not applicable) +\w+(?:: |$)", out, re.MULTILINE)
    assert len(verdicts) == len(NAMES)
    assert "FAIL" not in verdicts
    assert f"{worst[1]:.1f}% at radius 0.1, beside {clean:.1f}% clean." in out
