"""The command shift: a smoke run as users type it, killed and gone on; mistakes in one line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.__main__ import main
from experiments.commands.shift import _labels
from tests.experiments import cli
from tests.experiments.data import test_cityscapes as cityscapes
from tests.experiments.data import test_volumes as volumes


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return cli.environment(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two short trainings that differ in their seed."""
    root = tmp_path_factory.mktemp("trained")
    for seed in (0, 1):
        arguments = ["train", "digits", "--smoke", "--epochs", "1", "--norm", "batch"]
        assert main([*arguments, "--seed", str(seed), "--workdir", str(root / f"S{seed}")]) == 0
    return root


def _measured(out):
    """Every array of every file, by file and place."""
    return {
        (str(path.relative_to(out)), name): array
        for path in sorted(out.rglob("*.npz"))
        for name, array in np.load(path).items()
        if name != "about"
    }


# What goes on where is fast: tests/experiments/evaluation/shift/test_network.py.
@pytest.mark.slow
def test_a_smoke_run_killed_and_gone_on(trained, env, tmp_path):
    arguments = ["shift", trained / "S0", trained / "S1", "--smoke"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out, _ = cli.succeeds([*arguments, "--out", whole, "--data-name", "digits | half"], env)
    assert "mean accuracy over all conditions" in out
    rows = json.loads((whole / "shift.json").read_text())
    networks = {row["network"] for row in rows}
    assert networks == {"S0", "S1", "Mean of S0, S1"}
    rules = {row["rule"] for row in rows}
    assert {"running", "batch", "N/(N+n)", "shrunk"} <= rules
    for row in rows:
        assert 0 <= row["ci_low"] <= row["ci_high"] <= 1
    text = (whole / "shift.md").read_text()
    assert "--smoke" in text
    assert "jaxlib" in text
    assert "**Caution:**" in text
    assert (whole / "shift.png").read_bytes().startswith(b"\x89PNG")

    with cli.started([*arguments, "--out", killed], env) as process:
        cli.until(lambda: len(list(killed.rglob("*.npz"))) > 2, process)
        process.kill()
        process.wait()
    cli.succeeds([*arguments, "--out", killed], env)
    one, other = _measured(whole), _measured(killed)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=str(name))
    times = {path: path.stat().st_mtime_ns for path in killed.rglob("*.npz")}
    cli.succeeds([*arguments, "--out", killed], env)
    assert times == {path: path.stat().st_mtime_ns for path in killed.rglob("*.npz")}
    again = json.loads((killed / "shift.json").read_text())
    for row, expected in zip(again, rows, strict=True):
        assert row["value"] == expected["value"]


def _volumes(root):
    """40 volumes: 24 for training, 8 for validation, 8 for the test."""
    volumes._table(root, volumes._rows(root, 40))


def _frames(root):
    """14 frames of noise in some colour, 4 of them for the test."""
    random = np.random.default_rng(0)
    for i in range(14):
        labels = random.choice([7, 11, 23], (32, 48)).astype(np.uint8)
        name = "train" if i < 10 else "val"
        image, _ = cityscapes._write(root, name, f"city/{i:03d}", i, (32, 48), labels=labels)
        pixels = 12 * i + random.integers(0, 80, (32, 48, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(image)


@pytest.mark.parametrize(
    ("config", "write", "metric", "examples"),
    [
        ("volumes", _volumes, "accuracy", 8),
        # Compiling the network for six rules, two sizes and the gradient takes a minute.
        pytest.param("cityscapes", _frames, "miou", 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:a calibration from")  # of so few examples
def test_volumes_and_label_maps(tmp_path, config, write, metric, examples):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    work, out, cache = (tmp_path / name for name in ("work", "out", "cache"))
    where = ["--data-dir", str(tmp_path / "data"), "--cache-dir", str(cache)]
    arguments = ["--smoke", "--epochs", "1", "--norm", "batch", "--workdir", str(work)]
    assert main(["train", config, *arguments, *where]) == 0
    arguments = [str(work), "--out", str(out), "--smoke", "--cache-dir", str(cache)]
    assert main(["shift", *arguments]) == 0
    rows = json.loads((out / "shift.json").read_text())
    assert {row["metric"] for row in rows} == {metric}
    assert {row["n"] for row in rows if row["batches"] == "mixed"} == {examples}
    assert {row["batches"] for row in rows} == {"mixed", "sorted"}
    # The network is hardly trained, but conditions and rules do change its answers.
    assert len({row["value"] for row in rows}) > 1


def _fails(capsys, *arguments):
    status = main(["shift", *map(str, arguments)])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--test-examples", "1"], "test_examples must be at least 2; got 1"),
        (["--seed", "-1"], "seed must be at least 0; got -1"),
        (["--weights", "first"], "weights must be best or last; got 'first'"),
    ],
)
def test_wrong_settings(trained, tmp_path, capsys, more, words):
    status, said = _fails(capsys, trained / "S0", "--out", tmp_path / "out", *more)
    assert status == 2
    assert words in said


def test_wrong_folders(trained, tmp_path, capsys):
    work = trained / "S0"
    status, said = _fails(capsys, tmp_path / "none", "--out", tmp_path / "out")
    assert (status, "is not the work folder of a training" in said) == (2, True)
    status, said = _fails(capsys, work, work, "--out", tmp_path / "out")
    assert (status, "named twice" in said) == (2, True)
    status, said = _fails(capsys, work, "--out", work)
    assert (status, "choose another --out" in said) == (2, True)
    group = tmp_path / "group"
    shutil.copytree(work, group)
    settings = json.loads((group / "config.json").read_text())
    (group / "config.json").write_text(json.dumps({**settings, "norm": "group"}))
    status, said = _fails(capsys, work, group, "--out", tmp_path / "out")
    assert (status, "norm group, which has no batch statistics" in said) == (2, True)


def test_labels_are_the_shortest_that_tell_folders_apart(tmp_path):
    one, two, three = tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"
    assert list(_labels([one, three]).values()) == ["x", "y"]
    assert list(_labels([one, two, three]).values()) == ["a/x", "b/x", "b/y"]
