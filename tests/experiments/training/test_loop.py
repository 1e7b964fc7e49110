"""The training loop on models small enough to know the answer."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.configs.schema import AdversaryConfig, TrainConfig
from experiments.data import devices
from experiments.data.examples import Dataset, Examples
from experiments.errors import ConfigError
from experiments.evaluation.measure import clean_scores
from experiments.models.norms import norm_factory
from experiments.tasks import Classification
from experiments.training import adversarial
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import Loop, Observer
from experiments.training.step import CompiledStep, learning_rate

CONFIG = TrainConfig(epochs=4, batch_size=16, learning_rate=0.05, weight_decay=0.0)


class _Tiny(nnx.Module):
    """A norm and a linear layer."""

    def __init__(self, norm="stein"):
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
        self.norm = norm_factory(norm)(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.mean(self.norm(x), axis=(1, 2)))


class _Notes(Observer):
    def __init__(self):
        self.steps, self.rows, self.scores, self.starts = [], [], [], []

    def resumed(self, step, total):
        self.starts.append(step)

    def stepped(self, step, total, loss):
        self.steps.append((step, total))

    def logged(self, row):
        self.rows.append(row)

    def validated(self, step, scores):
        self.scores.append((step, scores["accuracy"]))


def _problem(count, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count).astype(np.int32)
    images = generator.normal(size=(count, 3, 3, 4)).astype(np.float32)
    images[..., 0] += 4 * labels[:, None, None]
    return Examples(images, labels)


@pytest.fixture(scope="module")
def problem():
    train, test = _problem(70), _problem(30, seed=1)
    return Dataset(train, train.take(np.arange(0)), test, classes=2)


def _train(problem, config=CONFIG, norm="stein", seed=0, **changes):
    notes = _Notes()
    source = "none" if norm == "group" else "running"
    task, part = Classification(2), problem.validation

    def validate(model):
        return clean_scores(model, task, part, source, config.batch_size)

    changes = {"observer": notes, "validate": validate if len(part) else None, **changes}
    loop = Loop(task=task, config=config, seed=seed, statistics=source, **changes)
    return loop.run(_Tiny(norm), problem.train), notes


def _weights(trained):
    return np.asarray(trained.model.head.kernel[...])


def test_it_learns_reports_and_leaves_the_given_model_alone(problem):
    model, notes = _Tiny(), _Notes()
    before = jax.tree.map(np.array, nnx.state(model))
    loop = Loop(task=Classification(2), config=CONFIG, seed=0, observer=notes)
    trained = loop.run(model, problem.train)
    assert notes.steps == [(step, 16) for step in range(1, 17)]
    assert [row.step for row in notes.rows] == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert notes.rows[-1].epoch == 4
    assert notes.rows[-1].loss < 0.6 * notes.rows[0].loss
    factors = notes.rows[-1].factors["norm"]
    assert 0 <= factors["mean_factor"] < 1
    assert factors["variance_factor"] > 0
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(model)))
    # running statistics were recorded in training
    assert np.abs(trained.model.norm.mean[...]).max() > 0.1
    assert not trained.stopped_early
    assert trained.progress.step == 16


def test_batch_norm_has_factor_one_and_group_norm_none(problem):
    short = dataclasses.replace(CONFIG, epochs=1)
    assert _train(problem, short, "batch")[1].rows[-1].factors["norm"] == {
        "mean_factor": 1,
        "variance_factor": 1,
    }
    assert _train(problem, short, "group")[1].rows[-1].factors == {}


def test_the_seed_decides_the_order_and_nothing_else(problem):
    same = [_weights(_train(problem, seed=0)[0]) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], _weights(_train(problem, seed=1)[0]))


def test_weight_decay_reaches_weights_and_norms_only_where_asked(problem):
    decay = dataclasses.replace(CONFIG, weight_decay=3.0)
    plain = _train(problem)[0]
    decayed = _train(problem, decay)[0]
    assert np.linalg.norm(_weights(decayed)) < 0.5 * np.linalg.norm(_weights(plain))
    assert np.all(np.asarray(decayed.model.norm.scale[...]) > 0.8)
    everything = _train(problem, dataclasses.replace(decay, decay_all=True))[0]
    assert np.all(np.asarray(everything.model.norm.scale[...]) < 0.8)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(
    problem, tmp_path
):
    bad = dataclasses.replace(CONFIG, learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(FloatingPointError, match=r"at step \d+ of 16 .*no checkpoint to go back"):
        _train(problem, bad)
    broken = problem.train.inputs.copy()
    broken[:] = np.inf
    with pytest.raises(FloatingPointError, match="at step 1 of 16"):
        _train(dataclasses.replace(problem, train=Examples(broken, problem.train.targets)))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    _train(problem, dataclasses.replace(CONFIG, epochs=1), checkpoints=checkpoints)
    with pytest.raises(FloatingPointError, match="last good checkpoint is that of step 4"):
        # The same folder, now with inputs that break: step 5 is the first that is trained.
        _train(
            dataclasses.replace(problem, train=Examples(broken, problem.train.targets)),
            dataclasses.replace(CONFIG, epochs=2),
            checkpoints=checkpoints,
        )
    checkpoints.close()


def test_a_loss_that_is_not_finite_is_told_though_the_checkpoint_before_failed(
    problem, tmp_path, monkeypatch
):
    """Which is noticed as the last good one is looked for."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    take, steps = CompiledStep.take, []

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    def second_fails(self, *arguments):
        arrays, report = take(self, *arguments)
        steps.append(report)
        return arrays, report._replace(loss=jnp.nan) if len(steps) == 2 else report

    monkeypatch.setattr(checkpoints._manager, "save", full)
    monkeypatch.setattr(CompiledStep, "take", second_fails)
    message = r"loss is nan at step 2 .*; besides, cannot write the checkpoint of step 1 .*No space"
    with pytest.raises(FloatingPointError, match=message):
        _train(problem, checkpoints=checkpoints, checkpoint_every=1)
    checkpoints.close()


