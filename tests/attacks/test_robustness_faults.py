"""What went wrong with the one call once: each fault with the value that is right."""

import json
import sys
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import AttackSettings, catalogue, evaluate_robustness, fgsm, pgd
from steinnorm.attacks.checks import FAIL, NAMES, PASS, Checks, CheckSettings, Finding
from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness import Row, call, checks, identity
from steinnorm.attacks.robustness.names import file_stem
from steinnorm.attacks.robustness.tables import markdown_table, radius_text

SMOKE = CheckSettings(steps=2, restarts=2, square_queries=4, directions=1, difference_steps=(1e-3,))
RNG = np.random.default_rng(8)
WEIGHTS = jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32)
X = RNG.uniform(size=(12, 2, 2, 3)).astype(np.float32)
Y = np.asarray(jnp.argmax(X.reshape(12, -1) @ WEIGHTS, axis=1))
QUIET = {"checks": False, "progress": False}
PIXEL_WEIGHTS = WEIGHTS[:3]


def linear(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS


def doubled(x):
    return 2 * linear(x)


def per_pixel(x):
    return (x - 0.5) @ PIXEL_WEIGHTS


def measure(out=None, model=linear, x=X, y=Y, **changes):
    settings = {"epsilons": 0.05, "attacks": "fgsm", "batch_size": 6, **QUIET, **changes}
    return evaluate_robustness(model, x, y, out=out, **settings)


@pytest.fixture
def with_figures():
    """Most of the time would be theirs."""


@pytest.fixture(autouse=True)
def _no_figures(request, monkeypatch):
    if "with_figures" not in request.fixturenames:
        monkeypatch.setattr(call, "write_figures", lambda *_: None)


SOURCE = """
import jax
import jax.numpy as jnp
import helpers
from steinnorm.attacks import fgsm
STEPS, TABLE, OTHER = 3, {"a": [1, 2]}, 0

def moved(x):
    return x + helpers.inner.LENGTH * STEPS

jitted = jax.jit(moved)

def attack(logits_fn, x, y, *, threat, key):
    def nested(z):
        return [TABLE["a"] for _ in range(2)], jitted(z)
    return fgsm(logits_fn, jnp.clip(x, 0, 1), y, threat=threat), nested, attack
"""


@pytest.fixture
def mine(monkeypatch):
    helpers, module = types.ModuleType("helpers"), types.ModuleType("mine")
    helpers.inner = types.ModuleType("helpers.inner")
    helpers.inner.LENGTH = 0.5
    monkeypatch.setitem(sys.modules, "helpers", helpers)
    exec(SOURCE, vars(module))
    return module, helpers


def test_an_attack_of_ones_own_is_told_by_the_globals_it_reads(mine):
    module, helpers = mine
    first = identity.describe_attack(module.attack)
    assert first is not None
    module.OTHER = 1  # which nothing reads
    assert identity.describe_attack(module.attack) == first
    for where, name, other in (
        (module, "STEPS", 4),
        (module, "TABLE", {"a": [1, 3]}),
        (module, "moved", lambda x: x),
        (helpers.inner, "LENGTH", 0.6),
        (module, "fgsm", pgd),
        (module, "jnp", np),
    ):
        before = getattr(where, name)
        setattr(where, name, other)
        found = identity.describe_attack(module.attack)
        # The function that was compiled is the old one, whatever has its name now.
        assert (found == first) == (name == "moved"), name
        setattr(where, name, before)
        assert identity.describe_attack(module.attack) == first
    for unknown in (object(), np.random.default_rng(0), helpers):
        module.TABLE = unknown
        assert identity.describe_attack(module.attack) is None


LENGTH = 0.01


def by_a_global(logits_fn, x, y, *, threat, key):
    found = fgsm(logits_fn, x, y, threat=threat, key=key)
    moved = x + LENGTH * jnp.sign(found.x_adv - x)
    return found._replace(x_adv=jnp.where((x > 0.1) & (x < 0.9), moved, x))


def test_results_of_another_global_are_not_reused(tmp_path, monkeypatch):
    assert measure(tmp_path, attacks=by_a_global).rows[1].max_norm == pytest.approx(0.01, abs=1e-6)
    monkeypatch.setitem(globals(), "LENGTH", 0.04)
    assert measure(tmp_path, attacks=by_a_global).rows[1].max_norm == pytest.approx(0.04, abs=1e-6)


def breaks_far_away(x):
    """NaN for inputs that are far outside what small balls reach."""
    return linear(x) + jnp.where(jnp.max(x, axis=(1, 2, 3)) > 0.99, jnp.nan, 0.0)[:, None]


def test_a_check_that_raises_an_error_fails_alone_and_loses_nothing(tmp_path):
    x = 0.4 * X + 0.2
    y = np.asarray(jnp.argmax(linear(x), axis=1))
    with pytest.warns(UserWarning, match="check huge_radius_reaches_chance raised NotFiniteError"):
        found = measure(tmp_path, breaks_far_away, x, y, checks=SMOKE)
    assert found.rows == measure(None, linear, x, y).rows
    of_name = {finding.name: finding for finding in found.checks}
    assert list(of_name) == list(NAMES)
    finding = of_name["huge_radius_reaches_chance"]
    assert (finding.verdict, finding.value) == (FAIL, None)
    assert finding.detail.startswith("raised NotFiniteError: ")
    assert of_name["iterative_not_weaker"].verdict == PASS
    assert "1 of 9 FAILED: huge_radius_reaches_chance" in str(found)
    assert finding.detail in (tmp_path / "table.md").read_text()
    written = json.loads((tmp_path / "checks.json").read_text())
    assert [each["name"] for each in written["findings"]] == list(NAMES)
    assert json.loads((tmp_path / "settings.json").read_text())["complete"]
    with pytest.warns(UserWarning, match="raised NotFiniteError"):  # never from the file
        measure(tmp_path, breaks_far_away, x, y, checks=SMOKE)


def test_checks_that_cannot_be_made_lose_nothing(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(checks, "run_checks", refused)
    with pytest.warns(UserWarning, match="checks could not be made: MemoryError: no room"):
        found = measure(tmp_path, linear, checks=SMOKE)
    (finding,) = found.checks
    assert (finding.name, finding.verdict) == ("checks_made", FAIL)
    assert finding.detail in str(found)
    assert json.loads((tmp_path / "settings.json").read_text())["complete"]


def test_an_interrupt_of_the_checks_leaves_the_tables(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checks, "run_checks", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure(tmp_path, checks=SMOKE)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["n"] for row in rows] == [12, 12, 12]
    assert not json.loads((tmp_path / "settings.json").read_text())["complete"]
    assert "**incomplete: the checks are not finished**" in (tmp_path / "table.md").read_text()
    found = measure(tmp_path, checks=SMOKE)
    assert [finding.name for finding in found.checks] == list(NAMES)
    assert json.loads((tmp_path / "settings.json").read_text())["complete"]
    assert "incomplete" not in (tmp_path / "table.md").read_text()


def test_the_checks_take_the_first_batch_with_a_label(monkeypatch):
    y = np.asarray(jnp.argmax(per_pixel(X), axis=-1)).astype(np.uint8)
    y[:7] = 255  # all of the first batch, and the first of the second
    seen = []

    def noted(model, x, y, **settings):  # what they find is in checks/test_run.py
        seen.append((np.asarray(x), np.asarray(y)))
        return Checks([Finding(name, PASS, 0.0, "") for name in NAMES], {})

    monkeypatch.setattr(checks, "run_checks", noted)
    settings = {"checks": SMOKE, "check_examples": 3, "attacks": AttackSettings("p", "pgd", 2)}
    found = measure(None, per_pixel, X, y, **settings)
    assert [finding.name for finding in found.checks] == list(NAMES)
    ((seen_x, seen_y),) = seen
    np.testing.assert_array_equal(seen_x, X[7:10])
    np.testing.assert_array_equal(seen_y, y[7:10])
    assert seen_y.dtype == np.uint8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = measure(None, per_pixel, X, np.full_like(y, 255), **settings)
    assert found.checks[0].verdict == "not applicable"
    assert len(seen) == 1
    assert "no label is known" in str(found)


@pytest.mark.slow
def test_checks_of_label_maps_are_made_for_real():
    """The fast test replaces them; here they run on the first batch with a label."""
    y = np.asarray(jnp.argmax(per_pixel(X), axis=-1)).astype(np.uint8)
    y[:7] = 255
    settings = {"checks": SMOKE, "check_examples": 3, "attacks": AttackSettings("p", "pgd", 2)}
    found = measure(None, per_pixel, X, y, **settings)
    assert [finding.name for finding in found.checks] == list(NAMES)
    assert found.checks[0].verdict in ("PASS", "FAIL")


BAD = [
    ({"twin": 3}, "twin must be a function of a batch, or None; got 3"),
    ({"checks": 1}, "checks must be True, False or CheckSettings; got 1"),
    ({"check_examples": 0}, "check_examples must be at least 1; got 0"),
    ({"check_examples": 2.5}, r"check_examples must be an integer; got 2\.5"),
    ({"checks": CheckSettings(steps=0)}, r"CheckSettings\.steps must be at least 1; got 0"),
    ({"checks": CheckSettings(difference_steps=())}, r"difference_steps must be a tuple"),
    (
        {"checks": CheckSettings(tolerance=float("nan"))},
        r"tolerance must be a finite number, not neg",
    ),
    ({"seed": None}, "seed must be an integer; got None"),
    ({"batch_dependent": "no"}, "batch_dependent must be True, False or None; got 'no'"),
    ({"epsilons": None}, "epsilons must be a number or an iterable of numbers; got None"),
    ({"epsilons": [np.ones(3)]}, r"epsilons must be numbers; got one of shape \(3,\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:25] for _, message in BAD])
def test_bad_arguments_are_refused_before_anything_is_measured(changes, message):
    def never(x):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        measure(None, never, **changes)


def test_none_means_no_checks():
    assert measure(checks=None).checks == ()


def _files(out):
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("with_figures")
def test_files_of_another_model_do_not_stay(tmp_path):
    measure(tmp_path, attacks=("fgsm", "pgd"), checks=SMOKE)
    foreign = ("notes.txt", "pictures/mine.png", "per_example/mine.npz")
    for name in foreign:
        (tmp_path / name).write_bytes(b"of somebody else")
    before = _files(tmp_path)
    assert {"checks.json", "pictures/pgd-0.05.png", "per_example/pgd-0.05.npz"} < before
    # Another radius of the same model leaves what is there.
    measure(tmp_path, epsilons=0.1)
    assert {"pictures/pgd-0.05.png", "per_example/pgd-0.05.npz", "checks.json"} < _files(tmp_path)
    with pytest.warns(UserWarning, match="of another model"):
        measure(tmp_path, doubled)
    after = _files(tmp_path)
    assert after == {
        *foreign,
        *("accuracy.png", "results.json", "settings.json", "table.csv", "table.md"),
        *("per_example/model.npz", "per_example/none-0.npz", "per_example/fgsm-0.05.npz"),
        "pictures/fgsm-0.05.png",
    }
    # Nor do those of other data whose first batch is the same.
    measure(tmp_path, doubled, attacks="pgd", checks=SMOKE)
    later = X.copy()
    later[-1] = later[-2]
    measure(tmp_path, doubled, later, attacks="pgd")
    assert {n for n in _files(tmp_path) if "fgsm" in n} == set()


def test_a_table_that_is_incomplete_says_so(tmp_path):
    calls = []

    def stops(logits_fn, x, y, *, threat, key):
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fgsm(logits_fn, x, y, threat=threat, key=key)

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, attacks=stops)
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("**incomplete: stopped before every attack was made on every batch**")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [(c[0], c[-1]) for c in cells] == [
        ("attack", "n"),
        ("none", "12"),
        ("stops", "6"),
        ("worst", "6"),
    ]


def test_numbers_of_numpy(tmp_path):
    numpys = {
        "seed": np.int64(3),
        "batch_dependent": np.bool_(False),
        "check_examples": np.int64(6),
        "checks": CheckSettings(np.int64(2), 2, 4, np.float32(0.01), directions=np.int32(1)),
        "epsilons": np.float32(0.05),
        "attacks": AttackSettings("p", "pgd", np.int64(3), np.float32(0.05), np.bool_(True)),
    }
    found = measure(tmp_path, **numpys)
    assert found.settings["seed"] == 3
    assert found.rows == measure(None, **numpys).rows
    assert type(numpys["attacks"].steps) is int
    assert type(numpys["attacks"].step_size) is float


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
    found = measure(tmp_path)
    model, cell = (tmp_path / "per_example" / n for n in ("model.npz", "fgsm-0.05.npz"))
    with np.load(model) as file:
        kept = {n: file[n] for n in file.files}
    fingerprint = identity.Fingerprint(str(kept["arrays"]), kept["logits"], kept["gradient"])
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
    assert measure(tmp_path).rows == found.rows


def test_settings_are_those_of_their_kind():
    for known in catalogue.names():
        attack = catalogue.by_name(known)
        assert AttackSettings(known, attack.kind, loss=attack.loss) == attack
    steps = {n: catalogue.by_name(n).steps for n in ("fgsm", "pgd", "autoattack", "sea", "square")}
    assert steps == {"fgsm": 1, "pgd": 20, "autoattack": 100, "sea": 300, "square": 1}
    assert AttackSettings("p", "pgd").random_start is True
    assert AttackSettings("p", "pgd", random_start=False).random_start is False
    assert AttackSettings("a", "autoattack", steps=1).steps == 1
    with pytest.raises(ValueError, match=r"3 restarts from the same point .* random_start=True"):
        AttackSettings("p", "pgd", restarts=3, random_start=False)


def test_names_that_differ_in_replaced_characters_alone(tmp_path):
    names = ("a b", "a_b", "a/b")
    assert len({file_stem(name, 0.1) for name in names}) == 3
    assert file_stem("pgd-margin", 8 / 255) == "pgd-margin-0.031372549"
    attacks = [AttackSettings(name, "pgd", 1 + place) for place, name in enumerate(names)]
    measure(tmp_path, attacks=attacks)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()}
    assert len(before) == 5
    measure(tmp_path, attacks=attacks)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "per_example").iterdir()} == before


