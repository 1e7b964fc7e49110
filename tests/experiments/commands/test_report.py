"""The command ``report`` from hand-written work folders to its last file."""

import contextlib
import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest

from experiments import tasks
from experiments.__main__ import main
from experiments.configs import presets
from experiments.configs.schema import AttackConfig
from experiments.evaluation import aggregate
from experiments.results import Check, Row
from steinnorm.attacks.files import write_json
from tests.experiments.images import decoded, results_of

_ATTACKS = (
    AttackConfig("gaussian", "gaussian", (0.1,)),
    AttackConfig("fgsm", "fgsm", (0.1,)),
    AttackConfig("pgd_x", "pgd", (0.1,), steps=5),
)


def _classified(norm, seed, statistics, count=20):
    """Attacks, clean first, with a cell of random answers each."""
    generator = np.random.default_rng([seed, len(norm), len(statistics)])
    x = generator.uniform(0, 1, (count, 6, 6, 1)).astype(np.float32)
    y = np.arange(count) % 10
    for attack in (AttackConfig("clean", "gaussian", (0.0,)), *_ATTACKS):
        epsilon = attack.epsilons[0]
        prediction = np.where(generator.random(count) < 0.9 - 4 * epsilon, y, (y + 1) % 10)
        found = results_of(
            x[:8],
            np.clip(x + epsilon, 0, 1)[:8],
            y[:8],
            prediction[:8],
            norm=norm,
            seed=seed,
            statistics=statistics,
            threat_model="joint" if statistics == "batch" else "",
            attack=attack.name,
            epsilon=epsilon,
            norm_order=attack.norm if attack.has_ball else "",
        )
        right = prediction == y
        yield (
            attack,
            dataclasses.replace(
                found,
                summary={"right": right, "loss": 1.0 - right},
                distance=np.full(count, epsilon),
                batch=np.arange(count) // 10,
            ),
        )


def _segmented(norm, seed, statistics):
    generator = np.random.default_rng(4)
    x = generator.uniform(0, 1, (3, 16, 24, 3)).astype(np.float32)
    y = generator.integers(0, 2, (3, 16, 24)).astype(np.uint8)
    for attack in (
        AttackConfig("clean", "gaussian", (0.0,)),
        AttackConfig("sea", "sea", (8 / 255,)),
    ):
        flips = generator.random(y.shape) < 0.1 + 9 * attack.epsilons[0]
        prediction = np.where(flips, 1 - y, y).astype(np.int32)
        about = {"attack": attack.name, "epsilon": attack.epsilons[0], "config": "cityscapes"}
        about["norm_order"] = "linf" if attack.name == "sea" else ""
        found = results_of(
            x, x, y, prediction, norm=norm, seed=seed, statistics=statistics, **about
        )
        table = np.zeros((3, 2, 2), np.int64)
        np.add.at(table, (np.arange(3)[:, None, None], y, prediction), 1)
        summary = {"confusion": table, "pixels": np.full(3, 384), "loss": np.ones(3)}
        yield attack, dataclasses.replace(found, summary=summary)


def _described(attack, found):
    """The cell with the settings of its attack."""
    settings = dataclasses.asdict(attack)
    del settings["epsilons"], settings["shown"]
    return dataclasses.replace(found, about={**found.about, "attack_settings": settings})


def _folder(
    root, norm, seed, *, statistics=("running", "batch"), config="digits", made=_classified
):
    settings = presets.load(config)
    task = tasks.create(settings.task, 2)
    rows = []
    for source in statistics:
        done = list(made(norm, seed, source))
        done = [_described(attack, found) for attack, found in done]
        for found in done:
            found.save(root)
        rows += aggregate.rows_of_all(task, done)
        for steps in (1, 5):
            more = {"attack": "convergence", "metric": rows[0].metric, "value": 0.5 / steps}
            rows.append(dataclasses.replace(rows[-1], steps=steps, **more))
    checks = [Check(config, norm, seed, "running", "more_restarts", "PASS", 0.0, "as it should be")]
    if seed:
        checks.append(Check(config, norm, seed, "running", "twice", "FAIL", 0.2, "20 points worse"))
    write_json(
        root / "config.json", {"config": dataclasses.asdict(settings), "norm": norm, "seed": seed}
    )
    write_json(root / "results.json", [dataclasses.asdict(row) for row in rows])
    write_json(root / "checks.json", [dataclasses.asdict(check) for check in checks])
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    norms = ("batch", "stein_mean_only")
    found = [_folder(root / f"{n}{seed}", n, seed) for n in norms for seed in (0, 1)]
    return [*found, _folder(root / "g", "group", 0, statistics=("none",))]


def _report(folders, out):
    return main(["report", *map(str, folders), "--out", str(out)])


