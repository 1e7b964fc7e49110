"""What --help and list say, and how fast."""

import dataclasses
import re
import subprocess
import sys
import time

import pytest

from experiments.__main__ import main
from experiments.configs import attacks, presets
from tests.experiments import cli


def test_help_names_every_attack(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = set(re.split(r"[\s,;.:│]+", capsys.readouterr().out))
    assert set(attacks.names()) <= text


def test_list_names_every_preset(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for config in presets.config_names():
        for preset in presets.preset_names(config):
            assert f"{config} --preset {preset}\n" in out
    assert out.count("  time  ") == out.count("--preset")


ALL = [(name, preset) for name in presets.config_names() for preset in presets.preset_names(name)]


def _settings(content, where=""):
    """Paths and values of all settings; an adversary and the attacks are one each."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{where}{name}.")
        elif name != "kind":
            yield f"{where}{name}", value


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_help_of_a_config_has_every_setting_with_its_default(name, preset, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", name, "--preset", preset, "--help"])
    assert end.value.code == 0
    text = " ".join(re.split(r"[\s│]+", capsys.readouterr().out))
    config = dataclasses.asdict(presets.load(name, preset))
    groups = {group: config[group] for group in ("data", "model", "train", "evaluation")}
    settings = dict(_settings(groups))
    assert len(settings) > 30
    for path, value in settings.items():
        flag = f"--{path.replace('_', '-')}"
        found = re.search(rf" {re.escape(flag)},? .*?\(default: (.*?)\)", text)
        assert found, flag
        if isinstance(value, int | float | str):
            assert found[1] == str(value), flag


def test_help_of_a_config_has_types_and_ranges(capsys):
    with pytest.raises(SystemExit):
        main(["train", "cityscapes", "--help"])
    text = " ".join(re.split(r"[\s│]+", capsys.readouterr().out))
    for expected in (
        "--train.momentum FLOAT of the optimiser; must be in [0, 1] (default: 0.9)",
        "--train.epochs INT passes over the training part; must be at least 1 (default: 1)",
        "--train.schedule {constant,cosine} ",
        "--train.augment, --train.no-augment ",
        "--train.clip-norm FLOAT|null ",
        "--data.shape INT INT ",
        "--data.validation-share FLOAT share of ",
        "keeps for validation; must be in [0, 1) (default: 0.2)",
        "--model.stem-strides INT INT|null ",
        "--train.adversary JSON|null ",
        "--evaluation.statistics {running,batch,shrunk,calibrated,calibrated_streams, none} ... ",
    ):
        assert expected in text, expected


@pytest.mark.parametrize("command", [[], ["train"], ["train", "cifar10"], ["evaluate"]])
def test_help_answers_at_once(command):
    """It does not wait for JAX; a child, because this process has imported it already."""
    program = (
        "import sys; from experiments.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert 'jax' not in sys.modules"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"],
        cwd=cli.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 3
    for word in (command and ["--cache-dir", "--data-dir"]) or ["train", "evaluate", "list"]:
        assert word in done.stdout
