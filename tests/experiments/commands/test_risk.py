"""The risk measurement where the answer is known, and the command in small."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from experiments.__main__ import main
from experiments.commands import risk
from experiments.commands.console import Display
from experiments.models import recording
from experiments.models.norms import norm_factory
from experiments.models.resnet import ResNet
from steinnorm.shrinkage import RunningStatistics

CHANNELS = 16
BATCH = 32
BATCHES = 300


def _layer(means, seed=0, name="layer"):
    """Independent normal values of unit variance: 4,000 images of one pixel."""
    values = np.random.default_rng(seed).normal(size=(4000, 1, 1, CHANNELS)) + means
    running = RunningStatistics(jnp.full(CHANNELS, 0.5), jnp.full(CHANNELS, 2.0))
    return recording.NormLayer(name, values.astype(np.float32), running)


def _all_layers(rows):
    return {(r.target, r.estimator): r for r in rows if r.layer == risk.ALL_LAYERS}


def _measure(*layers):
    return risk.measure(layers, BATCH, BATCHES, experiment="synthetic", seed=0)


def _james_stein_ratio(distance):
    """1 - (C-2)^2 / C E[1 / chi^2_C(distance)], the risk of James & Stein's rule (1961)."""
    terms, weight = 0.0, math.exp(-distance / 2)
    for k in range(200):
        terms += weight / (CHANNELS - 2 + 2 * k)
        weight *= distance / 2 / (k + 1)
    return 1 - (CHANNELS - 2) ** 2 / CHANNELS * terms


ALTERNATING = np.where(np.arange(CHANNELS) % 2, 1.0, -1.0)


@pytest.mark.parametrize("size", [0.2, 0.5])
def test_james_stein_has_its_known_risk(size):
    found = _all_layers(_measure(_layer(size * ALTERNATING)))["mean", "james_stein"]
    known = _james_stein_ratio(CHANNELS * size**2 * BATCH)
    # The positive part helps a little more, the estimated noise costs a little.
    assert found.ratio == pytest.approx(known, rel=0.1)
    assert found.ci_low < found.ratio < found.ci_high < 1


def test_stein_mean_loses_by_its_bias_where_channel_means_differ():
    found = _all_layers(_measure(_layer(ALTERNATING)))
    # The means average to zero, so all of them is taken for noise: the factor is near
    # 3 / (C + 1), and the bias (1 - factor) * mean outweighs what it saves of the noise 1 / N.
    factor = 3 / (CHANNELS + 1)
    known = (1 - factor) ** 2 * BATCH + factor**2
    assert found["mean", "stein"].ratio == pytest.approx(known, rel=0.1)
    assert found["mean", "stein"].ci_low > 1


def test_the_sample_statistics_are_one_and_running_ones_ignore_the_batch():
    layer = _layer(ALTERNATING)
    rows = _measure(layer)
    for row in rows:
        if row.estimator == risk.REFERENCE:
            assert row.ratio == row.lowest == row.highest == row.ci_low == row.ci_high == 1
    running = [row for row in rows if row.estimator == "running" and row.risk is not None]
    truth = layer.inputs.astype(np.float64)[:, 0, 0]
    known = {
        "mean": np.sum((0.5 - truth.mean(0)) ** 2),
        "variance": np.sum((2 - truth.var(0)) ** 2),
    }
    assert {row.target: row.risk for row in running} == pytest.approx(known)


def test_errors_are_those_of_each_batch_by_hand():
    layer = _layer(ALTERNATING)
    indices = risk.draw(4000, 8, 5, seed=3)
    values = layer.inputs.astype(np.float64)[:, 0, 0]
    batches = values[indices]
    found = risk.squared_errors(layer, indices)
    np.testing.assert_allclose(
        found["mean", "none"], ((batches.mean(1) - values.mean(0)) ** 2).sum(-1), rtol=1e-4
    )
    np.testing.assert_allclose(
        found["variance", "none"], ((batches.var(1) - values.var(0)) ** 2).sum(-1), rtol=1e-4
    )


def test_batches_are_distinct_images_and_seeded():
    first = risk.draw(50, 40, 6, seed=1)
    assert all(len(set(batch)) == 40 for batch in first.tolist())
    np.testing.assert_array_equal(first, risk.draw(50, 40, 6, seed=1))
    assert (first != risk.draw(50, 40, 6, seed=2)).any()
    assert (first[0] != first[1]).any()


def test_layers_are_summarised_by_geometric_mean_and_range():
    rows = _measure(_layer(0.2 * ALTERNATING, name="a"), _layer(ALTERNATING, seed=1, name="b"))
    ratios = {r.layer: r.ratio for r in rows if (r.target, r.estimator) == ("mean", "stein")}
    summary = _all_layers(rows)["mean", "stein"]
    assert ratios["a"] < ratios["b"]
    assert (summary.lowest, summary.highest) == (ratios["a"], ratios["b"])
    assert summary.ratio == pytest.approx(math.sqrt(ratios["a"] * ratios["b"]))
    assert summary.risk is None


def test_every_norm_layer_is_recorded_and_the_network_is_left_alone():
    model = ResNet(
        norm_factory("batch"),
        channels_in=1,
        outputs=3,
        width=4,
        stage_sizes=(1, 1),
        rngs=nnx.Rngs(jax.random.key(0, impl="rbg")),  # quick to compile
    )
    images = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
    layers = {layer.name: layer for layer in recording.norm_layers(model, images)}
    assert set(layers) == {
        "stem_norm",
        "blocks/0/norm1",
        "blocks/0/norm2",
        "blocks/1/norm1",
        "blocks/1/norm2",
        "blocks/1/shortcut_norm",
    }
    np.testing.assert_allclose(
        layers["stem_norm"].inputs, model.stem(jnp.asarray(images)), rtol=1e-5, atol=1e-6
    )
    assert layers["blocks/1/norm2"].inputs.shape == (6, 4, 4, 8)
    assert not model.stem_norm.use_running_average
    assert type(model.stem_norm).__name__ == "SteinBatchNorm"


def test_a_smoke_run_writes_rows_and_tables(tmp_path):
    out = tmp_path / "risk"
    text = io.StringIO()
    rows = risk.run(out, smoke=True, display=Display(Console(file=text, width=120)))
    lines = text.getvalue().splitlines()
    assert lines[-1].endswith(str(out))
    assert max(len(line) for line in lines[:-1]) <= 120

    written = json.loads((out / "risk.json").read_text())
    assert len(written) == len(rows)
    assert {row["batch_size"] for row in written} == set(risk.BATCH_SIZES)
    for row in written:
        assert row["lowest"] <= row["ratio"] * (1 + 1e-9)
        assert row["ratio"] <= row["highest"] * (1 + 1e-9)
        assert row["n"] == 128
    markdown = (out / "risk.md").read_text()
    command = f"python -m experiments risk --out {out} --smoke --seed 0"
    assert 0 < markdown.index(command) < markdown.index("| estimator |")
    assert markdown.count("| toward_running | variance |") == 2


def test_a_negative_seed_is_one_line_and_status_two(tmp_path, capsys):
    assert main(["risk", "--out", str(tmp_path / "new"), "--seed", "-1"]) == 2
    assert capsys.readouterr().err == "error: seed must be at least 0; got -1\n"
    assert not (tmp_path / "new").exists()
