"""The commands train, evaluate and list, on small data in the real formats and on the real sets."""

import json
import re

import pytest

from experiments import data
from experiments.__main__ import main
from experiments.commands.evaluation_request import Request, settings_for
from experiments.configs.data import Cifar10Data
from experiments.configs.schema import EvaluationConfig
from experiments.evaluation import per_example
from experiments.evaluation.calibration import Calibrating
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


def _evaluate(workdir, *more):
    return main(["evaluate", str(workdir), "--cache-dir", str(workdir.parent / "cache"), *more])


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
    assert _evaluate(workdir) == 0
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
    assert _evaluate(workdir, "--statistics", "running") == 0
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
    assert _evaluate(workdir, *more, "--weights", "last") == 0
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

    assert _evaluate(workdir) == 0  # the best weights
    best = max(cli.log(workdir, "validation"), key=lambda line: line["auc"])
    assert f"best weights, of step {best['step']};" in capsys.readouterr().out


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_threat_models_twin_budgets_and_a_second_command(trained, tmp_path, capsys):
    cli.copied(trained, tmp_path / "stein")
    arguments = [*DIGITS, "--epochs", "1", "--norm", "batch"]
    assert main([*arguments, "--workdir", str(tmp_path / "batch")]) == 0
    capsys.readouterr()
    more = ["--attacks", "pgd,square-l2", "--steps", "2", "--queries", "5"]
    # One batch: the rest of a test set would be a program of its own for every attack.
    more += ["--epsilon", "0.1", "--statistics", "running,batch", "--test-examples", "25"]
    more += ["--threat-models", "joint,companion,independent", "--victims", "3"]
    more += ["--twin", str(tmp_path / "batch")]
    assert _evaluate(tmp_path / "stein", *more) == 0
    out = capsys.readouterr().out
    rows = cli.results(tmp_path / "stein")
    told = {(r["statistics"], r["threat_model"]) for r in rows if r["attack"] == "pgd"}
    assert told == {
        ("running", ""),
        ("batch", "joint"),
        ("batch", "independent"),
        ("batch", "companion"),
    }
    n = {r["threat_model"]: r["n"] for r in rows if r["attack"] == "pgd"}
    assert n == {"": 25, "joint": 25, "independent": 3, "companion": 3}
    assert {r["steps"] for r in rows if r["attack"] == "pgd"} == {2}
    assert {r["norm_order"] for r in rows if r["attack"] == "square-l2"} == {"l2"}
    transfer = [
        check
        for check in json.loads((tmp_path / "stein" / "checks.json").read_text())
        if check["name"] == "transfer_not_stronger"
    ]
    assert [check["statistics"] for check in transfer] == ["running", "batch"]
    assert all(check["verdict"] != "not applicable" for check in transfer)
    checks = json.loads((tmp_path / "stein" / "checks.json").read_text())
    names = [c["name"] for c in checks if c["statistics"] == "running"]
    assert names == [*NAMES, *(f"{name} (l2)" for name in NAMES)]
    assert "at the radius 1" in checks[2]["detail"]
    assert "FAILED batch_dependence: examples with a changed prediction" in out
    assert re.search(r"batch_dependence +PASS +FAIL", out)

    # The same again takes everything from the folder.
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "stein" / "evaluation").iterdir()}
    assert len(kept) > 10
    assert _evaluate(tmp_path / "stein", *more) == 0
    assert cli.results(tmp_path / "stein") == rows
    assert kept == {p: p.stat().st_mtime_ns for p in kept}

    # What other commands measured and checked stays, but for another batch size or other images.
    few = ["--statistics", "running", "--check-examples", "0", "--test-examples", "25"]
    assert _evaluate(tmp_path / "stein", *few) == 0
    assert cli.results(tmp_path / "stein") == rows
    assert json.loads((tmp_path / "stein" / "checks.json").read_text()) == checks
    assert _evaluate(tmp_path / "stein", *few, "--batch-size", "10") == 0
    assert {r["attack"] for r in cli.results(tmp_path / "stein")} == {"clean"}
    assert _evaluate(tmp_path / "stein", *few[:-1], "24") == 0
    assert {r["n"] for r in cli.results(tmp_path / "stein")} == {24}
    assert _evaluate(tmp_path / "stein", *few) == 0

    wrong = ["--twin", str(tmp_path / "stein"), "--attacks", "fgsm"]
    assert _evaluate(tmp_path / "stein", *wrong) == 2
    assert "is no twin" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "stein"), "--out", str(tmp_path / "report")]) == 0
    assert "MISSING: batch norm" in capsys.readouterr().out


