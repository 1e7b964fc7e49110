"""From names and flags to configurations, and what is said about wrong ones."""

import dataclasses
import json

import pydantic
import pytest

from experiments.configs import presets
from experiments.configs.overrides import resolve
from experiments.configs.schema import AdversaryConfig, ExperimentConfig
from experiments.errors import ConfigError

ALL = [(name, preset) for name in presets.config_names() for preset in presets.preset_names(name)]


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_configuration_survives_json_and_is_valid(name, preset, smoke):
    config = resolve(name, preset=preset, smoke=smoke)
    assert config == presets.load(name, preset, smoke=smoke)
    assert (config.name, config.preset) == (name, preset)
    text = json.dumps(dataclasses.asdict(config), allow_nan=False)
    again = pydantic.TypeAdapter(ExperimentConfig).validate_python(json.loads(text))
    assert again == config
    assert type(again.data) is type(config.data)
    assert type(again.model) is type(config.model)
    hash(again)  # tuples everywhere, no lists


def test_without_a_preset_it_is_the_first():
    for name in presets.config_names():
        assert resolve(name) == resolve(name, preset=presets.preset_names(name)[0])
    assert resolve("cifar10") != resolve("cifar10", preset="strong")


def test_smoke_is_smaller_and_changes_come_after_it():
    small = resolve("cifar10", smoke=True, epochs=7, overrides=["train.batch_size=8"])
    assert (small.train.epochs, small.train.batch_size) == (7, 8)
    assert small.model.width < resolve("cifar10").model.width


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("digits", "train.epochs=3", lambda c: c.train.epochs == 3),
        ("digits", "train.learning_rate=0.5", lambda c: c.train.learning_rate == 0.5),
        ("digits", "train.learning_rate=5e-1", lambda c: c.train.learning_rate == 0.5),
        ("digits", " train.schedule = constant ", lambda c: c.train.schedule == "constant"),
        ("digits", 'train.schedule="constant"', lambda c: c.train.schedule == "constant"),
        ("digits", "train.augment=true", lambda c: c.train.augment is True),
        ("digits", "train.clip_norm=1", lambda c: c.train.clip_norm == 1),
        ("cifar10", "train.patience=null", lambda c: c.train.patience is None),
        ("digits", "model.stage_sizes=[1,2,3]", lambda c: c.model.stage_sizes == (1, 2, 3)),
        ("volumes", "data.shape=[64,64,32]", lambda c: c.data.shape == (64, 64, 32)),
        ("volumes", "data.table=a=b.csv", lambda c: c.data.table == "a=b.csv"),
        ("volumes", "model.hidden=[]", lambda c: c.model.hidden == ()),
        ("cityscapes", "model.stem_strides=[2,2]", lambda c: c.model.stem_strides == (2, 2)),
        ("cityscapes", "model.size=w48", lambda c: c.model.size == "w48"),
        ("cityscapes", "data.train_examples=9", lambda c: c.data.train_examples == 9),
        (
            "digits",
            'evaluation.statistics=["batch"]',
            lambda c: c.evaluation.statistics == ("batch",),
        ),
        ("digits", "evaluation.attacks=[]", lambda c: c.evaluation.attacks == ()),
    ],
)
def test_a_setting_is_set_and_nothing_else_changes(name, text, read):
    plain, changed = resolve(name), resolve(name, overrides=[text])
    assert not read(plain)
    assert read(changed)
    group, field = text.split("=")[0].strip().split(".")
    value = getattr(getattr(changed, group), field)
    parts = dataclasses.replace(getattr(plain, group), **{field: value})
    assert dataclasses.replace(plain, **{group: parts}) == changed


def test_the_short_flags_are_their_fields_and_the_last_word_counts():
    flags = resolve("cifar10", epochs=3, train_examples=100)
    assert flags == resolve("cifar10", overrides=["train.epochs=3", "data.train_examples=100"])
    assert resolve("digits", epochs=3, overrides=["train.epochs=4"]).train.epochs == 4
    assert resolve("digits", overrides=["train.epochs=4", "train.epochs=5"]).train.epochs == 5


def test_an_adversary_is_given_as_a_whole_and_taken_away():
    config = resolve("digits", overrides=['train.adversary={"epsilon": 0.03}'])
    assert config.train.adversary == AdversaryConfig(0.03)
    off = resolve("digits", overrides=['train.adversary={"epsilon": 0.03}', "train.adversary=null"])
    assert off == resolve("digits")


