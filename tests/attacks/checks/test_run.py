"""All checks together, on what models give: K logits, a single one, a label per pixel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import VOID
from steinnorm.attacks.checks import FAIL, NAMES, NOT_APPLICABLE, PASS, Target, run_checks
from steinnorm.attacks.checks.run import CURVE, curve_steps
from steinnorm.attacks.checks.settings import ChecksConfig
from tests.attacks.checks.models import (
    EXAMPLES,
    KEY,
    SMALL,
    centred,
    draws,
    linear_problem,
    per_pixel,
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


def test_all_ten_are_reported_in_order_with_progress_and_curve():
    assert NAMES == ORDER
    model, x, y = linear_problem()
    told = []
    checks = run_checks(
        Target(model),
        x,
        y,
        config=SMALL,
        key=KEY,
        twin=model,
        on_progress=lambda *at: told.append(at),
    )
    assert {f.verdict for f in by_name(checks).values()} == {PASS}
    assert told == [(name, i + 1, 11) for i, name in enumerate((*ORDER, CURVE))]
    assert list(checks.curve) == [1, 2, 5, 10, 20]
    converged = by_name(checks)["twice_the_steps"]
    assert abs(checks.curve[20] - checks.curve[10]) == converged.value
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
    model, x, y = linear_problem(scale=1e6)
    checks = by_name(run_checks(Target(model), x, y, config=SMALL, key=KEY, twin_reason="because"))
    failed = {name for name, finding in checks.items() if finding.verdict == FAIL}
    assert {"zero_gradients", "square_not_stronger", "more_restarts"} <= failed
    assert checks["transfer_not_stronger"].detail == "because"


def test_batch_dependent_model():
    x, y = jnp.asarray(draws(EXAMPLES, 6, seed=11)), jnp.arange(EXAMPLES) % 3
    for told in (None, True):
        checks = by_name(run_checks(Target(centred, told), x, y, config=SMOKE, key=KEY))
        assert checks["batch_dependence"].verdict == FAIL
        assert "summed margin" in checks["gradient_matches_finite_differences"].detail


def test_single_logit_in_l2():
    weights = jnp.asarray(draws(6, 1, low=-1, high=1, seed=3))
    x = jnp.asarray(draws(EXAMPLES, 6, seed=4))
    y = (x @ weights > 0)[:, 0].astype(jnp.int32)
    model = jax.tree_util.Partial(lambda w, x: x @ w, weights)
    config = dataclasses.replace(SMOKE, norm="l2")
    checks = by_name(run_checks(Target(model), x, y, config=config, key=KEY, twin=model))
    chance = checks["huge_radius_reaches_chance"]
    assert "chance, 50.0 %" in chance.detail
    assert chance.verdict == checks["gradient_matches_finite_differences"].verdict == PASS


def test_label_maps_count_known_pixels():
    x = jnp.asarray(draws(8, 4, 4, 1, seed=6))
    y = (x[..., 0] > 0.5).astype(jnp.int32).at[:, 0].set(VOID)
    checks = run_checks(Target(per_pixel), x, y, config=SMOKE, key=KEY, twin=per_pixel)
    found = by_name(checks)
    assert "96 pixels of 8 examples" in found["iterative_not_weaker"].detail
    safe = np.abs(np.asarray(x)[:, 1:] - 0.5) > SMOKE.epsilon  # what no attack can reach
    assert checks.curve[3] == pytest.approx(safe.mean(), abs=0.021)
    assert found["gradient_matches_finite_differences"].verdict == PASS
    assert found["transfer_not_stronger"].verdict == PASS


def test_batches_that_cannot_be_checked_are_refused():
    x, void = jnp.zeros((2, 3, 3, 1)), jnp.full((2, 3, 3), VOID)
    with pytest.raises(ValueError, match="no label"):
        run_checks(Target(per_pixel), x, void, config=SMOKE, key=KEY)
    with pytest.raises(ValueError, match="must lie in"):
        run_checks(Target(per_pixel), x + 2, void, config=SMOKE, key=KEY)


def test_every_setting_has_a_meaning():
    text = ChecksConfig.__doc__
    for field in dataclasses.fields(ChecksConfig):
        assert f"\n      {field.name}: " in text