@pytest.mark.slow
def test_adversarial_training_of_a_segmentation(cityscapes_dir, tmp_path, capsys):
    workdir = tmp_path / "work"
    adversary = 'train.adversary={"epsilon":0.03,"steps":2}'
    more = ["--set", adversary, "--norm", "batch", "--epochs", "1"]
    assert _train("cityscapes", workdir, cityscapes_dir, *more) == 0
    _check_training(workdir, "batch")
    assert _evaluate(workdir, "--attacks", "autoattack") == 2
    assert "autoattack is for one label per example" in capsys.readouterr().err
    assert _evaluate(workdir, "--attacks", "segpgd,sea", "--steps", "4") == 0
    attacks = {row["attack"] for row in cli.results(workdir)}
    assert attacks == {"clean", "segpgd", "sea", "worst", "convergence"}


DIGITS = ["train", "digits", "--smoke"]
SHORT = [*DIGITS, "--epochs", "1", "--tensorboard"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["train", "digit"], ["unknown config 'digit'", "cityscapes"]),
        ([*DIGITS, "--preset", "paper"], ["unknown preset 'paper' of digits", "demo"]),
        ([*DIGITS, "--norm", "bacth"], ["unknown norm 'bacth'", "toward_running"]),
        ([*DIGITS, "--set", "train.rate=1"], ["unknown setting 'train.rate'", "learning_rate"]),
        ([*DIGITS, "--set", "train.epochs"], ["--set needs FIELD=VALUE", "train.epochs"]),
        ([*DIGITS, "--set", "optimiser.rate=1"], ["optimiser"]),
        ([*DIGITS, "--set", "train.epochs=many"], ["train.epochs", "'many'"]),
        ([*DIGITS, "--set", "train.schedule=linear"], ["train.schedule", "cosine"]),
        ([*DIGITS, "--epochs", "0"], ["train.epochs must be at least 1; got 0"]),
        ([*DIGITS, "--set", "train.momentum=2"], ["train.momentum must be in [0, 1]; got 2"]),
        (
            [*DIGITS, "--set", 'train.adversary={"epsilon":2}'],
            ["train.adversary.epsilon must be in [0, 1]"],
        ),
        ([*DIGITS, "--set", 'train.adversary={"steps":2}'], ["train.adversary", "epsilon"]),
        ([*DIGITS, "--train-examples", "16"], ["16 training examples do not fill", "batch of 32"]),
        (["train", "cifar10"], ["cifar10 needs --data-dir", "TensorFlow Datasets"]),
        (["train", "volumes"], ["volumes needs --data-dir", "participants.csv"]),
        (["train", "cityscapes"], ["cityscapes needs --data-dir", "leftImg8bit/{train,val,test}"]),
        (["train", "volumes", "--data-dir", "/nowhere"], ["/nowhere", "no such folder"]),
        (["train", "cityscapes", "--data-dir", "/nowhere"], ["/nowhere"]),
    ],
)
def test_mistakes_in_training_are_messages(arguments, messages, tmp_path, capsys):
    workdir = tmp_path / "work"
    assert main([*arguments, "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    for message in ["error: ", *messages]:
        assert message in error
    # Nothing is left that would stand in the way of the corrected command.
    assert not list(workdir.glob("*.json*"))


def test_a_work_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*DIGITS, "--workdir", str(tmp_path / "file" / "work")]) == 2
    assert "as a work folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training of digits."""
    workdir = tmp_path_factory.mktemp("trained") / "work"
    assert main([*SHORT, "--workdir", str(workdir)]) == 0
    return workdir


def test_finished_is_finished_and_tensorboard_was_written(trained, capsys):
    assert list((trained / "tensorboard").iterdir())
    before = (trained / "metrics.jsonl").read_bytes()
    assert main([*SHORT, "--workdir", str(trained)]) == 0
    assert "going on from the checkpoint of step 4 of 4" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        (["--attacks", "fgsm,pdg"], ["unknown attack 'pdg'", "pgd-margin"]),
        (["--attacks", "segpgd"], ["segpgd is for a label per pixel"]),
        (["--attacks", "pgd,fab-t"], ["fab-t keeps", "name --statistics running"]),
        (["--threat-models", "alone"], ["unknown threat model 'alone'", "companion"]),
        (["--victims", "0"], ["--victims must be at least 1; got 0"]),
        (["--batch-size", "0"], ["--batch-size must be at least 1; got 0"]),
        (["--independent-batch-size", "0"], ["--independent-batch-size must be at least 1; got 0"]),
        (["--test-examples", "0"], ["--test-examples must be at least 1; got 0"]),
        (["--attacks", "pgd", "--steps", "0"], ["--steps must be at least 1; got 0"]),
        (["--check-examples", "-1"], ["--check-examples must not be negative"]),
        (["--statistics", "running,none"], ["unknown statistics 'none'", "shrunk"]),
        (["--weights", "first"], ["weights must be best or last; got 'first'"]),
        (["--attacks", "fgsm", "--epsilon", "8/0"], ["8/255", "'8/0'"]),
        (["--attacks", "fgsm", "--epsilon", "big"], ["8/255", "'big'"]),
        (["--attacks", "fgsm", "--epsilon", "-0.1"], ["must not be negative"]),
    ],
)
def test_mistakes_in_evaluation_are_one_line(more, messages, trained, capsys):
    joined = [f"{a}={b}" for a, b in zip(more[::2], more[1::2], strict=True)]  # "=-0.1"
    assert main(["evaluate", str(trained), *joined]) == 2
    error = capsys.readouterr().err
    for message in messages:
        assert message in error
    assert error.count("\n") == 1
    assert not (trained / "results.json").exists()


