"""What the one call writes, and what of it another call takes for its own."""

import ast
import csv
import json
import pathlib
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steinnorm
from steinnorm.attacks import AttackSettings, evaluate_robustness, fgsm
from steinnorm.attacks.code_digest import code_digest
from steinnorm.attacks.per_example import SHOWN, PerExample
from steinnorm.attacks.robustness import call, identity
from steinnorm.attacks.robustness.names import file_stem
from tests.attacks import one_call

ROOT = pathlib.Path(steinnorm.__file__).parents[1]
RNG = np.random.default_rng(6)
COUNT, CLASSES = 25, 3
WEIGHTS = jnp.asarray(RNG.normal(size=(48, CLASSES)), jnp.float32)
X = RNG.uniform(size=(COUNT, 4, 4, 3)).astype(np.float32)
Y = RNG.integers(0, CLASSES, COUNT).astype(np.int32)
EPSILON = 0.05


def _linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


MODEL = jax.tree_util.Partial(_linear, WEIGHTS)


class Counted:
    """FGSM that notes the batches it was called on."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def attack(self):
        def noted(logits_fn, x, y, *, threat, key):
            if len(self.seen) == self.stop_at:
                raise KeyboardInterrupt
            self.seen.append(np.asarray(x)[0, 0, 0, 0])
            return fgsm(logits_fn, x, y, threat=threat, key=key)

        return noted


def measure(out, model=MODEL, x=X, y=Y, *, counted=None, **changes):
    """One call with FGSM under the catalogue's name, of which every call is counted."""
    counted = counted or Counted()
    original = AttackSettings.call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AttackSettings,
            "call",
            lambda self, **k: (
                (counted.attack(), {}) if self.kind == "fgsm" else original(self, **k)
            ),
        )
        settings = {"epsilons": EPSILON, "batch_size": 10, **changes}
        found = one_call.measure(out, model, x, y, **settings)
    return found, len(counted.seen)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("robustness") / "new"
    found, calls = measure(out, checks=one_call.SMOKE, figures=True, class_names=("a", "b", "c"))
    assert calls == 3
    return out, found


def test_the_files_say_what_the_rows_say(written):
    out, found = written
    rows = json.loads((out / "results.json").read_text())
    assert [(r["attack"], r["epsilon"], r["value"]) for r in rows] == [
        (r.attack, r.epsilon, r.value) for r in found.rows
    ]
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["ci_low"]) for line in table] == [row.ci_low for row in found.rows]
    text = (out / "table.md").read_text()
    assert f"| fgsm | 0.05 | {100 * found.row('fgsm', EPSILON).value:.1f} % |" in text
    assert "| zero_gradients | " in text
    checks = json.loads((out / "checks.json").read_text())
    assert [f["verdict"] for f in checks["findings"]] == [f.verdict for f in found.checks]
    assert json.loads((out / "settings.json").read_text())["complete"]
    for png in ("accuracy.png", "pictures/fgsm-0.05.png"):
        assert (out / png).read_bytes().startswith(b"\x89PNG")
    litter = [p.name for p in out.rglob("*") if p.name.startswith(".")]
    assert not litter


def test_per_example_files(written):
    out, found = written
    results = PerExample.read(out / "per_example" / "fgsm-0.05.npz")
    assert results.summary["right"].mean() == found.row("fgsm", EPSILON).value
    assert len(results) == COUNT
    np.testing.assert_array_equal(results.batch, np.repeat([0, 1, 2], [10, 10, 5]))
    np.testing.assert_allclose(results.distance, EPSILON, atol=1e-6)
    assert results.shown["x"].shape == (SHOWN, 4, 4, 3)
    with np.load(out / "per_example" / "none-0.npz") as file:
        np.testing.assert_array_equal(
            file["summary/prediction"], np.argmax(X.reshape(COUNT, -1) @ np.asarray(WEIGHTS), 1)
        )


def test_a_second_call_measures_nothing(written):
    out, found = written
    before = {p: p.stat().st_mtime_ns for p in (out / "per_example").iterdir()}
    checks = (out / "checks.json").stat().st_mtime_ns
    again, calls = measure(out, checks=one_call.SMOKE)
    assert calls == 0
    assert again.rows == found.rows
    assert again.checks == found.checks
    assert {p: p.stat().st_mtime_ns for p in (out / "per_example").iterdir()} == before
    assert (out / "checks.json").stat().st_mtime_ns == checks