@pytest.mark.parametrize("epsilon", [jnp.float32(0.05), np.array(0.05), jnp.array([0.05, 0.05])])
def test_radii_as_arrays(epsilon):
    found = measure(epsilons=epsilon)
    assert [row.epsilon for row in found.rows] == pytest.approx([0, 0.05, 0.05])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x, "mine must return an AttackResult, or another object with x_adv; got Array"),
        (lambda x: types.SimpleNamespace(x_adv=x[:1]), r"mine must return floating x_adv of shape"),
        (lambda x: types.SimpleNamespace(x_adv=None), r"mine must return floating x_adv of shape"),
    ],
)
def test_attacks_that_return_something_else(answer, message):
    def mine(logits_fn, x, y, *, threat, key):
        return answer(x)

    with pytest.raises(ValueError, match=message):
        measure(attacks=mine)


def test_radii_in_words():
    assert radius_text(8 / 255, "linf") == "8/255"
    assert radius_text(64 / 255, "linf") == "64/255"
    assert radius_text(65 / 255, "linf") == "0.2549"
    assert radius_text(0.2, "l2") == "0.2"
    assert radius_text(0.2, "") == "0.2"
    assert radius_text(0.0, "linf") == ""


def test_bars_in_names_do_not_make_cells():
    row = Row("a|b", 0.1, 0.5, 4, 0.1, 0.9, "accuracy", "linf")
    assert r"| a\|b | 0.1 | 50.0 % | 10.0 to 90.0 | 4 |" in markdown_table([row], ())


