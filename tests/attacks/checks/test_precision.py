"""What accelerators do with float32 products; here a CPU that says it is one."""

import jax
import jax.numpy as jnp
import pytest

from steinnorm.attacks.checks import NOT_APPLICABLE
from steinnorm.attacks.checks.gradients import gradient_matches_finite_differences
from steinnorm.attacks.checks.precision import (
    full_precision_products,
    low_precision_dtype,
    precision_note,
)
from steinnorm.attacks.robustness.identity import code_identity
from tests.attacks.checks.models import runs_of
from tests.attacks.checks.test_gradients import batch

IDENTITY = jax.tree_util.Partial(lambda x: x)


def product(x):
    """Returns what the compiler is asked for."""
    return str(jax.make_jaxpr(jnp.dot)(x, x))


@pytest.fixture
def x():
    return jnp.ones((2, 2))


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_a_cpu_has_nothing_to_choose(x):
    with full_precision_products():
        assert "HIGHEST" not in product(x)
    with jax.default_matmul_precision("bfloat16"):
        assert low_precision_dtype(IDENTITY, x) is None
    assert precision_note() == ""


@pytest.mark.usefixtures("on_gpu")
def test_what_is_left_to_the_device_is_checked_in_float32_and_said(x):
    with full_precision_products():
        assert "HIGHEST" in product(x)
    assert "set jax_default_matmul_precision to 'highest' for both" in precision_note()
    assert low_precision_dtype(IDENTITY, x) is None


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("precision", ["highest", "float32"])
def test_full_precision_that_is_pinned_is_what_is_checked(precision, x):
    with jax.default_matmul_precision(precision), full_precision_products():
        assert "HIGHEST" in product(x)
        assert precision_note() == ""
        assert low_precision_dtype(IDENTITY, x) is None


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("precision", ["default", "high", "tensorfloat32", "bfloat16"])
def test_less_that_is_pinned_stays_and_is_too_coarse_for_differences(precision):
    with jax.default_matmul_precision(precision):
        before = product(jnp.ones((2, 2)))
        with full_precision_products():
            assert product(jnp.ones((2, 2))) == before
        assert precision_note() == ""
        finding = gradient_matches_finite_differences(runs_of(lambda x: x[:, :3], *batch()))
    assert finding.verdict == NOT_APPLICABLE
    assert f"products of precision '{precision}'" in finding.detail


def test_platform_and_precision_are_part_of_what_results_depend_on(monkeypatch):
    plain = code_identity()
    with jax.default_matmul_precision("highest"):
        assert code_identity() != plain
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert code_identity() != plain
