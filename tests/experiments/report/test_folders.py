"""Work folders that a report reads: what may differ between them, and what is refused."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats

from experiments import report
from experiments.configs import presets
from experiments.errors import ConfigError
from experiments.results import LoggedStep
from steinnorm.attacks.files import write_json
from tests.experiments.report.rows import row_of


def _folder(root, rows, *, norm="batch", seed=0, changes=None, name="digits"):
    settings = {**dataclasses.asdict(presets.load(name)), **(changes or {})}
    write_json(root / "config.json", {"config": settings, "norm": norm, "seed": seed})
    write_json(root / "results.json", [dataclasses.asdict(row) for row in rows])
    return root


def test_clean_rows_of_earlier_versions_stand_beside_those_with_joint_attacks(tmp_path):
    """They had no threat model where nothing was attacked."""
    rows = [row_of("batch", 0, 0.99, "batch"), row_of("batch", 0, 0.9)]
    (experiment,) = report.read([_folder(tmp_path / "a", rows)])
    assert [row.threat_model for row in experiment.rows] == ["joint", ""]


def test_a_demo_is_read_as_the_folders_of_its_runs(tmp_path):
    for seed in (0, 1):
        _folder(tmp_path / "runs" / f"batch-{seed}", [row_of("batch", seed, 0.9)], seed=seed)
    write_json(tmp_path / "results.json", [])  # of its report
    log = tmp_path / "runs" / "batch-0" / "metrics.jsonl"
    log.write_text(
        '{"kind": "train", "step": 1, "epoch": 0.5, "loss": 2.0, "accuracy": 0.1, "factors": {}, '
        '"learning_rate": 0.1}\n{"kind": "validation", "step": 1, "accuracy": 0.5}\n{"kind'
    )
    (experiment,) = report.read([tmp_path])
    assert len(experiment.rows) == 2
    assert experiment.histories == [("batch", [LoggedStep(1, 0.5, 2.0, 0.1, {}, 0.1)])]


def test_a_report_says_what_all_runs_say_of_their_data(tmp_path):
    """Results on a copy, or a stand-in, carry its name."""
    roots = []
    for seed, notes in enumerate((["a copy", "9 subjects"], ["a copy", "8 subjects"], None)):
        root = _folder(tmp_path / str(seed), [row_of("batch", seed, 0.9)], seed=seed)
        content = json.loads((root / "config.json").read_text())
        write_json(root / "config.json", content | ({"data_notes": notes} if notes else {}))
        roots.append(root)
    (experiment,) = report.read(roots[:2])
    assert experiment.notes[0] == "a copy"
    assert not any("subjects" in note for note in experiment.notes)
    (experiment,) = report.read(roots)  # one of an earlier version, which noted nothing
    assert not any("copy" in note for note in experiment.notes)


def test_a_report_names_versions_and_machines(tmp_path):
    """Numbers of another CPU or jaxlib can differ by examples."""
    roots = []
    for seed, machine in enumerate(("1 x cpu; A, 2 cores", "4 x gpu; B, 8 cores", None)):
        root = _folder(tmp_path / str(seed), [row_of("batch", seed, 0.9)], seed=seed)
        content = json.loads((root / "config.json").read_text())
        more = {"versions": {"jax": "1", "jaxlib": "2", "flax": "3"}, "machine": machine}
        write_json(root / "config.json", content | (more if machine else {}))
        roots.append(root)
    (experiment,) = report.read(roots)
    assert experiment.notes[0] == (
        "Trained with jax 1, jaxlib 2, flax 3 on 1 x cpu; A, 2 cores; and with jax 1, jaxlib 2, "
        "flax 3 on 4 x gpu; B, 8 cores; and with jax unknown, jaxlib unknown, flax unknown on a "
        "machine that is not recorded."
    )


def test_a_report_names_commits_and_times(tmp_path):
    roots = []
    for seed, (commit, seconds) in enumerate((("a" * 40, 61.6), ("b" * 40, 99.0), ("a" * 40, 80))):
        root = _folder(tmp_path / str(seed), [row_of("batch", seed, 0.9)], seed=seed)
        content = json.loads((root / "config.json").read_text())
        write_json(root / "config.json", content | {"git_commit": commit})
        write_json(root / "comparison.json", {"seconds": seconds})
        roots.append(root)
    (experiment,) = report.read(roots)
    assert experiment.notes[1:3] == [
        f"Trained at commits {'a' * 12}, {'b' * 12}.",
        "Training and measuring took 62 to 99 s a run, beside whatever else the machine did and "
        "without what was interrupted.",
    ]
    # Of earlier versions, and of trainings that no comparison made.
    (roots[0] / "comparison.json").unlink()
    write_json(roots[1] / "config.json", content | {"git_commit": None, "seed": 1})
    (experiment,) = report.read(roots)
    assert f"Trained at commit {'a' * 12}, some not recorded." in experiment.notes
    assert not any("took" in note for note in experiment.notes)


def test_a_report_says_what_is_not_as_in_the_preset(tmp_path):
    usual = json.loads(json.dumps(dataclasses.asdict(presets.load("digits"))))
    rows = [row_of("batch", 0, 0.9)]
    (experiment,) = report.read([_folder(tmp_path / "a", rows, changes=usual)])
    assert not any("preset" in note for note in experiment.notes)

    adversary = {"epsilon": 4 / 255, "steps": 3}
    train = usual["train"] | {"epochs": 8, "adversary": adversary}
    del train["clip_norm"]  # of a version that had no such setting
    model = usual["model"] | {"stage_sizes": [1, 2]}
    changes = usual | {"train": train, "model": model, "size": "few"}
    (experiment,) = report.read([_folder(tmp_path / "b", rows, changes=changes)])
    assert experiment.notes[-1] == (
        "Other than in the preset: `model.stage_sizes=[1, 2] train.epochs=8 "
        'train.adversary={"epsilon": 0.01568627450980392, "steps": 3}`.'
    )
    gone = usual | {"preset": "of a version to come"}
    (experiment,) = report.read([_folder(tmp_path / "c", rows, changes=gone)])
    assert not any("preset" in note for note in experiment.notes)


def test_folders_are_read_in_any_order_and_once(tmp_path):
    one = _folder(tmp_path / "a", [row_of("batch", 0, 0.9)])
    two = _folder(tmp_path / "b", [row_of("batch", 1, 0.8)], seed=1, changes={"size": "in words"})
    for roots in ([one, two], [two, one], [one, two, tmp_path / "b" / ".." / "a"]):
        (experiment,) = report.read(roots)
        (entry,) = report.merge_seeds(experiment.rows)
        assert (entry.mean, entry.seeds) == (pytest.approx(0.85), 2)
        assert experiment.metrics == ("accuracy",)
        places = {key: place.resolve() for key, place in experiment.places.items()}
        assert places == {("batch", 0): one.resolve(), ("batch", 1): two.resolve()}


def test_each_norm_may_have_its_own_learning_rate_which_is_said(tmp_path):
    own = {**dataclasses.asdict(presets.load("digits").train), "learning_rate": 0.5}
    one = _folder(tmp_path / "a", [row_of("batch", 0, 0.9)])
    two = _folder(
        tmp_path / "b", [row_of("group", 0, 0.8, "none")], norm="group", changes={"train": own}
    )
    (experiment,) = report.read([one, two])
    usual = presets.load("digits").train.learning_rate
    assert experiment.notes[-1] == f"The learning rates differ. {usual:g}: batch; 0.5: group."
    three = _folder(tmp_path / "c", [row_of("batch", 1, 0.8)], seed=1, changes={"train": own})
    with pytest.raises(ConfigError, match=r"train\.learning_rate is"):
        report.read([one, three])


def test_runs_may_be_checked_otherwise_which_is_said(tmp_path):
    evaluation = dataclasses.asdict(presets.load("digits").evaluation)
    checks = {**evaluation["checks"], "restarts": 9}
    other = {"evaluation": {**evaluation, "checks": checks}}
    one = _folder(tmp_path / "a", [row_of("batch", 0, 0.9)])
    two = _folder(tmp_path / "b", [row_of("batch", 1, 0.8)], seed=1, changes=other)
    for roots in ([one, two], [two, one]):
        (experiment,) = report.read(roots)
        (note,) = (note for note in experiment.notes if "checked" in note)
        usual = evaluation["checks"]["restarts"]
        assert f"alike: `evaluation.checks.restarts` is {usual} in some and 9 in others" in note
    (experiment,) = report.read([one], controls=[two])
    assert "checks" not in "".join(experiment.control_names)
    sizes = {"evaluation": {**evaluation, "batch_size": 7}}
    three = _folder(tmp_path / "c", [row_of("batch", 1, 0.8)], seed=1, changes=sizes)
    with pytest.raises(ConfigError, match=r"evaluation\.batch_size is"):
        report.read([one, three])


def _splits(tmp_path, kind, split_seeds, **more):
    """Writes a run of both norms for each seed, with its own parts of the data; returns folders."""
    config = dataclasses.asdict(presets.load(kind))
    roots = []
    for (seed, split_seed), norm in itertools.product(
        enumerate(split_seeds), ("batch", "toward_running")
    ):
        data = config["data"] | {"split_seed": split_seed} | more
        value = 0.8 + (0.01 * seed**2 if norm == "toward_running" else 0)
        row = dataclasses.replace(row_of(norm, seed, value, n=50 + seed), config=kind)
        root = tmp_path / f"{norm}-{seed}"
        roots.append(_folder(root, [row], norm=norm, seed=seed, changes={"data": data}, name=kind))
    return roots


@pytest.mark.parametrize(
    ("kind", "more", "ratio"),
    [
        ("volumes", {"split": "drawn"}, 0.2 / 0.6),
        ("volumes", {"split": "drawn", "train_examples": 100}, 50 / 100),
        ("digits", {}, 50 / 1297),
        ("cifar10", {}, None),
    ],
)
def test_seeds_may_draw_their_own_parts_and_then_have_wider_intervals(tmp_path, kind, more, ratio):
    (experiment,) = report.read(_splits(tmp_path, kind, range(4), **more))
    assert experiment.test_per_training == (ratio and pytest.approx(ratio))
    assert experiment.notes[-1].startswith("Each seed drew its own training")
    found = report.merge_seeds(experiment.rows, test_per_training=experiment.test_per_training)
    # Nobody else's test part has this size, but the pair's has.
    (entry,) = (entry for entry in found if entry.norm == "toward_running")
    gains = 0.01 * np.arange(4) ** 2
    half = scipy.stats.t.ppf(0.975, 3) * gains.std(ddof=1) * math.sqrt(1 / 4 + (ratio or 0))
    assert entry.pairs == 4
    assert entry.difference_low == pytest.approx(gains.mean() - half)
    assert entry.difference_high == pytest.approx(gains.mean() + half)


def test_runs_of_one_seed_need_the_same_parts(tmp_path):
    good = _splits(tmp_path / "good", "digits", range(3))
    other = _splits(tmp_path / "other", "digits", [0, 7, 2])
    with pytest.raises(ConfigError, match=r"batch-1 and .*data\.split_seed is 1 and 7"):
        report.read([*good[:3], other[3], *good[4:]])
    # One data set for all seeds, as usual: no note, no wider interval.
    (experiment,) = report.read(_splits(tmp_path / "same", "digits", [0]))
    assert experiment.test_per_training is None
    assert not any("drew" in note for note in experiment.notes)


def test_what_cannot_be_compared_is_refused(tmp_path):
    good = _folder(tmp_path / "good", [row_of("batch", 0, 0.9)])

    def refused(match, rows, **more):
        bad = _folder(tmp_path / "bad", rows, **more)
        with pytest.raises(ConfigError, match=match):
            report.read([good, bad])

    seed_1 = [row_of("batch", 1, 0.9)]
    refused("preset is 'demo' and 'other'", seed_1, changes={"preset": "other"})
    train = {**dataclasses.asdict(presets.load("digits").train), "epochs": 3}
    refused("train.epochs is 12 and 3", seed_1, changes={"train": train})
    refused("each run counts once", [row_of("batch", 0, 0.9)])
    refused("500 test examples .* and 100 in", [row_of("batch", 1, 0.9, n=100)])
    refused("'bacth'", [row_of("bacth", 1, 0.9)])
    refused("'digits'", seed_1, name="cifar10")
    refused("no rows", [])
    (tmp_path / "bad" / "results.json").write_text('[{"config": 3}]')
    with pytest.raises(ConfigError, match="cannot be read"):
        report.read([good, tmp_path / "bad"])
    for number in ("NaN", "-Infinity", "1e400"):
        (tmp_path / "bad" / "results.json").write_text(f'[{{"value": {number}}}]')
        with pytest.raises(ConfigError, match=f"bad/results.json .*{number} is no finite number"):
            report.read([good, tmp_path / "bad"])
    (tmp_path / "bad" / "results.json").write_text("[{")
    with pytest.raises(ConfigError, match="cannot be read"):
        report.read([good, tmp_path / "bad"])
    (tmp_path / "bad" / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"no results.json; measure it"):
        report.read([good, tmp_path / "bad"])
    with pytest.raises(ConfigError, match="at least one"):
        report.read([])