def test_progress_without_rich(monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    measure(tmp_path, progress=True)
    assert f"written: {tmp_path}" in capsys.readouterr().out


def test_boolean_labels():
    with pytest.raises(ValueError, match=r"got booleans: use y\.astype\(int\)"):
        measure(None, lambda x: linear(x)[:, :1], X, Y > 0)


def test_intervals_of_batches_are_said_to_be_too_narrow(tmp_path):
    found = measure(tmp_path, batch_dependent=True)
    for text in (str(found), (tmp_path / "table.md").read_text()):
        assert "they assume independent examples" in text
    assert "independent" not in str(measure())


def test_the_largest_change_of_noise_is_measured():
    """It was 0 for noises, whose rows have no norm."""
    found = measure(attacks=("rademacher", "uniform", "fgsm"), bounds=None)
    assert found.row("none").max_norm == 0
    assert found.row("rademacher", 0.05).max_norm == pytest.approx(0.05, rel=1e-5)
    assert 0.05 < found.row("uniform", 0.05).max_norm <= 0.05 * 3**0.5 * (1 + 1e-5)
    assert found.row("rademacher", 0.05).norm_order == ""
    each = found.per_example["rademacher", 0.05].distance
    np.testing.assert_allclose(each, np.full(len(X), 0.05), rtol=1e-5)


@pytest.mark.parametrize("radii", [np.float32(0.1), jnp.array([0.1, 0.2]), [0.1, 0.2]])
def test_rows_are_found_at_radii_of_any_precision(radii):
    found = measure(epsilons=radii)
    row = found.row("fgsm", 0.1)
    assert row.epsilon == pytest.approx(0.1)
    assert found.row("fgsm", np.float32(0.1)) is row
    assert found.row("fgsm", jnp.float32(0.1)) is row
    with pytest.raises(KeyError) as error:
        found.row("fgsm", 0.1000002)
    wanted, existing = str(error.value).split("; there are")
    assert wanted.endswith("at 0.1000002")
    assert "0.1000002" not in existing


def test_of_two_close_radii_the_nearer_is_found():
    found = measure(epsilons=(0.1, 0.10000005))
    assert [found.row("fgsm", e).epsilon for e in (0.1, 0.10000005)] == [0.1, 0.10000005]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**70}, r"seed must lie in \[-2\*\*63, 2\*\*63\)"),
        ({"seed": 1.0}, "seed must be an integer"),
        ({"attacks": 3}, "attacks must be a name, AttackSettings, a function or .*; got 3"),
        ({"attacks": None}, "attacks must be a name"),
        ({"out": 3}, "out must be the path of a folder, or None; got 3"),
    ],
)
def test_arguments_are_refused_before_anything_is_measured(changes, message):
    def untouched(x):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=message):
        measure(model=untouched, **changes)


def test_a_file_in_the_place_of_the_folder_is_refused_at_once(tmp_path):
    file = tmp_path / "results"
    file.write_text("mine")
    for out in (file, file / "inside"):
        with pytest.raises(ValueError, match=r"out must be a folder.*results is a file"):
            measure(out)
    assert file.read_text() == "mine"


def test_an_unknown_loss_is_refused_where_it_is_written():
    for kind in ("pgd", "fgsm", "square"):
        with pytest.raises(ValueError, match=r"mine: loss must be one of .*margin.*; got 'zzz'"):
            AttackSettings("mine", kind, loss="zzz")
    assert AttackSettings("mine", "apgd", loss="targeted_margin").loss == "targeted_margin"