def test_less_than_a_batch_is_an_error(problem):
    few = dataclasses.replace(problem, train=problem.train.take(np.arange(10)))
    with pytest.raises(ConfigError, match="10 training examples do not fill a single batch of 16"):
        _train(few)


def test_three_of_four_devices_train_what_one_trains(problem, monkeypatch):
    config = dataclasses.replace(CONFIG, batch_size=18, epochs=1)
    assert devices.mesh(18).size == 3
    several = _weights(_train(problem, config)[0])
    only = devices.own_mesh(1)
    monkeypatch.setattr(devices, "mesh", lambda batch_size: only)
    np.testing.assert_allclose(_weights(_train(problem, config)[0]), several, rtol=1e-5, atol=1e-6)


def test_validation_chooses_the_best_step_and_patience_stops(problem):
    validated = dataclasses.replace(problem, validation=problem.test)
    trained, notes = _train(validated)
    assert [step for step, _ in notes.scores] == [4, 8, 12, 16]
    best = max(score for _, score in notes.scores)
    assert trained.progress.best_score == best
    assert trained.progress.best_step == next(s for s, score in notes.scores if score == best)
    # With no learning nothing gets better after the first epoch, which counts as a gain.
    still = dataclasses.replace(CONFIG, epochs=9, learning_rate=0.0, patience=2)
    labels = 1 - problem.test.targets  # the scores of a fixed function of moving statistics
    against = dataclasses.replace(problem, validation=Examples(problem.test.inputs, labels))
    trained, notes = _train(against, still)
    assert trained.stopped_early
    assert len(notes.scores) == trained.progress.best_step // 4 + 2


def test_schedules():
    cosine = learning_rate(dataclasses.replace(CONFIG, warmup_epochs=1.0), per_epoch=4)
    np.testing.assert_allclose([cosine(0), cosine(4), cosine(16)], [0, 0.05, 0], atol=1e-7)
    constant = dataclasses.replace(CONFIG, schedule="constant", warmup_epochs=1.0)
    rate = learning_rate(constant, per_epoch=4)
    np.testing.assert_allclose([rate(0), rate(2), rate(4), rate(15)], [0, 0.025, 0.05, 0.05])
    flat = learning_rate(dataclasses.replace(constant, warmup_epochs=0.0), per_epoch=4)
    np.testing.assert_allclose([flat(0), flat(15)], 0.05)


def test_gradient_clipping_limits_the_first_step(problem):
    one = dataclasses.replace(CONFIG, epochs=1, schedule="constant", warmup_epochs=0.0)
    start = np.asarray(_Tiny().head.kernel[...])
    free = _weights(_train(problem, one)[0]) - start
    clipped = _weights(_train(problem, dataclasses.replace(one, clip_norm=1e-3))[0]) - start
    assert np.linalg.norm(clipped) < 0.01 * np.linalg.norm(free)


