"""The benchmark of devices, on tiny shapes: every norm has its row, what fails is recorded."""

import json
import math
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from benchmarks import device_clock, device_report, device_time, device_torch
from tests.children import environment

SHAPE = (2, 4, 4, 8)
SETTING = device_time.Setting(device_clock.Pace(3, 0.001), 1e9, None)


def measured(jobs, end=math.inf):
    """Rows, what was left out, and what was saved last."""
    saved = []
    rows, left_out = device_time.run(jobs, SETTING, end, lambda *found: saved.append(found))
    assert len(saved) > len(rows)  # after every row, and at the end
    assert saved[-1] == (rows, left_out)
    return rows, left_out


def layer_job(tested=False):
    return device_time.Job(
        "layer",
        device_report.LAYERS,
        0.0,
        lambda setting: device_time.layer_rows(SHAPE, "float32", tested, setting),
    )


def test_every_norm_has_a_ratio_and_one_that_fails_a_reason(monkeypatch):
    norms = (*device_time.NORMS, "no such rule")
    monkeypatch.setattr(device_time, "NORMS", norms)
    rows, left_out = measured([layer_job(tested=True)])
    forward, training, tested = rows
    assert [row.mode for row in rows] == ["forward", "forward + backward", "forward"]
    for row, names in (
        (forward, norms[:-1]),
        (training, norms[:-1]),
        (tested, device_time.SOURCES),
    ):
        assert set(row.ratios) == set(row.seconds) == set(row.floors) == set(names)
        assert row.ratios["flax"] == 1
        assert min(row.seconds.values()) > 0
    assert "no such rule" in forward.failures["no such rule"]
    assert training.floors["stein"] == pytest.approx(6 * 4 * math.prod(SHAPE) / 1e9)
    page = device_report.document({"device": "here"}, rows, left_out)
    assert "no such rule: failed: ValueError" in page
    assert page.count("| 2,4,4,8 | float32 |") == 3


def test_networks_are_trained_and_compared(monkeypatch):
    pytest.importorskip("pydantic", reason="networks of experiments, whose packages are missing")
    # Flax's layer mixes dtypes in bfloat16, and this suite is strict, in all threads.
    monkeypatch.setattr(device_time, "DTYPES", ("float32",))
    job = device_time.Job(
        "tiny",
        device_report.NETWORKS,
        0.0,
        lambda setting: device_time.network_rows("tiny", setting),
    )
    rows, _ = measured([job])
    (row,) = rows
    assert not row.failures
    assert set(row.ratios) == set(row.compile) == set(device_time.NETWORK_NORMS)
    low, high = row.spreads["stein"]
    assert low <= row.ratios["stein"] <= high
    page = device_report.document({}, rows, [])
    assert f"images/s, time {row.ratios['stein']:.3f} [{low:.3f}, {high:.3f}]" in page


def test_a_job_that_fails_is_recorded_and_the_rest_goes_on():
    def broken(setting):
        raise RuntimeError("out of\nmemory")

    def works(setting):
        yield device_report.Row("layers", "it", "", "", {"flax": 1.0}, {}, {}, {}, {}, {}, 1)

    part = device_report.LAYERS
    jobs = [device_time.Job("a", part, 0.0, broken), device_time.Job("b", part, 0.0, works)]
    (first, second), _ = measured(jobs)
    assert first.failures == {"all": "RuntimeError: out of memory"}
    assert second.subject == "it"


def test_what_there_is_no_time_for_is_named():
    late = device_time.Job("late", device_report.NETWORKS, 60.0, lambda setting: iter(()))
    soon = time.perf_counter() + 30
    assert measured([late], end=soon) == ([], ["late"])
    assert "time was used: late." in device_report.document({}, [], ["late"])


def test_a_program_that_fails_leaves_the_others_their_times():
    def broken(steps):
        raise MemoryError("full")

    runs = {"a": lambda steps: time.sleep(0.001 * steps), "b": broken}
    times = device_clock.take_turns(runs, "a", SETTING.pace)
    assert times.ratios == {"a": 1.0}
    assert times.spreads == {"a": (1.0, 1.0)}
    assert times.failures == {"b": "MemoryError: full"}
    times = device_clock.take_turns(runs, "b", SETTING.pace)
    assert set(times.seconds) == {"a"}
    assert not times.ratios  # there is no reference


def test_arrays_of_the_start():
    shapes = {"kernel": jnp.zeros((3, 3, 50, 100)), "scale": jnp.zeros(2), "bias": jnp.ones(2)}
    found = device_clock.initial(shapes)
    assert float(found["kernel"].std()) == pytest.approx((2 / 450) ** 0.5, rel=0.05)
    assert found["scale"].tolist() == [1, 1]
    assert found["bias"].tolist() == [0, 0]


def test_pytorch_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(device_torch.sys, "executable", "false")
    peer = device_torch.Peer("cpu")
    try:
        assert peer.measure(shape=SHAPE, dtype="float32", rounds=1, seconds=0.001) == ({}, {})
        assert "ended with 1" in peer.missing
    finally:
        peer.close()


def test_the_command_writes_its_page_without_any_time(tmp_path):
    command = [sys.executable, "-m", "benchmarks.device_time", "--smoke", "--budget", "0"]
    command += ["--no-torch", "--write", tmp_path / "page.md", "--json", tmp_path / "all.json"]
    subprocess.run(command, env=environment(), check=True, timeout=120)
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["rows"] == []
    assert found["left_out"][-1] == "tiny"
    assert {"device", "jax", "flax", "code", "total"} <= set(found["about"])
    assert "Left out" in (tmp_path / "page.md").read_text()