def test_calibrated_statistics(trained, tmp_path, capsys, monkeypatch):
    workdir = cli.copied(trained, tmp_path / "work")
    few = ["--test-examples", "9"]
    assert _evaluate(workdir, *few, "--statistics", "running,calibrated") == 0
    assert re.search(r"calibrating on \d+ of \d+ training examples", capsys.readouterr().out)
    clean = {r["statistics"]: r["value"] for r in cli.results(workdir) if r["metric"] == "loss"}
    assert list(clean) == ["running", "calibrated"]
    assert clean["running"] != clean["calibrated"]
    # A later command, which does not calibrate, knows the results.
    assert _evaluate(workdir, *few, "--statistics", "running") == 0
    assert "calibrating" not in capsys.readouterr().out
    assert {r["statistics"] for r in cli.results(workdir)} == {"running", "calibrated"}
    # One that would calibrate on other inputs, as where the training part has changed, does not.
    monkeypatch.setattr(Calibrating, "inputs_digest", "of other inputs")
    assert _evaluate(workdir, *few, "--statistics", "running") == 0
    assert {r["statistics"] for r in cli.results(workdir)} == {"running"}


def test_batches_of_their_own_where_no_example_depends_on_its_batch(trained, tmp_path, capsys):
    workdir = cli.copied(trained, tmp_path / "work")
    few = ["--test-examples", "20", "--statistics", "running,batch", "--batch-size", "10"]
    assert _evaluate(workdir, *few) == 0
    assert "examples in batches of 10\n" in capsys.readouterr().out
    before = {r["statistics"]: r["value"] for r in cli.results(workdir) if r["metric"] == "loss"}
    assert _evaluate(workdir, *few, "--independent-batch-size", "20") == 0
    assert "examples in batches of 10 and 20\n" in capsys.readouterr().out
    after = {r["statistics"]: r["value"] for r in cli.results(workdir) if r["metric"] == "loss"}
    # Those of the test batch, which are other statistics in another batch, are as they were.
    assert after == {"batch": before["batch"], "running": pytest.approx(before["running"])}
    sizes = {
        results.key.statistics: (results.identity["batch_size"], results.batches)
        for results in per_example.load_all(workdir)
    }
    assert sizes == {"running": (20, 1), "batch": (10, 2)}


def test_a_batch_size_that_is_asked_for_is_that_of_all_statistics():
    """Somebody whose memory is too small should not have to know of the other setting."""
    known = EvaluationConfig(batch_size=8, independent_batch_size=64)
    assert settings_for(known, Request()) == known
    assert settings_for(known, Request(batch_size=4)).independent_batch_size is None
    found = settings_for(known, Request(batch_size=4, independent_batch_size=16))
    assert (found.batch_size, found.independent_batch_size) == (4, 16)


def test_why_no_check_was_made_is_said(trained, tmp_path, capsys):
    workdir = cli.copied(trained, tmp_path / "work")
    few = ["--test-examples", "9", "--statistics", "running"]
    assert _evaluate(workdir, *few, "--attacks", "gaussian") == 0
    assert "none was made: they test attacks of a radius above 0" in capsys.readouterr().out
    assert _evaluate(workdir, *few, "--attacks", "fgsm", "--check-examples", "0") == 0
    assert "none was made: --check-examples 0 asks for none" in capsys.readouterr().out


def test_evaluation_of_a_folder_without_a_training(trained, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "is not the work folder of a training" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    for _ in range(2):  # with no folder of checkpoints, then with an empty one
        assert main(["evaluate", str(tmp_path)]) == 2
        assert "holds no checkpoint yet" in capsys.readouterr().err
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text('{"config": ')
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "config.json cannot be read" in capsys.readouterr().err


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
    assert _evaluate(workdir, "--statistics", "running") == 0
    resolved["evaluation"]["statistics"] = ["running"]
    n = {"hippocampus": 52, "camvid": 233, "tfds": 32}[name]
    _check_results(workdir, resolved, "stein", n=n)
