"""Merging, differences, tables in all forms, and what is missing."""

import csv
import dataclasses
import io
import itertools
import math
import random
import re

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from experiments import report
from experiments.configs import presets
from experiments.evaluation.per_example import PerExampleResults, Values
from experiments.models.norms import NORMS, sources
from experiments.report import document
from experiments.report.tables import table_body
from tests.experiments.report.rows import row_of

BALL = {"epsilon": 0.1, "norm_order": "linf"}


def _table():
    """A whole table as the demo makes it, with accuracies of two digits and wide spreads."""
    config = presets.load("digits").evaluation
    rows = []
    for i, norm in enumerate(NORMS):
        for statistics, seed in itertools.product(sources(norm, config.statistics), (0, 1)):
            threat = "joint" if statistics == "batch" else ""
            rows.append(row_of(norm, seed, 0.98, statistics, threat_model=threat))
            worst = dataclasses.replace(config.attacks[1], name="worst")
            for attack in (*config.attacks, worst):
                for epsilon in attack.epsilons:
                    value = max(0.0, 0.9 - 2 * epsilon - 0.03 * i + (0.4 if seed else 0) * (i % 2))
                    rows.append(
                        row_of(
                            norm,
                            seed,
                            value,
                            statistics,
                            attack=attack.name,
                            epsilon=epsilon,
                            norm_order="linf" if attack.has_ball else "",
                            threat_model=threat,
                        )
                    )
    return rows


def _found(rows, **more):
    return {(s.norm, s.source.name, s.attack): s for s in report.merge_seeds(rows, **more)}


def test_seeds_merge_and_differences_are_paired_in_any_order():
    rows = [
        row_of("batch", 0, 0.90),
        row_of("batch", 1, 0.80),
        row_of("stein", 1, 0.83),
        row_of("stein", 0, 0.92),
        row_of("stein", 7, 0.11),  # of a seed that batch norm lacks: in no pair
        row_of("batch", 0, 0.70, "batch"),
        row_of("stein", 0, 0.75, "batch"),
        row_of("batch", 0, 0.60, "shrunk"),
        row_of("stein", 0, 0.90, "shrunk"),
        row_of("group", 0, 0.95, "none"),
    ]
    for order in range(3):
        random.Random(order).shuffle(rows)
        found = _found(rows)
        stein = found["stein", "running", "clean"]
        assert (stein.seeds, stein.pairs) == (3, 2)
        assert stein.mean == pytest.approx(0.62)
        assert stein.std == pytest.approx(np.std([0.83, 0.92, 0.11], ddof=1))
        assert (stein.lowest, stein.highest) == (0.11, 0.92)
        assert math.isnan(stein.ci_low)
        assert stein.difference == pytest.approx(0.025)  # of +0.02 and +0.03
        assert stein.difference_std == pytest.approx(0.01 / math.sqrt(2))
        # like is compared with like: the same source of statistics
        assert found["stein", "test batch", "clean"].difference == pytest.approx(0.05)
        shrunk = found["stein", "shrunk", "clean"]
        assert shrunk.difference == pytest.approx(0.30)
        assert shrunk.reference == "batch, shrunk"
        # and what the source alone does has a row of its own
        assert found["batch", "test batch", "clean"].difference == pytest.approx(-0.20)
        group = found["group", "none", "clean"]
        assert group.difference == pytest.approx(0.05)
        assert math.isnan(group.std)
        assert (group.ci_low, group.ci_high) == (pytest.approx(0.93), pytest.approx(0.98))


def test_three_seeds_and_more_have_students_interval():
    reference, ours = [0.90, 0.80, 0.85, 0.88], [0.93, 0.82, 0.85, 0.92]
    rows = [row_of("batch", seed, value) for seed, value in enumerate(reference)]
    rows += [row_of("stein", seed, value) for seed, value in enumerate(ours)]
    stein = _found(rows)["stein", "running", "clean"]
    wanted = scipy.stats.ttest_rel(ours, reference).confidence_interval(0.95)
    assert (stein.difference_low, stein.difference_high) == pytest.approx(tuple(wanted))
    written = [text for _, texts in table_body(_differences(rows)) for text in texts]
    low, high = (round(100 * end, 1) for end in wanted)
    assert f"+2.2 [{low:+}, {high:+}]" in written


def test_seeds_with_parts_of_their_own_may_have_different_numbers_of_examples():
    rows = [row_of("batch", seed, 0.5, n=n) for seed, n in enumerate((52, 47, 50))]
    rows += [row_of("stein", 0, 0.5, n=52)]
    entries = report.merge_seeds(rows)
    content = report.Content(entries, report.columns_of(entries))
    sizes = {norm: size for (norm, _, size), _ in table_body(content)}
    assert sizes == {"batch": "3 × 47–52", "stein": "1 × 52"}


