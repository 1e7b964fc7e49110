"""Settings as flags of ``train``: read as ``--set`` reads them, and as their annotations say."""

import dataclasses
import subprocess
import sys
import typing

import pydantic
import pytest

from experiments.__main__ import main
from experiments.commands import train
from experiments.configs import annotations, data, presets, schema
from experiments.configs.overrides import resolve
from experiments.configs.schema import ChecksConfig
from experiments.models import hrnet, resnet
from steinnorm.attacks.catalogue import AttackSettings
from steinnorm.attacks.checks import CheckSettings

ALL = [(name, preset) for name in presets.config_names() for preset in presets.preset_names(name)]


@pytest.fixture
def configured(monkeypatch, capsys):
    """Runs ``train`` without training; returns the configuration, or what is said of an error."""
    seen = []
    monkeypatch.setattr(train, "run", lambda config, places, **options: seen.append(config))

    def call(*arguments):
        status = main(["train", *arguments, "--workdir", "W"])
        if status == 0:
            return seen.pop()
        told = capsys.readouterr().err
        assert status == 2
        assert told.count("\n") == 1
        assert not seen
        return told

    return call


@pytest.mark.parametrize("more", [[], ["--smoke"]])
@pytest.mark.parametrize(("name", "preset"), ALL)
def test_without_flags_it_is_the_preset(configured, name, preset, more):
    wanted = presets.load(name, preset, smoke=bool(more))
    assert configured(name, "--preset", preset, *more) == wanted


@pytest.mark.parametrize(
    ("name", "flags", "overrides"),
    [
        ("cifar10", ["--train.learning-rate", "0.05"], ["train.learning_rate=0.05"]),
        ("cifar10", ["--train.learning_rate=5e-2"], ["train.learning_rate=0.05"]),
        (
            "cifar10",
            ["--model.width", "16", "--train.patience", "null"],
            ["model.width=16", "train.patience=null"],
        ),
        ("cifar10", ["--train.patience", "None"], ["train.patience=null"]),
        ("cifar10", ["--train.augment"], ["train.augment=true"]),
        ("cifar10", ["--preset", "strong", "--train.no-augment"], ["train.augment=false"]),
        ("cifar10", ["--train.schedule", "cosine"], ["train.schedule=cosine"]),
        ("digits", ["--model.stage-sizes", "1", "2", "3"], ["model.stage_sizes=[1,2,3]"]),
        ("digits", ["--model.stage-sizes", "[1,2,3]"], ["model.stage_sizes=[1,2,3]"]),
        ("digits", ["--model.stage-sizes", "2"], ["model.stage_sizes=[2]"]),
        ("volumes", ["--data.shape", "64", "64", "32"], ["data.shape=[64,64,32]"]),
        ("volumes", ["--model.hidden"], ["model.hidden=[]"]),
        ("volumes", ["--data.normalise", "minmax"], ["data.normalise=minmax"]),
        ("volumes", ["--data.table", "my.csv"], ["data.table=my.csv"]),
        ("cityscapes", ["--model.stem-strides", "2", "2"], ["model.stem_strides=[2,2]"]),
        (
            "digits",
            ["--train.adversary", '{"epsilon": 0.03, "steps": 2}'],
            ['train.adversary={"epsilon": 0.03, "steps": 2}'],
        ),
        ("digits", ["--evaluation.statistics", "batch"], ['evaluation.statistics=["batch"]']),
        ("digits", ["--evaluation.attacks", "[]"], ["evaluation.attacks=[]"]),
        ("digits", ["--evaluation.checks.steps", "3"], ["evaluation.checks.steps=3"]),
        ("digits", ["--train.epochs", "3", "--set", "train.epochs=4"], ["train.epochs=4"]),
        ("digits", ["--train.epochs", "3", "--epochs", "5"], ["train.epochs=5"]),
        ("digits", ["--train-examples", "64"], ["data.train_examples=64"]),
    ],
)
def test_a_flag_means_what_set_means(configured, name, flags, overrides):
    preset = "strong" if "strong" in flags else None
    wanted = resolve(name, preset=preset, overrides=overrides)
    assert wanted != resolve(name, preset=preset)
    assert configured(name, *flags) == wanted
    assert configured("--smoke", name, *flags) == resolve(
        name, preset=preset, smoke=True, overrides=overrides
    )


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("digits", ["--train.rate", "1"], "unknown setting 'train.rate'; there are: adversary, "),
        ("digits", ["--train.no-augmnt"], "unknown setting 'train.augmnt'; there are: "),
        ("digits", ["--training.epochs", "3"], "the groups are data, model, train, evaluation"),
        ("digits", ["--data.kind", "cifar10"], "unknown setting 'data.kind'"),
        ("digits", ["--data.shape", "3"], "there are: split_seed, test_examples, train_examples"),
        ("digits", ["--train.adversary.steps", "3"], "is given as a whole first"),
        ("digits", ["--train.epochs", "many"], "train.epochs: Input should be a valid integer"),
        ("digits", ["--train.epochs", "1.5"], "train.epochs: Input should be a valid integer"),
        ("digits", ["--train.epochs", "true"], "train.epochs: Input should be a valid integer"),
        ("digits", ["--train.epochs", "0"], "train.epochs must be at least 1; got 0"),
        ("digits", ["--train.momentum", "-1"], "train.momentum must be in [0, 1]; got -1"),
        ("digits", ["--train.learning-rate", "NaN"], "finite and at least 0; got nan"),
        ("digits", ["--train.learning-rate", "Infinity"], "finite and at least 0; got inf"),
        ("digits", ["--train.learning-rate", "1e999"], "finite and at least 0; got inf"),
        ("digits", ["--train.learning-rate", "nan"], "should be a valid number; got 'nan'"),
        ("digits", ["--train.schedule", "linear"], "'constant' or 'cosine'; got 'linear'"),
        ("digits", ["--model.depth", "10"], "model.depth: Input should be 9, 18, 34, 50, 101 or"),
        ("digits", ["--model.stage-sizes", "1", "0"], "stage_sizes.1 must be at least 1; got 0"),
        ("digits", ["--model.stage-sizes"], "model.stage_sizes must name blocks where model.depth"),
        ("volumes", ["--data.shape", "8", "8"], "data.shape"),
        ("volumes", ["--data.shape", "8", "8", "0"], "data.shape.2 must be at least 1; got 0"),
        ("cifar10", ["--data.validation-share", "1"], "must be in [0, 1); got 1"),
        ("digits", ["--train.augment", "maybe"], "Unrecognized options: maybe"),
        ("digits", ["--train.epochs"], "Missing value for argument '--train.epochs'"),
    ],
)
def test_a_wrong_flag_is_one_line(configured, name, flags, message):
    assert message in configured(name, *flags)


