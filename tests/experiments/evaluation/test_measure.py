"""The evaluation: every attack on every batch, resumed where it stopped, for every task."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.configs import attacks as catalogue
from experiments.configs.schema import AttackConfig
from experiments.data import devices
from experiments.data.examples import Examples
from experiments.errors import ConfigError
from experiments.evaluation import aggregate, attack_batch, compiled_programs, per_example
from experiments.evaluation import measure as measuring
from experiments.evaluation.compiled_programs import release_where_many
from experiments.evaluation.measure import measure
from experiments.evaluation.plan import Plan, Run, Watcher
from experiments.tasks import Binary, Classification, Segmentation
from steinnorm.attacks import LeftThreatError, NotFiniteError
from steinnorm.nnx import SteinBatchNorm

RUN = Run("tiny", "stein", 3, ("a", "b", "c"))
FGSM = AttackConfig("fgsm", "fgsm", (0.05, 0.2))
PGD = AttackConfig("pgd", "pgd", (0.05,), steps=3, random_start=True)
NOISE = AttackConfig("uniform", "uniform", (0.1,))


class Tiny(nnx.Module):
    """Dense, norm, dense: on the pixels of an image together, or one by one."""

    def __init__(self, outputs, *, per_pixel=False):
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
        self.per_pixel = per_pixel
        self.first = nnx.Linear(1 if per_pixel else 16, 8, rngs=rngs)
        self.norm = SteinBatchNorm(8, rngs=rngs)
        self.last = nnx.Linear(8, outputs, rngs=rngs)

    def __call__(self, x):
        x = x if self.per_pixel else x.reshape(x.shape[0], -1)
        return self.last(nnx.relu(self.norm(self.first(x))))


def _examples(count=22, classes=3, *, maps=False):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(count, 4, 4, 1)).astype(np.float32)
    if maps:
        y = rng.integers(0, classes, (count, 4, 4)).astype(np.uint8)
        y[:, 0, 0] = 255
        return Examples(x, y)
    return Examples(x, rng.integers(0, classes, count).astype(np.int32))


@pytest.fixture(scope="module")
def tiny():
    """A network whose running statistics are not the first ones."""
    model = Tiny(3)
    nnx.jit(lambda model, x: model(x))(model, jnp.asarray(_examples().inputs))
    return model


def _plan(**changes):
    return Plan(**{"statistics": "running", "batch_size": 8, "attacks": (FGSM, PGD), **changes})


def evaluate(model, task, *arguments, **settings):
    """The rows of what is measured."""
    return aggregate.rows_of_all(task, measure(model, task, *arguments, **settings))


def _values(rows):
    return {(r.attack, r.epsilon, r.metric): (r.value, r.n) for r in rows}


class Counted(Watcher):
    """Notes what it is told; stops the evaluation after so many batches."""

    def __init__(self, most=None):
        self.begun, self.batches, self.most = [], 0, most

    def begins(self, what):
        self.begun.append(what)

    def advanced(self):
        self.batches += 1
        if self.batches == self.most:
            raise KeyboardInterrupt


def test_rows_of_every_attack_and_the_worst(tiny):
    watcher = Counted()
    plan = _plan(attacks=(NOISE, FGSM, PGD))
    rows = evaluate(tiny, Classification(3), _examples(), plan, run=RUN, watcher=watcher)
    assert watcher.batches == plan.batches(22) == 5 * 3
    assert watcher.begun[0] == "running, clean 0"
    assert watcher.begun[-1] == "running, pgd 0.05"
    assert len(watcher.begun) == 5
    values = _values(rows)
    measured = [("clean", 0.0), ("uniform", 0.1), ("fgsm", 0.05), ("fgsm", 0.2), ("pgd", 0.05)]
    measured += [("worst", 0.05), ("worst", 0.2)]
    assert set(values) == {(*c, m) for c in measured for m in ("accuracy", "loss")}
    assert {n for _, n in values.values()} == {22}
    worst = values["worst", 0.05, "accuracy"][0]
    assert worst <= min(values[a, 0.05, "accuracy"][0] for a in ("fgsm", "pgd"))
    assert values["fgsm", 0.2, "accuracy"][0] < values["clean", 0.0, "accuracy"][0]
    assert all((r.seed, r.norm, r.threat_model) == (3, "stein", "") for r in rows)


def test_programs_are_let_go_of_between_attacks_and_change_nothing(tiny, tmp_path, monkeypatch):
    expected = evaluate(tiny, Classification(3), _examples(), _plan(), run=RUN)
    (tmp_path / "max_map_count").write_text("10\n")  # a system that allows hardly any
    monkeypatch.setattr(compiled_programs, "_MOST_MAPS", tmp_path / "max_map_count")
    let_go = []
    monkeypatch.setattr(
        measuring, "release_where_many", lambda: let_go.append(release_where_many())
    )
    assert evaluate(tiny, Classification(3), _examples(), _plan(), run=RUN) == expected
    assert let_go == [Path("/proc/self/maps").exists()] * 4  # clean, FGSM twice, PGD


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_what_was_stopped_goes_on_with_the_next_batch(statistics, tiny, tmp_path, monkeypatch):
    plan = _plan(statistics=statistics, attacks=(PGD,))
    whole = evaluate(tiny, Classification(3), _examples(), plan, run=RUN)
    calls = []
    original = attack_batch.AttackedModel.attack

    def counted(self, *arguments):
        calls.append(arguments[0].name)
        return original(self, *arguments)

    monkeypatch.setattr(attack_batch.AttackedModel, "attack", counted)

    settings = {"run": RUN, "workdir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny, Classification(3), _examples(), plan, watcher=Counted(5), **settings)
    assert calls == ["clean"] * 3 + ["pgd"] * 2
    resumed = evaluate(tiny, Classification(3), _examples(), plan, **settings)
    assert calls == ["clean"] * 3 + ["pgd"] * 3
    assert resumed == whole
    # More is asked for: only that is measured.
    more = dataclasses.replace(plan, attacks=(PGD, NOISE))
    evaluate(tiny, Classification(3), _examples(), more, **settings)
    assert calls[6:] == ["uniform"] * 3
    # A file that was cut short is measured again.
    (path,) = (tmp_path / "evaluation").glob("*pgd*")
    path.write_bytes(path.read_bytes()[:-9])
    assert evaluate(tiny, Classification(3), _examples(), plan, **settings) == whole
    assert calls[9:] == ["pgd"] * 3


def test_other_weights_settings_or_examples_are_measured_anew(tiny, tmp_path):
    def measured(model, examples, plan):
        rows = evaluate(model, Classification(3), examples, plan, run=RUN, workdir=tmp_path)
        fresh = evaluate(model, Classification(3), examples, plan, run=RUN)
        assert rows == fresh
        return _values(rows)

    plan = _plan(attacks=(FGSM,))
    first = measured(tiny, _examples(), plan)
    other = nnx.clone(tiny)
    other.last.bias[...] = other.last.bias[...] + jnp.array([1.0, 0.0, 0.0])
    assert measured(other, _examples(), plan) != first
    longer = dataclasses.replace(FGSM, loss="margin")
    measured(other, _examples(), dataclasses.replace(plan, attacks=(longer,)))
    measured(other, _examples(12), plan)


def test_per_example_results_say_what_rows_say(tiny, tmp_path):
    rows = evaluate(tiny, Classification(3), _examples(), _plan(), run=RUN, workdir=tmp_path)
    found = {(r.key.attack, r.key.epsilon): r for r in per_example.load_all(tmp_path)}
    for row in rows:
        if row.metric == "accuracy" and row.attack != "worst":
            results = found[row.attack, row.epsilon]
            assert results.summary["right"].mean() == row.value
            assert results.distance.max() == pytest.approx(row.max_norm)
            assert len(results.shown["x"]) == per_example.SHOWN
            change = np.abs(results.shown["x_adv"] - results.shown["x"]).max(axis=(1, 2, 3))
            np.testing.assert_allclose(change, results.distance[: per_example.SHOWN], atol=1e-6)
            shown_right = results.shown["prediction"] == results.shown["y"]
            np.testing.assert_array_equal(
                shown_right, results.summary["right"][: per_example.SHOWN]
            )
            assert results.class_names == ["a", "b", "c"]


@pytest.mark.parametrize("threat_model", ["independent", "companion"])
def test_one_victim_at_a_time(threat_model, tiny):
    plan = _plan(statistics="batch", threat_model=threat_model, victims=10, attacks=(PGD,))
    rows = evaluate(tiny, Classification(3), _examples(), plan, run=RUN)
    values = _values(rows)
    assert {n for _, n in values.values()} == {10}
    assert {r.threat_model for r in rows} == {threat_model}
    assert plan.batches(22) == 4
    joint = dataclasses.replace(plan, threat_model="joint", victims=None)
    clean = evaluate(tiny, Classification(3), _examples(), joint, run=RUN)
    # The clean rows are of the same examples in the same batches.
    right = _right_in_batches(tiny, _examples())
    assert values["clean", 0.0, "accuracy"][0] == pytest.approx(right[:10].mean())
    assert _values(clean)["clean", 0.0, "accuracy"][0] == pytest.approx(right.mean())
    assert values["pgd", 0.05, "loss"][0] > values["clean", 0.0, "loss"][0]
    for row in rows:
        assert row.max_norm <= 0.05 + 1e-6


def _right_in_batches(model, examples):
    """Which examples the model gets right in batches of eight with their own statistics."""
    view = nnx.view(model, use_running_average=True, test_statistics="batch")
    found = []
    for start in range(0, len(examples), 8):
        outputs = view(jnp.asarray(examples.inputs[start : start + 8]))
        found.append(np.argmax(outputs, axis=1) == examples.targets[start : start + 8])
    return np.concatenate(found)


def test_with_running_statistics_there_is_no_threat_model_to_choose(tiny):
    plan = _plan(threat_model="independent", victims=2, attacks=(PGD,))
    rows = evaluate(tiny, Classification(3), _examples(9), plan, run=RUN)
    assert {(row.threat_model, row.n) for row in rows} == {("", 9)}


@pytest.mark.parametrize(
    ("statistics", "count", "names"),
    [
        ("running", 6, ("fgsm", "apgd", "segpgd", "sea", "square")),
        # Whole batches: the rest of 22 examples, above, is a program of its own here.
        ("batch", 8, ("segpgd", "sea")),
    ],
)
def test_label_maps(statistics, count, names):
    model = Tiny(3, per_pixel=True)
    attacks = [
        dataclasses.replace(catalogue.by_name(name), epsilons=(0.1,), steps=2, queries=3)
        for name in names
    ]
    examples = _examples(count, maps=True)
    plan = _plan(statistics=statistics, batch_size=4, attacks=attacks)
    values = _values(evaluate(model, Segmentation(3), examples, plan, run=RUN))
    worst = values["worst", 0.1, "pixel_accuracy"][0]
    others = [values[a.name, 0.1, "pixel_accuracy"][0] for a in attacks]
    assert worst <= min(others) + 1e-9
    assert worst < values["clean", 0.0, "pixel_accuracy"][0]


def test_a_single_logit():
    attacks = [
        dataclasses.replace(catalogue.by_name(name), epsilons=(0.1,), steps=3, queries=5)
        for name in ("pgd", "autoattack")
    ]
    examples = _examples(10, classes=2)
    plan = _plan(attacks=attacks, batch_size=10)
    values = _values(evaluate(Tiny(1), Binary(), examples, plan, run=RUN))
    assert values["worst", 0.1, "auc"][0] <= values["clean", 0.0, "auc"][0]
    assert values["autoattack", 0.1, "accuracy"][0] <= values["pgd", 0.1, "accuracy"][0]


def test_attacks_that_do_not_fit_are_refused(tiny):
    for name, task in (("autoattack", Segmentation(3)), ("segpgd", Classification(3))):
        plan = _plan(attacks=[catalogue.by_name(name)])
        with pytest.raises(ConfigError, match=name):
            evaluate(tiny, task, _examples(), plan, run=RUN)


def test_an_evaluation_fails_loudly_where_an_attack_leaves_its_ball(tiny, monkeypatch):
    def too_far(logits_fn, x, y, *, threat, key, **_):
        wider = dataclasses.replace(threat, epsilon=2 * threat.epsilon)
        return attack_batch.attacks.fgsm(logits_fn, x, y, threat=wider, key=key)

    monkeypatch.setattr(attack_batch, "_call", lambda *_: (too_far, {}))
    with pytest.raises(LeftThreatError, match="fgsm left its ball or box"):
        evaluate(tiny, Classification(3), _examples(), _plan(attacks=(FGSM,)), run=RUN)


@pytest.mark.usefixtures("several_devices")
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_several_devices_measure_what_one_measures(statistics, tiny, monkeypatch):
    """The last batch of six examples lies on three devices, those before it on four."""
    assert jax.device_count() == 4  # see tests/conftest.py
    settings = {"statistics": statistics, "batch_size": 8, "attacks": (NOISE, FGSM)}
    used = []
    original = attack_batch.AttackedModel.attack

    def noted(self, attack, epsilon, batch, *rest):
        used.append(len(batch[0].sharding.device_set))
        return original(self, attack, epsilon, batch, *rest)

    monkeypatch.setattr(attack_batch.AttackedModel, "attack", noted)
    several = measure(tiny, Classification(3), _examples(), _plan(**settings), run=RUN)
    assert used == [4, 4, 4 if statistics == "running" else 3] * 4
    only = devices.own_mesh(1)
    monkeypatch.setattr(devices, "own_mesh", lambda count: only)
    one = measure(tiny, Classification(3), _examples(), _plan(**settings), run=RUN)
    assert used[12:] == [1] * 12
    for a, b in zip(one, several, strict=True):
        assert a.about == b.about
        assert a.zero_gradients == b.zero_gradients
        np.testing.assert_allclose(a.values, b.values, rtol=1e-5)
        np.testing.assert_array_equal(a.batch, b.batch)
        np.testing.assert_allclose(a.distance, b.distance, atol=1e-6)
        for mine, others in ((a.summary, b.summary), (a.shown, b.shown)):
            assert mine.keys() == others.keys()
            for name, value in mine.items():
                np.testing.assert_allclose(value, others[name], atol=1e-5, err_msg=name)


def _other_process(monkeypatch, change):
    """Makes another process say what this one does, changed."""

    def exchange(content):
        about, done = json.loads(content)
        return [content, json.dumps(change(about, done)).encode()]

    monkeypatch.setattr(devices, "exchange", exchange)


def test_processes_that_do_not_see_the_same_folder_are_refused(tiny, tmp_path, monkeypatch):
    _other_process(monkeypatch, lambda about, done: [about, done + 2])
    with pytest.raises(ConfigError, match=r"the processes find \[0, 2\] finished batches"):
        evaluate(tiny, Classification(3), _examples(), _plan(), run=RUN, workdir=tmp_path)


def test_processes_that_measure_something_else_are_refused(tiny, monkeypatch):
    """Their batches would be merged, as if they were of one model."""

    def change(about, done):
        identity = {**about["identity"], "code": "older", "data": "other"}
        return [{**about, "seed": 4, "identity": identity}, done]

    _other_process(monkeypatch, change)
    with pytest.raises(ConfigError, match=r"the processes differ in seed, data, code: all of them"):
        evaluate(tiny, Classification(3), _examples(), _plan(), run=RUN)


def test_the_catalogue():
    for name in catalogue.names():
        attack = catalogue.by_name(name)
        assert attack.epsilons
        if attack.has_ball:
            assert catalogue.by_name(f"{name}-l2").norm == "l2"
    with pytest.raises(ConfigError, match=r"unknown attack 'pdg'.*autoattack.*-l2"):
        catalogue.by_name("pdg")
    with pytest.raises(ConfigError, match="unknown attack"):
        catalogue.by_name("gaussian-l2")


class Root(Tiny):
    """NaN for dark images, which ``argmax`` would take for the first class."""

    def __call__(self, x):
        return super().__call__(x) + jnp.sqrt(jnp.mean(x, axis=(1, 2)) - 0.3)


@pytest.mark.parametrize("attack", [None, NOISE])
@pytest.mark.parametrize("task", [Classification(3), Binary()])
def test_answers_that_are_not_finite_end_the_evaluation(task, attack):
    examples = _examples()
    bright = dataclasses.replace(examples, inputs=0.35 + 0.1 * examples.inputs)
    model = Root(task.outputs)
    if attack is None:
        bright.inputs[9] = 0.1
        plan, where = _plan(attacks=()), "1 of the 8 examples of batch 1 (clean 0, running"
    else:
        noisy = dataclasses.replace(attack, epsilons=(2.0,))
        plan, where = _plan(attacks=(noisy,)), "of batch 0 (uniform 2, running"
    with pytest.raises(NotFiniteError) as raised:
        measure(model, task, bright, plan, run=RUN)
    assert where in str(raised.value)
    assert isinstance(raised.value, FloatingPointError)  # which the command line tells in a line
