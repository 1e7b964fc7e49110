"""Comparison with batch norm at the same clean score: the line, its interval, what is left out."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from experiments import report
from experiments.configs import presets
from experiments.errors import ConfigError
from experiments.report import equal_accuracy, figures
from experiments.report.plots import against_clean
from experiments.results import Row
from steinnorm.attacks.files import write_json

RADIUS = 0.1


def _run(norm, seed, clean, attacked, statistics="running"):
    threat = "joint" if statistics == "batch" else ""
    common = {"n": 500, "ci_low": 0.0, "ci_high": 1.0, "metric": "accuracy", "threat_model": threat}
    return [
        Row("digits", norm, seed, statistics, "clean", 0.0, value=clean, **common),
        Row(
            "digits",
            norm,
            seed,
            statistics,
            "worst",
            RADIUS,
            value=attacked,
            norm_order="linf",
            **common,
        ),
    ]


def _found(runs, controls):
    rows = [row for run in runs for row in run]
    return equal_accuracy.at_equal_accuracy(report.merge_seeds(rows), runs, controls)


def test_a_norm_that_is_only_less_accurate_gains_nothing():
    # Batch norm keeps more under attack the less accurate it is; the norm lies on its line.
    on_line = [0.70, 0.72, 0.74, 0.66, 0.62, 0.60]
    runs = [_run("batch", seed, clean, 1.0 - clean) for seed, clean in enumerate(on_line[:3])]
    runs += [_run("stein", seed, c, 1.0 - c) for seed, c in enumerate([0.63, 0.65, 0.67])]
    controls = [_run("batch", seed, clean, 1.0 - clean) for seed, clean in enumerate(on_line[3:])]
    (entry,) = _found(runs, controls)
    assert (entry.norm, entry.attack, entry.pairs) == ("stein", "worst", 3)
    assert entry.difference == pytest.approx(0, abs=1e-12)
    (plain,) = (
        s
        for s in report.merge_seeds([row for run in runs for row in run])
        if s.norm == "stein" and s.attack == "worst"
    )
    assert plain.difference == pytest.approx(0.07)  # which looks like robustness


def test_the_interval_is_welchs_for_the_runs_and_the_line():
    generator = np.random.default_rng(0)
    clean = np.linspace(0.5, 0.7, 9)
    attacked = 0.4 - 0.5 * clean + 0.02 * generator.standard_normal(9)
    own_clean = np.array([0.58, 0.61, 0.60, 0.57])
    own = np.array([0.15, 0.12, 0.17, 0.10])
    runs = [_run("batch", i, clean[i], attacked[i]) for i in range(4)]
    runs += [_run("ridge", i, own_clean[i], own[i]) for i in range(4)]
    (entry,) = _found(runs, [_run("batch", i, clean[i], attacked[i]) for i in range(4, 9)])
    line = scipy.stats.linregress(clean, attacked)
    gains = own - (line.intercept + line.slope * own_clean)
    residuals = attacked - line.intercept - line.slope * clean
    middle = own_clean.mean()
    design = np.stack([np.ones(9), clean], 1)
    at = np.array([1, middle])
    of_line = residuals @ residuals / 7 * (at @ np.linalg.inv(design.T @ design) @ at)
    of_runs = gains.var(ddof=1) / 4
    freedom = (of_line + of_runs) ** 2 / (of_line**2 / 7 + of_runs**2 / 3)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(of_line + of_runs)
    assert entry.difference == pytest.approx(gains.mean())
    assert entry.difference_std == pytest.approx(gains.std(ddof=1))
    wanted = (gains.mean() - half, gains.mean() + half)
    assert (entry.difference_low, entry.difference_high) == pytest.approx(wanted)


def test_the_interval_is_wider_where_seeds_drew_their_own_parts():
    """By Nadeau and Bengio's term, in the mean of the runs and in the line."""
    generator = np.random.default_rng(2)
    clean = generator.uniform(0.5, 0.7, 9)
    attacked = 0.4 - 0.5 * clean + 0.02 * generator.standard_normal(9)
    own = generator.uniform(0.08, 0.12, 4)
    runs = [_run("batch", i, clean[i], attacked[i]) for i in range(9)]
    runs += [_run("ridge", i, 0.6, own[i]) for i in range(4)]
    entries = report.merge_seeds([row for run in runs for row in run])
    found = {
        ratio: equal_accuracy.at_equal_accuracy(entries, runs, [], ratio)[0]
        for ratio in (None, 1 / 3)
    }
    line = scipy.stats.linregress(clean, attacked)
    residuals = attacked - line.intercept - line.slope * clean
    variance = residuals @ residuals / 7
    away = (0.6 - clean.mean()) ** 2 / np.square(clean - clean.mean()).sum()
    for ratio, entry in found.items():
        of_line = variance * (1 / 9 + away + (ratio or 0))
        of_runs = own.var(ddof=1) * (1 / 4 + (ratio or 0))
        freedom = (of_line + of_runs) ** 2 / (of_line**2 / 7 + of_runs**2 / 3)
        half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(of_line + of_runs)
        width = entry.difference_high - entry.difference_low
        assert width == pytest.approx(2 * half, rel=1e-6)


