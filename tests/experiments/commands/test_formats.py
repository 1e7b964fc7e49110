"""The commands train and evaluate on small data in the real formats, and on the real sets."""

import json

import pytest

from experiments import data
from experiments.__main__ import main
from experiments.configs.data import Cifar10Data
from experiments.models import hrnet
from experiments.models.norms import NORMS, shrinkage
from steinnorm.attacks.checks import NAMES
from tests.experiments import cli
from tests.experiments.data import real
from tests.experiments.data import test_cifar10 as cifar10
from tests.experiments.data import test_cityscapes as cityscapes
from tests.experiments.data import test_volumes as volumes

METRICS = {
    "classification": {"accuracy", "loss"},
    "binary": {"auc", "accuracy", "loss"},
    "segmentation": {"miou", "micro_jaccard", "pixel_accuracy", "loss"},
}


@pytest.fixture(scope="module")
def cifar10_dir(tmp_path_factory):
    """120 images, prepared by TFDS itself."""
    root = tmp_path_factory.mktemp("cifar10")
    cifar10._raw(root / "raw")
    with pytest.MonkeyPatch.context() as patch:
        cifar10._download(patch, root / "raw")
        data.load(Cifar10Data(), root / "tfds")
    return root / "tfds"


@pytest.fixture(scope="module")
def volumes_dir(tmp_path_factory):
    """40 volumes: 24 for training, 8 for validation, 8 for the test."""
    root = tmp_path_factory.mktemp("volumes")
    volumes._table(root, volumes._rows(root, 40))
    return root


@pytest.fixture(scope="module")
def cityscapes_dir(tmp_path_factory):
    """17 frames: the splits `train`, `val` and `test`."""
    root = tmp_path_factory.mktemp("cityscapes")
    for i in range(17):
        name = "train" if i < 10 else "val" if i < 14 else "test"
        cityscapes._write(root, name, f"city/{i:03d}", i, (32, 48))
    return root


def _train(config, workdir, data_dir, *more):
    arguments = ["train", config, "--smoke", "--workdir", str(workdir), "--log-every", "1"]
    where = ["--data-dir", str(data_dir), "--cache-dir", str(workdir.parent / "cache")]
    return main([*arguments, *where, *more])


def _check_training(workdir, norm, validated=True):
    """Settings and log are whole; returns the configuration."""
    content = json.loads((workdir / "config.json").read_text())
    assert content["norm"] == norm
    assert content["versions"]["jax"]
    config = content["config"]
    rows = cli.log(workdir, "train")
    last = rows[-1]["step"]
    assert [row["step"] for row in rows] == list(range(1, last + 1))
    assert rows[-1]["epoch"] == config["train"]["epochs"]
    assert cli.steps(workdir)[-1] == last
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert row["loss"] > 0
        assert bool(row["factors"]) == (shrinkage(norm) is not None)
    scores = cli.log(workdir, "validation")
    assert len(scores) == (config["train"]["epochs"] if validated else 0)
    for line in scores:
        assert set(line) - {"kind", "step"} == METRICS[config["task"]]
    return config


def _check_results(workdir, config, norm, n, attacks=("clean",)):
    rows = cli.results(workdir)
    derived = {row["attack"] for row in rows} & {"worst", "convergence"}
    assert bool(derived) == (len(attacks) > 1)
    rows = [row for row in rows if row["attack"] not in derived]
    wanted = {"none"} if norm == "group" else set(config["evaluation"]["statistics"])
    assert {row["statistics"] for row in rows} == wanted
    assert {row["attack"] for row in rows} == set(attacks)
    groups = {(row["statistics"], row["attack"], row["epsilon"]) for row in rows}
    assert len(rows) == len(groups) * len(METRICS[config["task"]])
    assert {row["metric"] for row in rows} == METRICS[config["task"]]
    for row in rows:
        assert row["config"] == config["name"]
        assert row["norm"] == norm
        assert row["n"] == n
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        if row["metric"] != "loss":
            assert row["ci_low"] >= 0
            assert row["ci_high"] <= 1


# Each norm compiles a training of its own; two of different kinds stand for all.
FAST = ("stein", "group")


@pytest.mark.parametrize(
    "norm", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NORMS]
)
def test_every_norm_on_volumes(norm, volumes_dir, tmp_path, capsys):
    workdir = tmp_path / "work"
    assert _train("volumes", workdir, volumes_dir, "--norm", norm) == 0
    config = _check_training(workdir, norm)
    out = capsys.readouterr().out
    assert f"norm {norm}, seed 0: 16 training, 8 validation examples" in out
    assert f"python -m experiments evaluate {workdir}" in out
    # The data folder is the one that was noted.
    assert cli.evaluate(workdir) == 0
    _check_results(workdir, config, norm, n=8)
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {workdir / 'results.json'}"


# The smallest network that fuses resolutions; a third branch only takes longer to compile.
TWO_BRANCHES = hrnet.HRNetSize((2, 2), 1, 4, (4, 8), (1,), 1)


