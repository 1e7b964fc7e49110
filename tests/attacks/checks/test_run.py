"""All checks together, on what models give: K logits, a single one, a label per pixel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import VOID, ProbabilitiesWarning, Threat
from steinnorm.attacks.checks import (
    FAIL,
    NAMES,
    NOT_APPLICABLE,
    PASS,
    Checks,
    Finding,
    run,
    run_checks,
)
from steinnorm.attacks.checks.run import CURVE, curve_steps
from tests.attacks.checks.models import (
    EXAMPLES,
    KEY,
    SMALL,
    THREAT,
    centred,
    draws,
    linear_problem,
    per_pixel,
    squashed,
)

SMOKE = dataclasses.replace(
    SMALL, steps=3, restarts=2, square_queries=30, directions=1, difference_steps=(1e-3,)
)
ORDER = (
    "iterative_not_weaker",
    "larger_radius_not_weaker",
    "huge_radius_reaches_chance",
    "twice_the_steps",
    "more_restarts",
    "margin_not_stronger",
    "square_not_stronger",
    "transfer_not_stronger",
    "zero_gradients",
    "gradient_matches_finite_differences",
    "batch_dependence",
)


def by_name(checks):
    assert tuple(finding.name for finding in checks.findings) == ORDER
    for finding in checks.findings:
        assert finding.verdict in (PASS, FAIL, NOT_APPLICABLE)
        assert (finding.value is None) == (finding.verdict == NOT_APPLICABLE)
        assert finding.detail
    return {finding.name: finding for finding in checks.findings}


def test_errors_within_a_check_are_raised_unless_asked_otherwise(monkeypatch):
    def refused(runs):
        raise RuntimeError("no room")

    monkeypatch.setitem(run._CHECKS, "more_restarts", refused)
    arguments = linear_problem()
    with pytest.raises(RuntimeError, match="no room"):
        run_checks(*arguments, threat=THREAT, settings=SMOKE)
    found = run_checks(*arguments, threat=THREAT, settings=SMOKE, raise_errors=False)
    assert found.errors == ("more_restarts raised RuntimeError: no room",)
    of_name = {finding.name: finding for finding in found.findings}
    assert tuple(of_name) == ORDER
    assert of_name["more_restarts"] == ("more_restarts", FAIL, None, "raised RuntimeError: no room")
    assert of_name["square_not_stronger"].verdict == PASS
    assert set(found.curve) == set(curve_steps(SMOKE.steps))


def test_all_are_reported_in_order_with_progress_and_curve():
    assert NAMES == ORDER
    model, x, y = linear_problem()
    told = []
    checks = run_checks(
        model,
        x,
        y,
        threat=THREAT,
        settings=SMALL,
        key=KEY,
        twin=model,
        on_progress=lambda *at: told.append(at),
    )
    assert {f.verdict for f in by_name(checks).values()} == {PASS}
    assert told == [(name, i + 1, len(ORDER) + 1) for i, name in enumerate((*ORDER, CURVE))]
    assert list(checks.curve) == [1, 2, 5, 10, 20]
    converged = by_name(checks)["twice_the_steps"]
    assert checks.curve[10] - checks.curve[20] == pytest.approx(converged.value)
    assert checks.curve[1] >= checks.curve[20]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [1, 2]),
        (2, [1, 2, 4]),
        (7, [1, 2, 5, 7, 10, 14]),
        (20, [1, 2, 5, 10, 20, 40]),
        (50, [1, 2, 5, 10, 20, 50, 100]),
    ],
)
def test_curve_goes_up_to_twice_the_steps(steps, expected):
    assert curve_steps(steps) == expected


def test_masked_model_is_reported_with_all_that_fails():
    model, x, y = linear_problem(scale=1e6, last=squashed)
    checks = by_name(
        run_checks(model, x, y, threat=THREAT, settings=SMALL, key=KEY, twin_reason="because")
    )
    failed = {name for name, finding in checks.items() if finding.verdict == FAIL}
    assert {"zero_gradients", "square_not_stronger", "more_restarts"} <= failed
    assert checks["transfer_not_stronger"].detail == "because"


def test_batch_dependent_model():
    x, y = jnp.asarray(draws(EXAMPLES, 6, seed=11)), jnp.arange(EXAMPLES) % 3
    for told in (None, True):
        checks = by_name(
            run_checks(centred, x, y, threat=THREAT, settings=SMOKE, batch_dependent=told)
        )
        assert checks["batch_dependence"].verdict == FAIL
        assert "summed margin" in checks["gradient_matches_finite_differences"].detail


def test_single_logit_in_l2():
    weights = jnp.asarray(draws(6, 1, low=-1, high=1, seed=3))
    x = jnp.asarray(draws(EXAMPLES, 6, seed=4))
    y = (x @ weights > 0)[:, 0].astype(jnp.int32)
    model = jax.tree_util.Partial(lambda w, x: x @ w, weights)
    threat = Threat("l2", 0.1)
    checks = by_name(run_checks(model, x, y, threat=threat, settings=SMOKE, twin=model))
    chance = checks["huge_radius_reaches_chance"]
    assert "chance, 50.0 %" in chance.detail
    assert chance.verdict == checks["gradient_matches_finite_differences"].verdict == PASS


def test_label_maps_count_known_pixels():
    x = jnp.asarray(draws(8, 4, 4, 1, seed=6))
    y = (x[..., 0] > 0.5).astype(jnp.uint8).at[:, 0].set(VOID)
    checks = run_checks(per_pixel, x, y, threat=THREAT, settings=SMOKE, key=KEY, twin=per_pixel)
    found = by_name(checks)
    assert "96 pixels of 8 examples" in found["iterative_not_weaker"].detail
    safe = np.abs(np.asarray(x)[:, 1:] - 0.5) > THREAT.epsilon  # what no attack can reach
    assert checks.curve[3] == pytest.approx(safe.mean(), abs=0.021)
    assert found["gradient_matches_finite_differences"].verdict == PASS
    assert found["transfer_not_stronger"].verdict == PASS


def test_batches_that_cannot_be_checked_are_refused():
    x, void = jnp.zeros((2, 3, 3, 1)), jnp.full((2, 3, 3), VOID)
    with pytest.raises(ValueError, match="no label"):
        run_checks(per_pixel, x, void, threat=THREAT, settings=SMOKE)
    with pytest.raises(ValueError, match="must lie in"):
        run_checks(per_pixel, x + 2, void, threat=THREAT, settings=SMOKE)


def test_what_is_printed_is_a_short_list():
    checks = Checks(
        [
            Finding("one", PASS, 0.0, "long words: many"),
            Finding("two", FAIL, 0.5, "half of it"),
            Finding("three", NOT_APPLICABLE, None, "why: not"),
        ],
        {1: 0.5},
    )
    assert str(checks).splitlines() == [
        "1 PASS, 1 FAIL, 1 not applicable",
        "PASS            one",
        "FAIL            two: half of it",
        "not applicable  three: why: not",
    ]
    assert str(checks.findings[0]) == "PASS            one: long words: many"


def test_without_a_key_the_result_is_that_of_a_fixed_one():
    model, x, y = linear_problem()
    a, b = (run_checks(model, x, y, threat=THREAT, settings=SMOKE) for _ in range(2))
    assert a == b


def test_attacks_repeat_no_warnings():
    model, x, y = linear_problem(last=jax.nn.softmax)
    with pytest.warns(ProbabilitiesWarning) as told:
        run_checks(model, x, y, threat=THREAT, settings=SMOKE)
    assert len(told) == 1


@pytest.mark.parametrize("queries", [0, 30])
def test_a_black_box_is_checked_where_no_gradient_is_needed(queries):
    model, x, y = linear_problem(EXAMPLES)

    weights = np.asarray(model.args[0])

    def black_box(x):
        # Without JAX, which can wait for itself for ever in a callback (jax-ml/jax#24255).
        def answers(images):
            return np.asarray(images) @ weights

        shape = jax.ShapeDtypeStruct((len(x), weights.shape[1]), jnp.float32)
        return jax.pure_callback(answers, shape, x)

    settings = dataclasses.replace(SMOKE, square_queries=queries)
    checks = run_checks(black_box, x, y, threat=THREAT, settings=settings, twin=model)
    found = by_name(checks)
    made = {"batch_dependence", "transfer_not_stronger"} if queries else {"batch_dependence"}
    assert {name for name in ORDER if found[name].verdict != NOT_APPLICABLE} == made
    assert found["batch_dependence"].verdict == PASS
    assert "the model has no gradient that could" in found["batch_dependence"].detail
    assert "which this check needs: Pure callbacks" in found["zero_gradients"].detail
    transfer = found["transfer_not_stronger"].detail
    assert (
        "the attacks without gradients together" if queries else "no queries are configured"
    ) in transfer
    assert checks.curve == {}