def test_the_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    trials = 400
    for _ in range(trials):
        clean = np.concatenate([np.full(5, 0.64), np.full(5, 0.58)])
        clean = clean + 0.005 * generator.standard_normal(10)
        attacked = 0.9 - clean + 0.02 * generator.standard_normal(10)
        own_clean = 0.61 + 0.005 * generator.standard_normal(5)
        own = 0.9 - own_clean + 0.03 + 0.01 * generator.standard_normal(5)
        runs = [_run("batch", i, clean[i], attacked[i]) for i in range(5)]
        runs += [_run("stein", i, own_clean[i], own[i]) for i in range(5)]
        (entry,) = _found(runs, [_run("batch", i, clean[i], attacked[i]) for i in range(5, 10)])
        covered += entry.difference_low <= 0.03 <= entry.difference_high
    assert 0.92 <= covered / trials <= 0.98


def test_nothing_is_said_beyond_batch_norms_runs_or_from_two_of_them():
    runs = [_run("batch", seed, 0.7 - 0.01 * seed, 0.3) for seed in range(3)]
    controls = [_run("batch", 0, 0.6, 0.4)]
    assert not _found([*runs, _run("stein", 0, 0.71, 0.3)], controls)
    assert not _found([*runs, _run("stein", 0, 0.59, 0.3)], controls)
    (entry,) = _found([*runs, _run("stein", 0, 0.61, 0.3)], controls)
    assert math.isnan(entry.difference_low)  # one run has no spread
    assert not _found([runs[0], _run("stein", 0, 0.65, 0.3)], controls)
    assert not _found([*runs, _run("stein", 0, 0.61, 0.3, "batch")], controls)  # other statistics
    # A norm without batch statistics is compared with batch norm's running ones.
    (entry,) = _found([*runs, _run("group", 0, 0.65, 0.3, "none")], controls)
    assert entry.norm == "group"


def _folder(root, norm, seed, clean, attacked, **model):
    config = dataclasses.asdict(presets.load("digits"))
    config["model"] |= model
    write_json(root / "config.json", {"config": config, "norm": norm, "seed": seed})
    rows = _run(norm, seed, clean, attacked)
    write_json(root / "results.json", [dataclasses.asdict(row) for row in rows])
    return root


def _comparison(tmp_path):
    for seed in range(3):
        clean = 0.7 - 0.01 * seed
        _folder(tmp_path / f"runs/batch-{seed}", "batch", seed, clean, 0.9 - clean)
        _folder(tmp_path / f"runs/stein-{seed}", "stein", seed, clean - 0.05, 0.31 + 0.01 * seed)
        _folder(
            tmp_path / f"controls/model.width=3/batch-{seed}",
            "batch",
            seed,
            clean - 0.1,
            0.97 - clean + 0.01 * (seed % 2),
            width=3,
        )
    return tmp_path


