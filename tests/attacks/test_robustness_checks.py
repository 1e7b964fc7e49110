"""Checks of the one call: what they are made on; where they fail, no result is lost."""

import dataclasses
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import AttackSettings, pgd
from steinnorm.attacks.checks import FAIL, NAMES, PASS, Checks, Finding
from steinnorm.attacks.robustness import checks
from tests.attacks.one_call import SMOKE, X, linear, measure, per_pixel


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
    assert "1 of 10 FAILED: huge_radius_reaches_chance" in str(found)
    assert finding.detail in (tmp_path / "table.md").read_text()
    written = json.loads((tmp_path / "checks.json").read_text())
    assert [each["name"] for each in written["findings"]] == list(NAMES)
    assert json.loads((tmp_path / "settings.json").read_text())["complete"]
    with pytest.warns(UserWarning, match="raised NotFiniteError"):  # never from the file
        measure(tmp_path, breaks_far_away, x, y, checks=SMOKE)


def test_the_losses_of_the_attacks_are_those_of_the_checks(tmp_path, monkeypatch):
    seen = []

    def noted(*_, settings, **__):
        seen.append(settings.losses)
        return Checks([Finding(name, PASS, 0.0, "") for name in NAMES], {})

    def own(logits_fn, x, y, *, threat, key):
        return pgd(logits_fn, x, y, threat=threat, key=key, steps=1, loss="kl")

    monkeypatch.setattr(checks, "run_checks", noted)
    measure(tmp_path, attacks="fgsm", checks=SMOKE)
    measure(tmp_path, attacks=("fgsm", own), checks=SMOKE)
    measure(tmp_path, attacks=("fgsm", AttackSettings("m", "pgd", 1, loss="margin")), checks=SMOKE)
    kl = dataclasses.replace(SMOKE, losses=["kl", "cross_entropy"])
    measure(tmp_path, attacks=AttackSettings("d", "fgsm", loss="dlr"), checks=kl)
    # The second call takes from the file what the first found: its losses are the same.
    assert seen == [(), ("margin",), ("dlr", "kl")]


def test_losses_that_do_not_fit_the_labels_are_refused_before_an_attack():
    def never(logits_fn, x, y, *, threat, key):
        raise AssertionError

    wrong = dataclasses.replace(SMOKE, losses=("segpgd",))
    with pytest.raises(ValueError, match=r"CheckSettings\.losses: segpgd is for a label per pixel"):
        measure(attacks=never, checks=wrong)


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


def test_none_means_no_checks():
    assert measure(checks=None).checks == ()