def test_adversarial_training_makes_the_model_more_robust(problem):
    # One feature tells the classes apart; the attack takes up to 40 % of the gap away.
    inputs = problem.train.inputs / 20 + 0.5
    scaled = dataclasses.replace(problem, train=Examples(inputs, problem.train.targets))
    adversary = AdversaryConfig(epsilon=0.05, steps=2)
    clean, clean_notes = _train(scaled)
    attacked, notes = _train(scaled, dataclasses.replace(CONFIG, adversary=adversary))
    assert notes.rows[-1].loss > 1.5 * clean_notes.rows[-1].loss  # the attack hurts

    # ... and the robust model leans less on the features that say nothing.
    def share(trained):
        kernel = np.abs(_weights(trained)[:, 1] - _weights(trained)[:, 0])
        return kernel[0] / kernel.sum()

    assert share(attacked) > share(clean)


def test_accelerators_attack_in_one_program_with_the_same_result(problem, monkeypatch):
    adversary = AdversaryConfig(epsilon=0.2, steps=3)
    config = dataclasses.replace(CONFIG, epochs=1, adversary=adversary)
    steps = _weights(_train(problem, config)[0])
    calls, ascend = [], adversarial._ascend
    monkeypatch.setattr(adversarial, "_platform", lambda array: "gpu")
    monkeypatch.setattr(adversarial, "_ascend", lambda *a: calls.append(a[0][2]) or ascend(*a))
    at_once = _weights(_train(problem, config)[0])
    assert calls == [3] * 4  # one call for each batch
    np.testing.assert_allclose(at_once, steps, rtol=1e-5, atol=1e-6)


def test_looking_for_an_attack_records_nothing(problem):
    # An attack that changes nothing leaves every weight and running average as it would be.
    inputs = problem.train.inputs / 20 + 0.5
    scaled = dataclasses.replace(problem, train=Examples(inputs, problem.train.targets))
    nothing = AdversaryConfig(epsilon=1e-12, steps=3, random_start=False)
    clean, _ = _train(scaled)
    attacked, _ = _train(scaled, dataclasses.replace(CONFIG, adversary=nothing))
    for found, expected in (
        (_weights(attacked), _weights(clean)),
        (attacked.model.norm.mean[...], clean.model.norm.mean[...]),
        (attacked.model.norm.var[...], clean.model.norm.var[...]),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", ["toward_running", "group"])
def test_adversary_exists_for_norms_of_every_kind(problem, norm):
    config = dataclasses.replace(
        CONFIG, epochs=1, adversary=AdversaryConfig(0.05, steps=1, norm="l2", random_start=False)
    )
    assert np.isfinite(_train(problem, config, norm)[1].rows[-1].loss)


def test_a_resumed_training_ends_bit_for_bit_as_an_uninterrupted_one(problem, tmp_path):
    config = dataclasses.replace(CONFIG, augment=True, shift=1)
    validated = dataclasses.replace(problem, validation=problem.test)

    class Stop(Observer):
        def stepped(self, step, total, loss):
            if step == 10:
                raise RuntimeError("stopped")

    whole, _ = _train(validated, config)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(RuntimeError, match="stopped"):
        _train(validated, config, checkpoints=checkpoints, checkpoint_every=3, observer=Stop())
    assert checkpoints.steps[-1] == 9
    resumed, notes = _train(validated, config, checkpoints=checkpoints)
    assert notes.starts == [9]
    assert notes.steps[0] == (10, 16)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.map(np.array, nnx.state(whole.model)),
        jax.tree.map(np.array, nnx.state(resumed.model)),
    )
    assert whole.progress == resumed.progress
    # Once more: finished, nothing is trained.
    again, notes = _train(validated, config, checkpoints=checkpoints)
    assert notes.steps == []
    np.testing.assert_array_equal(_weights(again), _weights(whole))
    checkpoints.close()


@pytest.fixture
def _interruptible():
    """Shells start background jobs with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_leaves_a_checkpoint_of_the_last_step(problem, tmp_path):
    class Interrupt(Observer):
        def stepped(self, step, total, loss):
            if step == 6:
                signal.raise_signal(signal.SIGINT)

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        _train(problem, checkpoints=checkpoints, observer=Interrupt())
    assert checkpoints.steps[-1] == 7  # reports come one step late
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole, resumed = _train(problem)[0], _train(problem, checkpoints=checkpoints)[0]
    np.testing.assert_array_equal(_weights(whole), _weights(resumed))
    checkpoints.close()
