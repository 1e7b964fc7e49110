"""What results are, and that knowing it costs nothing."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.results import LoggedStep, ResultKey, Row, logged_steps, read_log

ROW = Row("digits", "stein", 0, "batch", "pgd", 0.1, "accuracy", 0.5, 100, 0.4, 0.6)
LINE = '{"kind": "train", "step": 2, "epoch": 0.5, "loss": 1.5, "accuracy": 0.25, "factors": {}'


def test_importing_results_loads_the_standard_library_only():
    program = (
        "import sys; import experiments.results\n"
        "assert not {'jax', 'numpy', 'flax', 'orbax', 'grain', 'pydantic'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_row_knows_the_measurement_that_it_is_a_number_of():
    row = dataclasses.replace(ROW, threat_model="joint", norm_order="linf")
    key = ResultKey("digits", "stein", 0, "batch", "joint", "pgd", 0.1, "linf")
    assert row.key == key
    assert ResultKey.of({**dataclasses.asdict(key), "identity": {}}) == key
    with pytest.raises(KeyError, match="config"):
        ResultKey.of({"norm": "stein"})


def test_a_log_is_read_up_to_a_line_that_was_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logged_steps(path) == []
    path.write_text(
        LINE + ', "learning_rate": 0.1, "examples_per_second": 3}\n'
        '{"kind": "validation", "step": 2, "accuracy": null}\n' + LINE
    )
    assert [line["kind"] for line in read_log(path)] == ["train", "validation"]
    assert logged_steps(path) == [LoggedStep(2, 0.5, 1.5, 0.25, {}, 0.1)]