def test_a_report_of_a_comparison_finds_its_controls(tmp_path):
    (experiment,) = report.read([_comparison(tmp_path)])
    assert len(experiment.runs) == 6
    assert len(experiment.controls) == 3
    assert list(experiment.control_names) == ["model.width=3"]
    entries = report.merge_seeds(experiment.rows)
    (entry,) = entries and equal_accuracy.at_equal_accuracy(
        entries, experiment.runs, experiment.controls
    )
    text = report.markdown([report.Section(experiment, entries)])
    section = text[text.index("### At equal clean accuracy") :]
    assert "3 controls (batch norm, model.width=3)" in section
    low, high = (round(100 * end, 1) for end in (entry.difference_low, entry.difference_high))
    assert f"{100 * entry.difference:+.1f} [{low:+}, {high:+}]" in section
    shown = [s for s in entries if s.attack == "worst"]
    drawn = against_clean(shown, experiment.runs, experiment.controls)
    assert drawn.startswith(b"\x89PNG")


def test_each_metric_has_its_own_line(tmp_path):
    (experiment,) = report.read([_comparison(tmp_path)])

    def with_auc(rows):
        return [*rows, *(dataclasses.replace(r, metric="auc", value=r.value**2) for r in rows)]

    both = dataclasses.replace(
        experiment,
        metrics=("auc", "accuracy"),
        rows=with_auc(experiment.rows),
        controls=[with_auc(run) for run in experiment.controls],
    )
    entries = report.merge_seeds(both.rows)
    text = report.markdown([report.Section(both, entries)])
    found = equal_accuracy.at_equal_accuracy(entries, both.runs, both.controls)
    assert {entry.metric for entry in found} == {"auc", "accuracy"}
    auc, accuracy = text.index("### At equal clean AUC"), text.index("### At equal clean accuracy")
    assert auc < accuracy
    for entry, section, points in zip(
        sorted(found, key=lambda entry: entry.metric == "accuracy"),
        (text[auc:accuracy], text[accuracy:]),
        (1, 100),
        strict=True,
    ):
        digits = 3 if points == 1 else 1
        assert f"{points * entry.difference:+.{digits}f} [" in section
        assert ("in percentage points" in section[: section.index("Mean ±")]) == (points == 100)


def test_what_is_no_control_is_refused(tmp_path):
    root = _comparison(tmp_path)
    other = _folder(tmp_path / "other", "stein", 0, 0.5, 0.5, width=3)
    with pytest.raises(ConfigError, match="its norm must be batch"):
        report.read([root], [other])
    config = dataclasses.asdict(presets.load("digits"))
    config["data"] |= {"test_examples": 100}
    _folder(tmp_path / "other", "batch", 0, 0.5, 0.5)
    write_json(tmp_path / "other/config.json", {"config": config, "norm": "batch", "seed": 0})
    with pytest.raises(ConfigError, match=r"no control of .*test_examples is 500 and 100"):
        report.read([root], [other])
    config["name"] = "cifar10"
    write_json(tmp_path / "other/config.json", {"config": config, "norm": "batch", "seed": 0})
    rows = [dataclasses.replace(row, config="cifar10") for row in _run("batch", 0, 0.5, 0.5)]
    write_json(tmp_path / "other/results.json", [dataclasses.asdict(row) for row in rows])
    with pytest.raises(ConfigError, match="is a control of no run"):
        report.read([root], [other])


def test_the_plot_is_of_the_radius_at_which_norms_can_differ():
    row = _run("batch", 0, 0.8, 0.5)[1]
    found = {0.01: 0.75, 0.02: 0.45, 0.03: 0.02, 0.04: 0.01}
    rows = [dataclasses.replace(row, epsilon=radius, value=v) for radius, v in found.items()]
    entries = report.merge_seeds([_run("batch", 0, 0.8, 0.5)[0], *rows])
    under = [entry for entry in entries if entry.attack == "worst"]
    assert figures._radius(entries, under) == 0.02
    # Without batch norm, or without its clean scores, there is nothing to compare with.
    others = [dataclasses.replace(entry, norm="stein") for entry in entries]
    attacked = [entry for entry in others if entry.attack == "worst"]
    assert figures._radius(others, attacked) == 0.02  # the middle one of an even number
    assert figures._radius(under, under) == 0.02
    assert figures._radius([*under, *others], under) == 0.02
