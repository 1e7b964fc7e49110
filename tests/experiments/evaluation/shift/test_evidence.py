"""Grouped batches are separate batches; what is kept gives the task's own score; N/(N+n)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.configs.schema import EvaluationConfig
from experiments.evaluation.calibration import Calibrating
from experiments.evaluation.shift import evidence
from experiments.evaluation.shift.rules import RULES, logits_fn, mixed_name
from experiments.tasks import Binary, Classification, Segmentation
from steinnorm.attacks import NotFiniteError
from steinnorm.nnx import SteinBatchNorm, convert, revert
from tests.experiments.evaluation.test_measure import Tiny, _examples


class Alone(nnx.Module):
    """A network that is one norm layer."""

    def __init__(self, channels):
        self.norm = SteinBatchNorm(channels, shrinkage="none", rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(x)


def _trained(model, x):
    nnx.jit(lambda model, x: model(x))(model, jnp.asarray(x))
    return model


def _network(model):
    return Calibrating(model, _examples(120), EvaluationConfig(batch_size=40))


@pytest.fixture(scope="module")
def sources():
    examples = _examples(24)
    return _network(_trained(Tiny(3), examples.inputs))


@pytest.mark.parametrize("rule", [*RULES, mixed_name(4)])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_grouped_batches_are_separate_batches(sources, rule, batch_size):
    x = jnp.asarray(_examples(24).inputs)
    answers = jax.jit(logits_fn(sources, rule, batch_size))
    grouped = jax.vmap(answers)(x.reshape(-1, batch_size, *x.shape[1:])).reshape(24, 3)
    separate = [answers(x[i : i + batch_size]) for i in range(0, 24, batch_size)]
    np.testing.assert_allclose(grouped, np.concatenate(separate), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [2, 16])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_mixed_statistics_against_float64(n, batch_size):
    random = np.random.default_rng(n)
    before = random.normal(1.0, 2.0, (32, 5, 5, 3)).astype(np.float32)
    model = _trained(Alone(3), before)
    x = random.normal(3.0, 0.5, (batch_size, 5, 5, 3)).astype(np.float32)
    found = logits_fn(_network(model), mixed_name(n), batch_size)(jnp.asarray(x))
    share = batch_size / (batch_size + n)
    wide = x.astype(np.float64)
    mean = share * wide.mean((0, 1, 2)) + (1 - share) * np.float64(model.norm.mean[...])
    variance = share * wide.var((0, 1, 2)) + (1 - share) * np.float64(model.norm.var[...])
    np.testing.assert_allclose(
        found, (wide - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shrinkage", ["none", "stein", "jsnorm"])
def test_mixing_goes_from_batch_to_running(sources, shrinkage):
    """With the rule that a network was trained with, as its running statistics are of it."""
    x = jnp.asarray(_examples(8).inputs)
    sources = _network(convert(revert(sources.model("batch")), shrinkage))
    for n, rule in ((0, "batch"), (10**9, "running")):
        np.testing.assert_allclose(
            logits_fn(sources, mixed_name(n), 8)(x), logits_fn(sources, rule, 8)(x), atol=1e-5
        )


@pytest.mark.parametrize(("name", "most"), [("_GROUPED_VALUES", 1), ("_GROUPED_EXAMPLES", 10)])
def test_groups_do_not_change_the_answers(sources, monkeypatch, name, most):
    examples = _examples(24)
    answers = logits_fn(sources, "batch", 2)
    expected = evidence.measure(answers, examples.inputs, examples.targets, 2, Classification(3))
    monkeypatch.setattr(evidence, name, most)
    found = evidence.measure(answers, examples.inputs, examples.targets, 2, Classification(3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("task", [Classification(3), Binary(), Segmentation(3)], ids=type)
def test_what_is_kept_gives_the_score_of_the_task(task):
    maps = isinstance(task, Segmentation)
    examples = _examples(16, 2 if isinstance(task, Binary) else 3, maps=maps)
    model = _trained(Tiny(task.outputs, per_pixel=maps), examples.inputs)
    answers = logits_fn(_network(model), "running", 8)
    kept = evidence.measure(answers, examples.inputs, examples.targets, 8, task)
    outputs = answers(jnp.asarray(examples.inputs))
    summary = {k: np.asarray(v) for k, v in task.summary(outputs, examples.targets).items()}
    random = np.random.default_rng(0)
    for chosen in (np.arange(16), random.integers(0, 16, 16)):
        weights = np.bincount(chosen, minlength=16)[None].astype(float)
        part = {name: values[chosen] for name, values in summary.items()}
        expected = task.scores(part)[evidence.score_name(task)]
        assert evidence.scores(kept, weights)[0] == pytest.approx(expected, abs=1e-12)


def test_examples_must_fill_their_batches(sources):
    examples = _examples(22)
    with pytest.raises(ValueError, match="22 examples do not fill batches of 8"):
        evidence.measure(
            logits_fn(sources, "batch", 8), examples.inputs, examples.targets, 8, Classification(3)
        )


def test_answers_that_are_not_finite_end_the_measurement():
    inputs, targets = np.full((12, 2), 0.5, np.float32), np.zeros(12, np.int32)
    inputs[7] = -1.0

    def root(x):
        return jnp.sqrt(x)

    root = jax.tree_util.Partial(root)
    evidence.measure(root, inputs[:6], targets[:6], 2, Classification(2))
    with pytest.raises(NotFiniteError, match="NaN or infinity for some of the examples 0 to 11"):
        evidence.measure(root, inputs, targets, 2, Classification(2))
