"""Mistakes in what train is told are messages, and leave nothing behind."""

import pytest

from experiments.__main__ import main
from tests.experiments import cli


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["train", "digit"], ["unknown config 'digit'", "cityscapes"]),
        ([*cli.DIGITS, "--preset", "paper"], ["unknown preset 'paper' of digits", "demo"]),
        ([*cli.DIGITS, "--norm", "bacth"], ["unknown norm 'bacth'", "toward_running"]),
        ([*cli.DIGITS, "--set", "train.rate=1"], ["unknown setting 'train.rate'", "learning_rate"]),
        ([*cli.DIGITS, "--set", "train.epochs"], ["--set needs FIELD=VALUE", "train.epochs"]),
        ([*cli.DIGITS, "--set", "optimiser.rate=1"], ["optimiser"]),
        ([*cli.DIGITS, "--set", "train.epochs=many"], ["train.epochs", "'many'"]),
        ([*cli.DIGITS, "--set", "train.schedule=linear"], ["train.schedule", "cosine"]),
        ([*cli.DIGITS, "--epochs", "0"], ["train.epochs must be at least 1; got 0"]),
        ([*cli.DIGITS, "--set", "train.momentum=2"], ["train.momentum must be in [0, 1]; got 2"]),
        (
            [*cli.DIGITS, "--set", 'train.adversary={"epsilon":2}'],
            ["train.adversary.epsilon must be in [0, 1]"],
        ),
        ([*cli.DIGITS, "--set", 'train.adversary={"steps":2}'], ["train.adversary", "epsilon"]),
        (
            [*cli.DIGITS, "--train-examples", "16"],
            ["16 training examples do not fill", "batch of 32"],
        ),
        ([*cli.DIGITS, "--seed", "-1"], ["seed must be at least 0; got -1"]),
        ([*cli.DIGITS, "--seed", "4294967296"], ["seed must be below 2**32; got 4294967296"]),
        ([*cli.DIGITS, "--seed", "9" * 20], ["seed must be below 2**32"]),
        ([*cli.DIGITS, "--set", "train.epochs=" + "9" * 5000], ["train.epochs"]),
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
    assert main([*cli.DIGITS, "--workdir", str(tmp_path / "file" / "work")]) == 2
    assert "as a work folder" in capsys.readouterr().err