@pytest.mark.parametrize(
    ("config", "preset", "norm", "n"),
    [
        pytest.param("cifar10", "paper", "stein", 16, marks=pytest.mark.slow),
        ("cifar10", "strong", "group", 16),
        ("cityscapes", "strong", "stein", 4),
        pytest.param("cityscapes", "camvid", "batch", 3, marks=pytest.mark.slow),
        pytest.param("cityscapes", "paper", "jsnorm", 4, marks=pytest.mark.slow),
    ],
)
def test_smoke(config, preset, norm, n, request, tmp_path, monkeypatch):  # noqa: PLR0917
    if preset == "strong":  # the others, which are slow, train all three branches
        monkeypatch.setitem(hrnet.SIZES, "smoke", TWO_BRANCHES)
    workdir, data_dir = tmp_path / "work", request.getfixturevalue(f"{config}_dir")
    more = ["--set", "data.test_examples=16"] if config == "cifar10" else []
    assert _train(config, workdir, data_dir, "--preset", preset, "--norm", norm, *more) == 0
    resolved = _check_training(workdir, norm)
    assert resolved["preset"] == preset
    assert cli.evaluate(workdir, "--statistics", "running") == 0
    resolved["evaluation"]["statistics"] = ["running"]
    _check_results(workdir, resolved, norm, n=n)


def test_attacks_statistics_and_last_weights(volumes_dir, tmp_path, capsys):
    workdir = tmp_path / "work"
    adversary = 'train.adversary={"epsilon":0.03,"steps":2}'
    assert _train("volumes", workdir, volumes_dir, "--set", adversary) == 0
    config = _check_training(workdir, "stein")
    assert config["train"]["adversary"]["steps"] == 2
    capsys.readouterr()
    more = ["--attacks", "all", "--epsilon", "2/255,0.1", "--statistics", "running"]
    assert cli.evaluate(workdir, *more, "--weights", "last") == 0
    assert f"last weights, of step {cli.steps(workdir)[-1]};" in capsys.readouterr().out
    config["evaluation"]["statistics"] = ["running"]
    attacks = {"clean", "gaussian", "fgsm", "pgd"}
    _check_results(workdir, config, "stein", n=8, attacks=attacks)
    rows = cli.results(workdir)
    assert {r["epsilon"] for r in rows if r["attack"] == "pgd"} == {2 / 255, 0.1}
    losses = {
        (r["attack"], r["epsilon"]): r["value"]
        for r in rows
        if r["metric"] == "loss" and r["statistics"] == "running"
    }
    assert losses["clean", 0] < losses["fgsm", 2 / 255] < losses["pgd", 0.1]
    for row in rows:
        assert row["max_norm"] <= row["epsilon"] + 1e-6
        if row["attack"] != "convergence":
            assert (row["min"] >= 0, row["max"] <= 1, row["nan_count"]) == (True, True, 0)
    curve = [r for r in rows if r["attack"] == "convergence"]
    assert curve
    assert all(0 <= r["ci_low"] <= r["value"] <= r["ci_high"] <= 1 for r in curve)
    assert all(r["ci_high"] - r["ci_low"] > 0.2 for r in curve)  # 8 volumes
    checks = json.loads((workdir / "checks.json").read_text())
    assert tuple(check["name"] for check in checks) == NAMES

    assert cli.evaluate(workdir) == 0  # the best weights
    best = max(cli.log(workdir, "validation"), key=lambda line: line["auc"])
    assert f"best weights, of step {best['step']};" in capsys.readouterr().out


@pytest.mark.slow
def test_adversarial_training_of_a_segmentation(cityscapes_dir, tmp_path, capsys):
    workdir = tmp_path / "work"
    adversary = 'train.adversary={"epsilon":0.03,"steps":2}'
    more = ["--set", adversary, "--norm", "batch", "--epochs", "1"]
    assert _train("cityscapes", workdir, cityscapes_dir, *more) == 0
    _check_training(workdir, "batch")
    assert cli.evaluate(workdir, "--attacks", "autoattack") == 2
    assert "autoattack is for one label per example" in capsys.readouterr().err
    assert cli.evaluate(workdir, "--attacks", "segpgd,sea", "--steps", "4") == 0
    attacks = {row["attack"] for row in cli.results(workdir)}
    assert attacks == {"clean", "segpgd", "sea", "worst", "convergence"}


@pytest.mark.parametrize(
    ("config", "preset", "name"),
    [
        ("volumes", "hippocampus", "hippocampus"),
        pytest.param("cityscapes", "camvid", "camvid", marks=pytest.mark.slow),
        # Half a minute to decode.
        pytest.param("cifar10", "strong", "tfds", marks=pytest.mark.slow),
    ],
)
def test_real_data(config, preset, name, tmp_path):
    folder = real.folder(name)
    workdir = tmp_path / "work"
    assert _train(config, workdir, folder, "--preset", preset) == 0
    resolved = _check_training(workdir, "stein")
    assert cli.evaluate(workdir, "--statistics", "running") == 0
    resolved["evaluation"]["statistics"] = ["running"]
    n = {"hippocampus": 52, "camvid": 233, "tfds": 32}[name]
    _check_results(workdir, resolved, "stein", n=n)