def test_two_seeds_and_seeds_that_differ_alike_have_no_interval():
    for seeds, gain in ((2, [0.01, 0.03]), (3, [0.02, 0.02, 0.02])):
        rows = [row_of("batch", seed, 0.5) for seed in range(seeds)]
        rows += [row_of("stein", seed, 0.5 + gain[seed]) for seed in range(seeds)]
        stein = _found(rows)["stein", "running", "clean"]
        assert math.isnan(stein.difference_low)
        assert "+2.0±" in [t for _, ts in table_body(_differences(rows)) for t in ts][-1]


def _differences(rows):
    entries = report.merge_seeds(rows)
    return report.Content(entries, report.columns_of(entries), differences=True)


def test_threat_models_metrics_balls_and_steps_are_never_mixed():
    rows = [
        row_of("batch", 0, 0.5, "batch", attack="pgd", threat_model="joint", **BALL),
        row_of("batch", 0, 0.9, "batch", attack="pgd", threat_model="independent", n=32, **BALL),
        row_of("batch", 0, 0.7, "running", attack="pgd", **BALL),
        row_of("batch", 0, 0.4, "running", attack="pgd", epsilon=0.1, norm_order="l2"),
        row_of("batch", 0, 0.2, "running", attack="pgd", metric="auc", **BALL),
        row_of("batch", 0, 0.99, "batch", threat_model="joint"),
    ]
    for steps in (1, 2):
        rows.append(row_of("batch", 0, 0.3, attack="convergence", steps=steps, **BALL))
    entries = report.merge_seeds(rows)
    assert len(entries) == len(rows)
    by_source = {(s.source.name, s.attack): s for s in entries if s.metric == "accuracy"}
    assert by_source["test batch (joint)", "clean"].mean == 0.99
    # 32 examples are not the 500 that the reference was measured on
    assert math.isnan(by_source["test batch (independent)", "pgd"].difference)
    assert by_source["test batch (joint)", "pgd"].difference == pytest.approx(-0.2)
    names = [column.name for column in report.columns_of(entries)]
    assert names == ["clean", "pgd 0.1", "pgd-l2 0.1"]  # no column of convergence


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (0.12, "0.12"),
        (8 / 255, "8/255"),
        (0.2, "0.2"),
        (1.0, "1"),
        (0.1 + 0.2, "0.3"),
        (0.00784314, "0.00784314"),  # which is not 2/255
        (0.0078431373, "0.0078431373"),
    ],
)
def test_strengths_are_written_as_people_do(epsilon, text):
    assert report.strength(epsilon) == text


def _shown_columns(rows):
    """Those that the digits' configuration names and the rows have."""
    evaluation = presets.load("digits").evaluation
    shown = [
        report.Column(attack.name, epsilon, attack.norm if attack.has_ball else "")
        for attack in evaluation.attacks
        for epsilon in attack.shown
    ]
    worst = [report.Column("worst", epsilon, "linf") for epsilon in evaluation.shown_worst]
    wanted = [report.Column("clean"), *shown, *worst]
    return report.short_columns(report.merge_seeds(rows), wanted)


@pytest.mark.parametrize("width", [80, 120])
def test_all_tables_of_a_terminal_fit_it_uncut(width):
    rows = _table()
    console = Console(width=width, file=io.StringIO())
    wanted = _shown_columns(rows)
    for table in report.comparison_tables(report.merge_seeds(rows), "accuracy", wanted, width):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    lines = [line.split() for line in text.splitlines()]
    lines = [x for x in lines if x and x[0] in NORMS and x[1] in ("running", "test", "none")]
    tables = 2 * (1 if width == 120 else 2)
    assert len(lines) == tables * (2 * (len(NORMS) - 1) + 1)  # one line each, none wrapped
    for name in {word for column in wanted for word in column.name.split()}:
        assert name.rpartition("-")[2] in text


@pytest.mark.parametrize("differences", [False, True])
def test_the_terminal_table_fits_120_columns_uncut(differences):
    columns = _shown_columns(_table())
    assert [column.name for column in columns][-2:] == ["worst 0.07", "worst 0.12"]
    console = Console(width=120, file=io.StringIO())
    content = report.Content(report.merge_seeds(_table()), columns, differences)
    console.print(report.terminal_table(content))
    text = console.file.getvalue()
    assert "…" not in text
    lines = [line.split() for line in text.splitlines()]
    lines = [x for x in lines if x and x[0] in NORMS and x[1] in ("running", "test", "none")]
    assert len(lines) == 2 * (len(NORMS) - 1) + 1  # one line each, none wrapped
    assert sum("±" in word for word in lines[1]) == len(columns)
    assert ["batch", "test", "batch"] in [line[:3] for line in lines]