def _numbers():
    """(class, field, kind) of every number in the schema, and of the numbers in tuples."""
    named = [value for module in (schema, data) for value in vars(module).values()]
    classes = [c for c in named if isinstance(c, type) and dataclasses.is_dataclass(c)]
    for group in dict.fromkeys(classes):
        for name, annotation in annotations.fields_of(group).items():
            kind = annotations.take_apart(annotation).kind
            if annotations.is_tuple_of_values(annotation):
                kind = annotations.take_apart(typing.get_args(kind)[0]).kind
            if kind in (int, float):
                yield pytest.param(group, name, kind, id=f"{group.__name__}.{name}")


@pytest.mark.parametrize(("group", "name", "kind"), list(_numbers()))
def test_every_number_has_a_range_that_is_told_and_kept(group, name, kind):
    annotation = annotations.fields_of(group)[name]
    assert annotations.member_range(annotation).split()[0] in ("at", "above", "in")
    many = annotations.is_tuple_of_values(annotation)
    adapter = pydantic.TypeAdapter(annotation)
    for wrong in (-1, True, "1", *((float("nan"), float("inf")) if kind is float else (1.5,))):
        members = typing.get_args(annotations.take_apart(annotation).kind)
        count = 1 if Ellipsis in members else len(members)
        with pytest.raises(ValueError, match="validation error"):
            adapter.validate_python([wrong] * count if many else wrong)


@pytest.mark.parametrize(
    ("group", "library"), [(ChecksConfig, CheckSettings), (schema.AttackConfig, AttackSettings)]
)
def test_the_librarys_settings_are_all_there(group, library):
    ours = {field.name: field for field in dataclasses.fields(group)}
    theirs = {field.name for field in dataclasses.fields(library)}
    assert theirs - {"losses"} <= set(ours)  # they are those of the evaluation's attacks


def test_the_networks_sizes_are_those_there_are():
    depth = annotations.fields_of(schema.ResNetModel)["depth"]
    assert typing.get_args(annotations.take_apart(depth).kind) == resnet.DEPTHS
    size = annotations.fields_of(schema.HRNetModel)["size"]
    assert set(typing.get_args(size)) == set(hrnet.SIZES)


def test_a_word_that_equals_the_default_is_still_of_the_wrong_type(configured):
    assert "train.shift: Input should be a valid integer; got False" in configured(
        "digits", "--train.shift", "false"
    )


def test_the_checks_have_the_librarys_defaults():
    assert ChecksConfig().settings == CheckSettings()


def test_the_configs_need_no_jax():
    # Asked of a child: this process has imported it.
    code = "import sys; import experiments.configs.flags; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