def test_an_interrupt_leaves_tables_and_the_next_call_goes_on(tmp_path):
    whole, _ = measure(None)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, counted=Counted(stop_at=2))
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(r["attack"], r["n"]) for r in rows] == [("none", 25), ("fgsm", 20), ("worst", 20)]
    assert not json.loads((tmp_path / "settings.json").read_text())["complete"]
    # An iterator shows its batches once, and that is enough to go on.
    batches = iter([(X[i : i + 10], Y[i : i + 10]) for i in (0, 10, 20)])
    resumed, calls = measure(tmp_path, x=batches, y=None)
    assert (resumed.rows, calls) == (whole.rows, 1)
    # A file that was cut short is measured again.
    path = tmp_path / "per_example" / "fgsm-0.05.npz"
    path.write_bytes(path.read_bytes()[:-9])
    resumed, calls = measure(tmp_path)
    assert (resumed.rows, calls) == (whole.rows, 3)
    # So is what another radius asks for, and only that.
    assert measure(tmp_path, epsilons=(EPSILON, 0.1))[1] == 3


@pytest.fixture
def measured(tmp_path):
    assert measure(tmp_path)[1] == 3
    return tmp_path


OTHER_SETTINGS = [
    {"seed": 1},
    {"norm": "l2"},
    {"bounds": (-1.0, 1.0)},
    {"batch_size": 12},
    {"batch_dependent": True},
    {"attacks": AttackSettings("fgsm", "fgsm", loss="margin")},
]


@pytest.mark.filterwarnings("ignore:the results in this folder")  # of which one changes the batch
@pytest.mark.parametrize("changes", OTHER_SETTINGS, ids=lambda changes: next(iter(changes)))
def test_other_settings_are_measured_anew(measured, changes):
    found, calls = measure(measured, **changes)
    assert calls == 3
    assert found.rows == measure(None, **changes)[0].rows


def masked(x):
    """The logits of the model, and no gradient."""
    return _linear(WEIGHTS, jax.lax.stop_gradient(x))


def plain(x):
    return _linear(WEIGHTS, x)


def test_other_weights_and_other_gradients_are_another_model(measured):
    closer = jax.tree_util.Partial(_linear, WEIGHTS * 1.0000001)  # one step of rounding away
    for model in (closer, plain, masked):
        with pytest.warns(UserWarning, match="of another model or of other data"):
            found, calls = measure(measured, model)
        assert calls == 3
    assert found.row("fgsm", EPSILON).zero_gradients == COUNT
    assert measure(measured, masked)[1] == 0
    # The same function under another name is the same model: it answers the same.
    assert measure(measured, lambda x: masked(x))[1] == 0  # noqa: PLW0108


def test_other_data_are_measured_anew(measured):
    later = X.copy()
    later[-1] += np.float32(0.001) * (later[-1] < 0.5)
    found, calls = measure(measured, x=later)  # the last batch differs: all begins anew
    assert calls == 3
    assert found.rows == measure(None, x=later)[0].rows
    assert measure(measured, x=X[:20], y=Y[:20])[0].row("fgsm", EPSILON).n == 20
    # What lies there of the data at hand is used, whatever lies beside it.
    assert measure(measured, epsilons=(EPSILON, 0.1))[1] == 1 + 3
    with pytest.raises(ValueError, match="name another folder, or make x repeatable"):
        measure(measured, x=iter([(X[:10], Y[:10]), (X[10:20], 2 - Y[10:20])]), y=None)


def test_other_code_is_measured_anew_and_docstrings_do_not_count(measured, monkeypatch):
    monkeypatch.setattr(identity, "code_digest", lambda folder: "other")
    assert measure(measured)[1] == 3


def test_the_digest_of_code(tmp_path):
    def digest(text):
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "package"
        folder.mkdir(parents=True)
        (folder / "module.py").write_text(text)
        return code_digest(folder)

    first = digest('"""Text."""\n\ndef f(x):\n    """Says."""\n    return x + 1\n')
    assert digest("# A comment.\ndef f(x):\n    'Says more.'\n    return x + 1\n") == first
    assert digest("def f(x):\n    return x + 2\n") != first
    assert digest('def f(x="a"):\n    return x + 1\n') != first
    ast.parse((ROOT / "steinnorm" / "attacks" / "code_digest.py").read_text())


def doubled(x):
    return 2 * one_call.linear(x)