def test_one_seed_has_an_interval_and_several_a_spread():
    one, two = row_of("batch", 0, 0.5), row_of("batch", 1, 0.7)
    content = report.Content(report.merge_seeds([one]), [report.Column("clean")])
    assert "| 1 × 500 | 50.0 [48.0, 53.0] |" in report.markdown_table(content)
    content = report.Content(report.merge_seeds([one, two]), [report.Column("clean")])
    assert "| 2 × 500 | 60.0±14.1 |" in report.markdown_table(content)
    auc = [dataclasses.replace(one, metric="auc", value=0.98765)]
    content = report.Content(report.merge_seeds(auc), [report.Column("clean")])
    assert "0.988 [0.480, 0.530]" in report.markdown_table(content)


def test_markdown_latex_and_csv_hold_every_cell():
    odd = [
        row_of(n, 0, 0.4, attack="a|b_50%&-l2", epsilon=0.5) for n in ("batch", "toward_running")
    ]
    entries = report.merge_seeds([*_table(), *odd])
    for differences in (False, True):
        for page in report.pages(report.columns_of(entries)):
            content = report.Content(entries, page, differences)
            for line in report.markdown_table(content).splitlines():
                assert len(re.findall(r"(?<!\\)\|", line)) == len(page) + 4
            _check_latex(report.latex_table(content), len(page) + 3)
    text = report.csv_table(entries)
    read = list(csv.DictReader(io.StringIO(text)))
    assert len(read) == len(entries)
    for line, entry in zip(read, entries, strict=True):
        for name, value in dataclasses.asdict(entry).items():
            if isinstance(value, float) and math.isnan(value):
                assert line[name] == ""
            else:
                assert type(value)(line[name]) == value


