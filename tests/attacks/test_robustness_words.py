"""What the one call says: tables, the printed checks, and each warning once."""

import re
import types
import warnings

import jax
import pytest

from steinnorm.attacks import ProbabilitiesWarning, RadiusWarning, evaluate_robustness
from steinnorm.attacks.checks import NAMES
from steinnorm.attacks.robustness import Row
from steinnorm.attacks.robustness.tables import markdown_table, radius_text
from steinnorm.attacks.robustness.warn_once import warn_once
from tests.attacks.one_call import QUIET, SMOKE
from tests.attacks.three_wrong import RADII, X, Y, linear


def test_radii_in_words():
    assert radius_text(8 / 255, "linf") == "8/255"
    assert radius_text(64 / 255, "linf") == "64/255"
    assert radius_text(65 / 255, "linf") == "0.2549"
    assert radius_text(0.2, "l2") == "0.2"
    assert radius_text(0.2, "") == "0.2"
    for norm in ("linf", "l2", ""):
        assert radius_text(0.0, norm) == "0"


def test_a_radius_of_0_stands_in_the_table_and_clean_inputs_have_none():
    attacks = ["fgsm", "gaussian"]
    found = evaluate_robustness(linear, X, Y, epsilons=(0, 0.1), attacks=attacks, **QUIET)
    for table in (str(found), markdown_table(found.rows, ())):
        radii = re.findall(
            r"^(?:\| )?(none|fgsm|gaussian|worst) (.*?) +(?:\| )?\d+\.\d %", table, re.M
        )
        assert [(name, radius.strip(" |")) for name, radius in radii] == [
            ("none", ""),
            *((name, radius) for name in ("fgsm", "gaussian", "worst") for radius in ("0", "0.1")),
        ]


def test_bars_in_names_do_not_make_cells():
    row = Row("a|b", 0.1, 0.5, 4, 0.1, 0.9, "accuracy", "linf")
    assert r"| a\|b | 0.1 | 50.0 % | 10.0 to 90.0 | 4 |" in markdown_table([row], ())


def test_checks_are_printed_and_in_the_result(capsys):
    found = evaluate_robustness(
        linear, X, Y, epsilons=RADII, attacks="fgsm", checks=SMOKE, batch_size=10
    )
    assert [finding.name for finding in found.checks] == list(NAMES)
    printed = capsys.readouterr().out
    for finding in found.checks:
        assert f"check: {finding.verdict:14} {finding.name}" in printed
    assert "the radius 0.02" in found.checks[1].detail  # where nearest to half is left
    text = str(found)
    assert repr(found) == text
    assert len(text.splitlines()) == 1 + 1 + 5 + 1
    assert re.search(r"^fgsm +0\.1 +\d+\.\d %", text, re.MULTILINE)
    assert "88.0 %" in text
    assert "[" not in text


def test_silence(capsys):
    evaluate_robustness(linear, X, Y, attacks="fgsm", epsilons=0.1, batch_size=10, **QUIET)
    assert capsys.readouterr() == ("", "")


def test_a_radius_in_other_units_is_said_once():
    with pytest.warns(RadiusWarning, match="a radius of 8 lets any input") as seen:
        evaluate_robustness(linear, X, Y, epsilons=8, attacks="fgsm", batch_size=10, **QUIET)
    assert len([w for w in seen if w.category is RadiusWarning]) == 1


def test_a_warning_is_given_once_and_errors_stay_errors():
    said = set()

    def twice():
        for _ in range(2):
            with warn_once(said):
                warnings.warn("twice", stacklevel=1)

    with pytest.warns(UserWarning, match="twice") as seen:
        twice()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="new"), warn_once(said):
            warnings.warn("new", stacklevel=1)


def test_iterators_are_no_pytrees_and_checks_repeat_no_warning():
    def probabilities(x):
        return jax.nn.softmax(linear(x))

    settings = {"epsilons": iter([0.05]), "attacks": "fgsm", "checks": SMOKE, "progress": False}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = evaluate_robustness(probabilities, (part for part in [(X, Y)]), **settings)
    assert found.row("none").n == len(X)
    assert [each.category for each in seen] == [ProbabilitiesWarning]


def test_an_own_attack_need_not_know_its_zero_gradients():
    def own(logits_fn, x, y, *, threat, key):
        return types.SimpleNamespace(x_adv=x, zero_gradients=None)

    found = evaluate_robustness(linear, X, Y, attacks=own, epsilons=0.05, **QUIET)
    assert found.row("own", 0.05).value == found.row("none").value