def _files(out):
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_files_of_another_model_do_not_stay(tmp_path):
    one_call.measure(tmp_path, attacks=("fgsm", "pgd"), checks=one_call.SMOKE, figures=True)
    foreign = ("notes.txt", "pictures/mine.png", "per_example/mine.npz")
    for name in foreign:
        (tmp_path / name).write_bytes(b"of somebody else")
    before = _files(tmp_path)
    assert {"checks.json", "pictures/pgd-0.05.png", "per_example/pgd-0.05.npz"} < before
    # Another radius of the same model leaves what is there.
    one_call.measure(tmp_path, epsilons=0.1, figures=True)
    assert {"pictures/pgd-0.05.png", "per_example/pgd-0.05.npz", "checks.json"} < _files(tmp_path)
    with pytest.warns(UserWarning, match="of another model"):
        one_call.measure(tmp_path, doubled, figures=True)
    after = _files(tmp_path)
    assert after == {
        *foreign,
        *("accuracy.png", "results.json", "settings.json", "table.csv", "table.md"),
        *("per_example/model.npz", "per_example/none-0.npz", "per_example/fgsm-0.05.npz"),
        "pictures/fgsm-0.05.png",
    }
    # Nor do those of other data whose first batch is the same.
    one_call.measure(tmp_path, doubled, attacks="pgd", checks=one_call.SMOKE, figures=True)
    later = one_call.X.copy()
    later[-1] = later[-2]
    one_call.measure(tmp_path, doubled, later, attacks="pgd", figures=True)
    assert {n for n in _files(tmp_path) if "fgsm" in n} == set()


def _damages(path):
    whole = path.read_bytes()
    yield whole[: len(whole) // 2]
    yield b""
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        yield bytes(flipped)


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_damaged_files_are_measured_anew(tmp_path):
    found = one_call.measure(tmp_path)
    model, cell = (tmp_path / "per_example" / n for n in ("model.npz", "fgsm-0.05.npz"))
    with np.load(model) as file:
        kept = {n: file[n] for n in file.files}
    fingerprint = identity.Fingerprint(str(kept["program"]), kept["logits"], kept["gradient"])
    whole = model.read_bytes()
    for damage in _damages(model):
        model.write_bytes(damage)
        name, _ = identity.recognise_model(fingerprint, model)
        assert name == fingerprint.digest()
        model.write_bytes(whole)
    for damage in _damages(cell):
        cell.write_bytes(damage)
        PerExample.read(cell)  # whatever it is, no error
    for path in (model, cell):
        np.save(path.with_suffix(".npy"), np.ones(3))
        path.with_suffix(".npy").rename(path)
    assert one_call.measure(tmp_path).rows == found.rows


def test_names_that_differ_in_replaced_characters_alone(tmp_path):
    names = ("a b", "a_b", "a/b")
    assert len({file_stem(name, 0.1) for name in names}) == 3
    assert file_stem("pgd-margin", 8 / 255) == "pgd-margin-0.031372549"
    attacks = [AttackSettings(name, "pgd", 1 + place) for place, name in enumerate(names)]
    one_call.measure(tmp_path, attacks=attacks)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()}
    assert len(before) == 5
    one_call.measure(tmp_path, attacks=attacks)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()} == before


def test_memory_is_that_of_a_batch(tmp_path, monkeypatch):
    """More images take no more memory on the device, and on the host a few numbers for each."""
    monkeypatch.setattr(call, "write_figures", lambda *_: None)  # matplotlib has caches of its own
    most, peaks = [], []

    def watched(logits_fn, x, y, *, threat, key):
        most.append(sum(array.nbytes for array in jax.live_arrays()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        return fgsm(logits_fn, x, y, threat=threat, key=key)

    def batches(count):
        for _ in range(count):
            yield RNG.uniform(size=(100, 16, 16, 3)).astype(np.float32), np.resize(Y, 100)

    model = jax.tree_util.Partial(_linear, jnp.ones((768, CLASSES), jnp.float32))
    device, host = [], []
    for count in (5, 5, 35):
        most.clear()
        if device:  # the first compiles
            tracemalloc.start()
        evaluate_robustness(
            model,
            batches(count),
            epsilons=(0.01, 0.02),
            attacks=watched,
            out=tmp_path / str(len(host)),
            checks=False,
            progress=False,
        )
        host.append(peaks[-1])
        tracemalloc.stop()
        device.append(max(most))
        assert len(most) == 2 * count
    image = 16 * 16 * 3 * 4
    assert device[2] <= device[1] + image
    assert (host[2] - host[1]) / (30 * 100) < image / 10