def _check_latex(table, columns):
    """As far as it can be seen without LaTeX: groups, rules, columns, nothing left to escape."""
    body = table.splitlines()
    assert body[0] == f"\\begin{{tabular}}{{ll{'r' * (columns - 2)}}}"
    assert body[-1] == "\\end{tabular}"
    rules = [line for line in body if line in ("\\toprule", "\\midrule", "\\bottomrule")]
    assert (rules[0], rules[-1]) == ("\\toprule", "\\bottomrule")
    for line in body:
        if line.endswith(r" \\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
            assert not re.search(r"(?<!\\)[%#_]", line)
            assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0
            assert line.isascii()
    plain = re.sub(r"\\[{}]", "", table)
    assert plain.count("{") == plain.count("}")


def test_latex_escapes():
    assert report.latex("a_b 5% & {x} $ # ~ ^ \\") == (
        r"a\_b 5\% \& \{x\} \$ \# \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert report.latex("-1.2±0.3 [-2.0, +0.1]") == r"$-$1.2$\pm$0.3 [$-$2.0, +0.1]"
    assert report.latex("pgd-margin-2") == "pgd-margin-2"


def test_pages_keep_all_columns_in_order_and_attacks_together():
    columns = [
        report.Column(name, epsilon, "linf")
        for name, count in (("a", 1), ("b", 4), ("c", 3), ("d", 8))
        for epsilon in range(count)
    ]
    pages = report.pages(columns, 6)
    assert [column for page in pages for column in page] == columns
    assert [len(page) for page in pages] == [5, 3, 6, 2]


def test_a_missing_reference_is_named():
    assert (
        report.missing_reference([row_of("batch", 0, 0.9), row_of("group", 0, 0.9, "none")]) == ""
    )
    stein = [row_of("stein", seed, 0.9, attack="pgd", **BALL) for seed in (0, 1)]
    alone = report.missing_reference([*stein, row_of("batch", 0, 0.9)])
    assert alone.startswith("MISSING: batch norm with test-batch statistics was not measured;")
    reference = [dataclasses.replace(row, norm="batch", statistics="batch") for row in stein]
    assert report.missing_reference([*stein, *reference]) == ""
    joint = [dataclasses.replace(row, threat_model="joint") for row in reference]
    assert report.missing_reference([*stein, *joint]) == ""
    assert "for pgd 0.1 (seed 1);" in report.missing_reference([*stein, joint[0]])
    # what was attacked another way, on other examples, is no reference
    other = [dataclasses.replace(row, threat_model="independent") for row in reference]
    assert "pgd 0.1 (seed 0, 1)" in report.missing_reference([*stein, *other])


def test_the_paired_interval_is_agresti_and_mins_and_covers():
    right = np.array([True] * 70 + [False] * 30)
    other = np.array([True] * 60 + [False] * 10 + [True] * 4 + [False] * 26)
    low, high = report.difference_interval(right, other)
    # by hand: b = 10.5, c = 4.5, N = 102
    centre = 6 / 102
    half = 1.959963985 * math.sqrt((15 - 36 / 102) / 102**2)
    assert (low, high) == (pytest.approx(centre - half), pytest.approx(centre + half))
    low, high = report.difference_interval(right, right)
    assert low == pytest.approx(-high)
    assert 0 < high < 0.03
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        both = generator.random(80)
        a, b = both < 0.7, (both + 0.15) % 1.0 < 0.75
        truth = 0.70 - 0.75
        low, high = report.difference_interval(a, b)
        covered += low <= truth <= high
    assert 0.92 < covered / 500 < 0.99


def _results(row, right):
    zeros = np.zeros(len(right))
    about = {**dataclasses.asdict(row.key), "identity": {"weights": "abc"}}
    return PerExampleResults(about, {"right": right}, zeros, zeros.astype(int), Values(0.0, 1.0, 0))


def test_one_pair_of_runs_is_compared_example_by_example(tmp_path):
    generator = np.random.default_rng(1)
    rows, rights = [], {}
    for norm, attack in itertools.product(("batch", "stein"), ("fgsm", "pgd")):
        right = generator.random(40) < 0.6
        row = row_of(norm, 0, float(right.mean()), attack=attack, n=40, **BALL)
        _results(row, right).save(tmp_path / norm)
        rows.append(row)
        rights[norm, attack] = right
    for norm in ("batch", "stein"):
        both = rights[norm, "fgsm"] & rights[norm, "pgd"]
        rows.append(row_of(norm, 0, float(both.mean()), attack="worst", n=40, **BALL))
        rights[norm, "worst"] = both
    places = {("batch", 0): tmp_path / "batch", ("stein", 0): tmp_path / "stein"}
    found = _found(rows, paired=report.PairedResults(places).interval)
    for attack in ("fgsm", "pgd", "worst"):
        stein = found["stein", "running", attack]
        expected = report.difference_interval(rights["stein", attack], rights["batch", attack])
        assert (stein.difference_low, stein.difference_high) == expected
    content = report.Content(list(found.values()), [report.Column("pgd", 0.1, "linf")], True)
    assert re.search(r"\| stein .* \[[+-].*, [+-].*\] \|", report.markdown_table(content))
    # results that another evaluation left there do not belong to the row
    stale = [dataclasses.replace(row, value=row.value + 0.025) for row in rows]
    found = _found(stale, paired=report.PairedResults(places).interval)
    assert math.isnan(found["stein", "running", "pgd"].difference_low)


def test_worst_cases_over_different_attacks_are_called_unlike():
    ball = {"attack": "worst", "epsilon": 8 / 255, "norm_order": "linf"}
    one = row_of("batch", 0, 0.1, over="apgd, pgd", **ball)
    same = row_of("stein", 0, 0.2, over="apgd, pgd", **ball)
    fewer = row_of("stein", 1, 0.3, over="pgd", **ball)
    elsewhere = row_of("stein", 1, 0.3, over="pgd", **{**ball, "epsilon": 4 / 255})
    assert document._unlike([one, same, elsewhere]) == ""
    text = document._unlike([one, fewer, elsewhere])
    assert "UNLIKE" in text
    assert "8/255 (linf)" in text
    assert "4/255" not in text
    assert "apgd, pgd; pgd" in text


def test_worst_cases_over_different_attacks_have_no_difference():
    both = {"attack": "worst", "epsilon": 0.1, "norm_order": "linf"}
    rows = [
        row_of("batch", 0, 0.5, over="fgsm, pgd", **both),
        row_of("stein", 0, 0.6, over="fgsm, pgd", **both),
        row_of("jsnorm", 0, 0.7, over="fgsm", **both),
    ]
    of_norm = {entry.norm: entry for entry in report.merge_seeds(rows)}
    assert of_norm["stein"].difference == pytest.approx(0.1)
    assert (of_norm["jsnorm"].pairs, of_norm["jsnorm"].mean) == (0, 0.7)
    assert np.isnan(of_norm["jsnorm"].difference)