@pytest.fixture(scope="module")
def reported(folders, tmp_path_factory):
    """The report on the folders in the other order: its folder, and what was printed."""
    out = tmp_path_factory.mktemp("reported") / "report"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert _report(folders[::-1], out) == 0
    return out, printed.getvalue()


def test_a_whole_report(folders, reported):
    out, text = reported
    assert text.splitlines()[-1].endswith("report.md")
    places = "batch, running statistics, seed 1; stein_mean_only, running statistics, seed 1"
    assert f"FAILED twice: 2 times; {places}" in text
    assert "MISSING" not in text

    document = (out / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", document)
    assert all((out / link).exists() for link in links)
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {*links, "report.md", "results.json", "checks.json"}
    assert {"table.csv", "table.tex", "accuracy-linf.png", "accuracy-steps.png"} <= written
    pictures = sorted(name for name in written if name.startswith("pictures"))
    assert len(pictures) == 5  # two norms with two sources, group norm with none
    for name in written:
        if name.endswith(".png"):
            decoded((out / name).read_bytes())
    assert "2 of 7 checks of the evaluation FAILED" in document
    assert re.search(r"\| more_restarts +\| +5 \| +0 \| +0 \|", document)
    assert "MISSING" not in document
    # beside every row of a shrinking norm stands batch norm with test-batch statistics
    tables = [t for t in document.split("\n\n") if "| stein_mean_only |" in t]
    assert len(tables) >= 2
    assert all("| batch | test batch (joint) |" in t for t in tables)
    assert "convergence" not in document.split("### Checks")[0].replace("converged", "")

    rows = [Row(**row) for row in json.loads((out / "results.json").read_text())]
    given = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert rows == [Row(**row) for part in given for row in part]
    values = [
        r.value
        for r in rows
        if (r.norm, r.statistics, r.attack, r.metric) == ("batch", "running", "worst", "accuracy")
    ]
    expected = f"{100 * np.mean(values):.1f}±{100 * np.std(values, ddof=1):.1f}"
    assert expected in document
    with (out / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["metric"] for line in lines} == {"accuracy", "loss"}
    assert "convergence" not in {line["attack"] for line in lines}
    assert r"stein\_mean\_only" in (out / "table.tex").read_text()
    assert "% 2 of 7 checks of the evaluation FAILED" in (out / "table.tex").read_text()


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_the_order_of_the_folders_does_not_matter(folders, reported, tmp_path):
    assert _report(folders, tmp_path / "report") == 0
    for name in ("table.csv", "report.md"):
        assert (tmp_path / "report" / name).read_text() == (reported[0] / name).read_text()


@pytest.mark.usefixtures("figures_are_not_rendered")
def test_a_missing_reference_is_said_aloud_and_experiments_stay_apart(folders, tmp_path, capsys):
    stein = _folder(tmp_path / "s", "stein", 0)
    more = {"config": "cityscapes", "made": _segmented, "statistics": ("running",)}
    maps = _folder(tmp_path / "m", "batch", 0, **more)
    out = tmp_path / "out"
    assert _report([stein, maps], out) == 0
    message = "MISSING: batch norm with test-batch statistics was not measured;"
    assert message in capsys.readouterr().out.replace("\n", " ")
    document = (out / "report.md").read_text()
    maps, digits = document.split("## digits (demo)")
    assert f"**{message}" in digits
    assert "MISSING" not in maps
    assert "### mIoU" in maps
    assert "### Pixel accuracy" in maps
    files = {path.name for path in out.iterdir()}
    assert {"digits-table.csv", "digits-table.tex", "cityscapes-table.csv"} <= files
    assert "cityscapes-miou-linf.png" in files
    assert (out / "cityscapes-pictures" / "batch-running-sea-8-255-classes.png").exists()
    assert "MISSING" in (out / "digits-table.tex").read_text()
    assert "MISSING" not in (out / "cityscapes-table.tex").read_text()


def test_mistakes_are_one_line_and_status_two(folders, tmp_path, capsys):
    out = tmp_path / "out"

    def refused(arguments, *parts):
        assert main(["report", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for part in parts:
            assert part in error
        assert not out.exists()

    refused([tmp_path, "--out", out], "no results.json", str(tmp_path))
    other = _folder(tmp_path / "other", "stein", 5, config="digits")
    settings = json.loads((other / "config.json").read_text())
    settings["config"]["train"]["epochs"] = 1
    write_json(other / "config.json", settings)
    refused([folders[0], other, "--out", out], "train.epochs is 12 and 1")
    before = (folders[0] / "results.json").read_bytes()
    refused([folders[0], "--out", folders[0]], "work folder")
    assert (folders[0] / "results.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    refused([folders[0], "--out", tmp_path / "file"], "cannot use")
