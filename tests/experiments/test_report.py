"""Merging, differences, tables that fit a terminal, plots, and checks that fire."""

import csv
import io
import math

import pytest
from rich.console import Console

from experiments import configs, plots, report, sanity
from experiments.models.norms import NORMS, sources
from experiments.record import Row, Run
from experiments.train import LogRow


def _row(norm, seed, value, statistics="running", *, attack="clean", epsilon=0.0, **more):
    return Row(
        "digits", norm, seed, statistics, attack, epsilon, "accuracy", value, 500, 0, 1, **more
    )


def _table():
    """A whole table as the demo makes it."""
    config = configs.by_name("digits").evaluation
    rows = []
    for i, norm in enumerate(NORMS):
        for statistics in sources(norm, config.statistics):
            for seed in (0, 1):
                rows.append(_row(norm, seed, 0.98, statistics))
                for attack in config.attacks:
                    for epsilon in attack.epsilons:
                        value = max(0.0, 0.9 - 2 * epsilon - 0.01 * i + 0.02 * seed)
                        rows.append(
                            _row(
                                norm,
                                seed,
                                value,
                                statistics,
                                attack=attack.name,
                                epsilon=epsilon,
                                norm_order="" if attack.kind == "gaussian" else "linf",
                            )
                        )
    return rows


def test_seeds_merge_and_differences_are_paired():
    rows = [
        _row("batch", 0, 0.90),
        _row("batch", 1, 0.80),
        _row("stein", 1, 0.83),
        _row("stein", 0, 0.92),
        _row("batch", 0, 0.70, "batch"),
        _row("stein", 0, 0.75, "batch"),
        _row("group", 0, 0.95, "none"),
    ]
    found = {(s.norm, s.statistics): s for s in report.summarise(rows)}
    stein = found["stein", "running"]
    assert stein.seeds == 2
    assert stein.mean == pytest.approx(0.875)
    assert stein.std == pytest.approx(0.09 / math.sqrt(2))
    assert (stein.lowest, stein.highest) == (0.83, 0.92)
    # pairs: +0.02 and +0.03, whatever the order of the rows
    assert stein.difference == pytest.approx(0.025)
    assert stein.difference_std == pytest.approx(0.01 / math.sqrt(2))
    # like is compared with like: the same source of statistics
    assert found["stein", "batch"].difference == pytest.approx(0.05)
    # and what the source alone does has a row of its own
    assert found["batch", "batch"].difference == pytest.approx(-0.20)
    assert found["group", "none"].difference == pytest.approx(0.05)
    assert math.isnan(found["group", "none"].std)


@pytest.mark.parametrize("differences", [False, True])
def test_the_terminal_table_fits_120_columns_uncut(differences):
    summaries = report.summarise(report.with_strongest(_table()))
    cells = report.columns(configs.by_name("digits").evaluation)
    console = Console(width=120, file=io.StringIO())
    console.print(report.terminal_table(summaries, cells, differences=differences))
    text = console.file.getvalue()
    assert "…" not in text
    source_words = ("running", "test", "none")
    lines = [
        line
        for line in text.splitlines()
        if line.split()[:1] and line.split()[0] in NORMS and line.split()[1] in source_words
    ]
    assert len(lines) == 2 * (len(NORMS) - 1) + 1  # one line each, none wrapped
    assert any("test batch" in line and line.strip().startswith("batch") for line in lines)
    assert "±" in lines[0] or differences


def test_markdown_and_csv_hold_every_cell():
    summaries = report.summarise(report.with_strongest(_table()))
    cells = report.columns(configs.by_name("digits").evaluation)
    lines = report.markdown_table(summaries, cells).splitlines()
    assert {line.count("|") for line in lines} == {len(cells) + 3}
    read = list(csv.DictReader(io.StringIO(report.csv_table(summaries))))
    assert len(read) == len(summaries)
    assert float(read[0]["mean"]) == summaries[0].mean


def test_plots_are_png_even_with_one_norm_and_one_seed():
    row = LogRow(5, 1.0, 1.0, 0.5, {"stem": {"mean_factor": 0.3, "variance_factor": 1.1}})
    runs = [Run("stein", 0, 1.0, [], [row])]
    for content in (
        plots.accuracy(report.summarise([_row("stein", 0, 0.5)])),
        plots.shrinkage(runs),
        plots.shrinkage([Run("group", 0, 1.0, [], [])]),
    ):
        assert content.startswith(b"\x89PNG")


def test_the_strongest_attack_is_chosen_per_radius_seed_and_source():
    ball = {"epsilon": 0.1, "norm_order": "linf"}
    rows = [
        _row("batch", 0, 0.1, attack="gaussian", epsilon=0.1),  # noise is no attack
        _row("batch", 0, 0.6, attack="fgsm", **ball),
        _row("batch", 0, 0.4, attack="pgd", **ball),
        _row("batch", 1, 0.3, attack="fgsm", **ball),
        _row("batch", 1, 0.5, attack="pgd", **ball),
        _row("batch", 0, 0.2, "batch", attack="pgd", **ball),
    ]
    added = report.with_strongest(rows)[len(rows) :]
    assert [(r.seed, r.statistics, r.attack, r.value) for r in added] == [
        (0, "running", "strongest", 0.4),
        (1, "running", "strongest", 0.3),
        (0, "batch", "strongest", 0.2),
    ]


def test_checks_fire_for_weak_attacks_and_only_then():
    sound = [
        _row("batch", 0, 0.5, attack="fgsm", epsilon=0.1),
        _row("batch", 0, 0.4, attack="pgd", epsilon=0.1),
        _row("batch", 0, 0.2, attack="pgd", epsilon=0.2),
    ]
    assert sanity.warnings_for(sound) == []
    weak = [*sound, _row("batch", 0, 0.6, attack="pgd", epsilon=0.3, zero_gradients=200)]
    weak.append(_row("batch", 0, 0.1, attack="fgsm", epsilon=0.3))
    found = " ".join(sanity.warnings_for(weak))
    assert "more than one step of FGSM" in found
    assert "smaller radius" in found
    assert "zero gradient in 40 %" in found