def test_a_setting_of_a_new_adversary_can_be_changed_after_it():
    config = resolve(
        "digits",
        overrides=['train.adversary={"epsilon": 0.03, "norm": "l2"}', "train.adversary.steps=2"],
    )
    assert config.train.adversary == AdversaryConfig(0.03, steps=2, norm="l2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, "unknown config 'mnist'; .* digits, cifar10, volumes, cityscapes"),
        (
            {"name": "cityscapes", "preset": "fast"},
            "unknown preset 'fast' of cityscapes; .*paper, strong, camvid",
        ),
        ({"name": "digits", "epochs": 0}, "train.epochs must be at least 1; got 0"),
        ({"name": "digits", "train_examples": 0}, "data.train_examples must be at least 1; got 0"),
    ],
)
def test_unknown_names_and_flags_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**arguments)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("digits", "train.epochs", "FIELD=VALUE, as train.epochs=10; got 'train.epochs'"),
        ("digits", "train.epoch=3", r"unknown setting 'train.epoch'; there are: .*\bepochs\b"),
        ("digits", "epochs=3", r"unknown setting 'epochs'; the groups are .*\btrain\b"),
        ("digits", "training.epochs=3", "unknown setting 'training.epochs'; the groups"),
        ("digits", "train.epochs.a=3", "no group of settings called train.epochs"),
        ("digits", "train.adversary.steps=3", "no group of settings called train.adversary"),
        ("digits", "data.kind=cifar10", "unknown setting 'data.kind'; there are: split_seed"),
        ("volumes", "data.shap=[1,2,3]", r"'data.shap'; there are: .*\bharmonise\b.*\bshape\b"),
        ("digits", "=3", "unknown setting ''"),
        ("digits", "train.epochs=many", "train.epochs: .*integer.*got 'many'"),
        ("digits", "train.epochs=1.5", "train.epochs: .*integer.*got 1.5"),
        ("digits", "train.epochs=null", "train.epochs: .*integer.*got None"),
        ("digits", "train.learning_rate=fast", "train.learning_rate: .*number.*got 'fast'"),
        ("digits", "train.schedule=linear", "train.schedule: .*'constant' or 'cosine'.*'linear'"),
        ("digits", "train=3", "train: .*got 3"),
        ("digits", "data.test_examples=a", "^data.test_examples: .*integer.*got 'a'"),
        ("cifar10", "data.validation_share=a", "^data.validation_share: .*number.*got 'a'"),
        ("volumes", "data.fit=stretch", "^data.fit: .*'resample' or 'crop'.*'stretch'"),
        ("volumes", "data.shape=[1,2]", r"^data.shape.*required; got \[1, 2\]"),
        ("volumes", "data.shape=5", "^data.shape: .*tuple.*got 5"),
        ("cityscapes", "data.validation=none", "^data.validation: .*'folder' or 'split'"),
        ("cityscapes", "model.size=w20", "^model.size: .*'paper', 'w18', 'w48' or 'smoke'.*'w20'"),
        ("volumes", "model.pool=perhaps", "^model.pool: .*boolean.*'perhaps'"),
        ("digits", "model.width=wide", "^model.width: .*integer.*'wide'"),
        ("digits", "train.adversary=strong", "^train.adversary: .*got 'strong'"),
        ("digits", 'train.adversary={"epsilon": "a"}', "train.adversary.epsilon: .*got 'a'"),
        ("digits", 'train.adversary={"steps": 2}', "train.adversary.epsilon: .*required"),
        ("digits", 'train.adversary={"epsilon": 2}', r"train.adversary.epsilon .*\[0, 1\]; got 2"),
        (
            "digits",
            'train.adversary={"epsilon": 0.1, "steps": 0}',
            "train.adversary.steps must be at least 1; got 0",
        ),
        ("digits", "train.batch_size=0", "train.batch_size must be at least 1; got 0"),
        ("digits", "train.learning_rate=-1", "train.learning_rate must be at least 0; got -1"),
        ("digits", "train.warmup_epochs=-1", "train.warmup_epochs must be at least 0"),
        ("digits", "train.momentum=1.1", r"train.momentum must be in \[0, 1\]; got 1.1"),
        ("digits", "train.weight_decay=-1", "train.weight_decay must be at least 0"),
        ("digits", "train.label_smoothing=2", r"train.label_smoothing must be in \[0, 1\]"),
        ("digits", "train.shift=-1", "train.shift must be at least 0"),
        ("digits", "train.statistics_momentum=2", r"train.statistics_momentum must be in \[0, 1\]"),
        ("digits", "train.patience=0", "train.patience must be at least 1"),
        ("digits", "train.clip_norm=0", "train.clip_norm must be above 0; got 0"),
        ("digits", "train.learning_rate=NaN", "rate must be finite and at least 0; got nan"),
        ("digits", "evaluation.batch_size=0", "evaluation.batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_choices_there_are(name, text, message):
    with pytest.raises(ConfigError, match=message):
        resolve(name, overrides=[text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('train.adversary={"epsilon": 0.1, "stps": 3}', "stps"),
        ('data={"kind": "digits", "exmples": 3}', "exmples"),
    ],
)
def test_a_misspelt_field_of_a_whole_object_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        resolve("digits", overrides=[text])


@pytest.mark.parametrize("text", ["train.learning_rate=Infinity", "train.weight_decay=Infinity"])
def test_infinity_is_refused_because_config_json_cannot_hold_it(text):
    with pytest.raises(ConfigError, match=r"must be .*got inf"):
        resolve("digits", overrides=[text])


@pytest.mark.parametrize("kind", ['"mnist"', "3", "null"])
def test_an_unknown_kind_of_data_is_refused(kind):
    with pytest.raises(ConfigError, match="data"):
        resolve("digits", overrides=[f'data={{"kind": {kind}}}'])
