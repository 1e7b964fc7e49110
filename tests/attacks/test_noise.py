"""Noises have the size and the law that they are said to have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from steinnorm.attacks import NOISES, clipped_cauchy, evaluate_robustness
from tests.attacks.one_call import X, measure
from tests.attacks.problems import KEY

SUB_GAUSSIAN = ["gaussian", "uniform", "rademacher", "truncated_gaussian"]
LAWS = {
    "gaussian": scipy.stats.norm(0, 0.3),
    "uniform": scipy.stats.uniform(-0.3 * 3**0.5, 2 * 0.3 * 3**0.5),
    "truncated_gaussian": scipy.stats.truncnorm(
        -2, 2, scale=0.3 / scipy.stats.truncnorm(-2, 2).std()
    ),
}
IMAGES = jnp.full((50, 20, 20, 1), 0.5)


@pytest.mark.parametrize("name", SUB_GAUSSIAN)
def test_noise_has_the_rms_and_the_law_it_was_asked_for(name):
    noisy = NOISES[name](KEY, IMAGES, 0.3)
    change = np.asarray(noisy - IMAGES, np.float64).ravel()
    assert np.sqrt(np.mean(change**2)) == pytest.approx(0.3, rel=0.02)
    assert change.mean() == pytest.approx(0, abs=0.01)
    assert noisy.dtype == IMAGES.dtype
    if name in LAWS:
        assert scipy.stats.kstest(change, LAWS[name].cdf).pvalue > 1e-3
    else:
        np.testing.assert_allclose(np.abs(change), 0.3, rtol=1e-5)


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_clipped_to_bounds_and_refuses_a_negative_size(name):
    clipped = NOISES[name](KEY, IMAGES, 3.0, bounds=(0.0, 1.0))
    assert float(clipped.min()) == 0
    assert float(clipped.max()) == 1
    for rms in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="rms"):
            NOISES[name](KEY, IMAGES, rms)


def test_clipped_cauchy_is_the_released_draw():
    # -sigma / sqrt(2) * tan(pi * U): a Cauchy law of that scale, clipped to the image range.
    sigma = 0.1
    noisy = np.asarray(clipped_cauchy(KEY, IMAGES, sigma), np.float64).ravel()
    inside = noisy[(noisy > 0) & (noisy < 1)] - 0.5
    law = scipy.stats.cauchy(0, sigma / 2**0.5)
    edge = law.cdf(0.5)
    assert (
        scipy.stats.kstest((law.cdf(inside) - 1 + edge) / (2 * edge - 1), "uniform").pvalue > 1e-3
    )
    assert len(inside) / len(noisy) == pytest.approx(2 * edge - 1, abs=0.01)
    with pytest.raises(ValueError, match="needs bounds"):
        clipped_cauchy(KEY, IMAGES, sigma, bounds=None)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("rms", [0.1, np.float32(0.1), np.float64(0.1), np.array(0.1)])
def test_noise_has_the_dtype_of_the_inputs(name, rms):
    bounds = (np.zeros(1), np.ones(1))
    for dtype in (jnp.bfloat16, jnp.float32):
        x = IMAGES[:2].astype(dtype)
        assert NOISES[name](KEY, x, rms, bounds).dtype == dtype
        with jax.enable_x64(True):
            assert NOISES[name](KEY, x, rms, bounds).dtype == dtype


def test_the_size_of_noise_may_be_traced():
    x = IMAGES[:2]
    found = jax.jit(lambda rms: NOISES["uniform"](KEY, x, rms, (0.0, 1.0)))(0.1)
    np.testing.assert_allclose(found, NOISES["uniform"](KEY, x, 0.1, (0.0, 1.0)), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": 0}, r"write jax\.random\.key\(0\)"),
        ({"key": None}, "key must be a jax.random.key; got NoneType"),
        ({"x": "image"}, "x must be an array; got str"),
        ({"x": [[0.1, 0.2], [0.3]]}, "x must be an array; got list"),
        ({"x": jnp.ones((2, 2), jnp.int32)}, r"Scale images to \[0, 1\]"),
        ({"x": 2 * IMAGES + 0.5}, "x must lie in"),
        ({"x": IMAGES + np.nan}, "x must be finite; got NaN"),
        ({"rms": jnp.full(3, 0.1)}, r"rms must be one number; got an array of shape \(3,\)"),
        ({"rms": None}, "rms must be a number"),
        ({"rms": np.inf}, "rms must be finite and not negative"),
        ({"bounds": 1}, r"bounds must be \(low, high\)"),
        ({"bounds": (np.zeros(3), np.ones(3))}, r"a bound must be .*got shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("name", ["gaussian", "clipped_cauchy"])
def test_what_noise_cannot_take_is_refused_in_words(name, changes, message):
    settings = {"key": KEY, "x": IMAGES, "rms": 0.1, "bounds": (0.0, 1.0), **changes}
    with pytest.raises(ValueError, match=message):
        NOISES[name](**settings)


def test_the_largest_change_of_noise_is_measured():
    """It was 0 for noises, whose rows have no norm."""
    found = measure(attacks=("rademacher", "uniform", "fgsm"), bounds=None)
    assert found.row("none").max_norm == 0
    assert found.row("rademacher", 0.05).max_norm == pytest.approx(0.05, rel=1e-5)
    assert 0.05 < found.row("uniform", 0.05).max_norm <= 0.05 * 3**0.5 * (1 + 1e-5)
    assert found.row("rademacher", 0.05).norm_order == ""
    each = found.per_example["rademacher", 0.05].distance
    np.testing.assert_allclose(each, np.full(len(X), 0.05), rtol=1e-5)


def test_noise_with_bounds_for_each_channel():
    bounds = (np.zeros(2, np.float32), np.array([1.0, 0.5], np.float32))
    x = jnp.full((4, 2), 0.45)
    found = evaluate_robustness(
        lambda x: x,
        x,
        jnp.zeros(4, jnp.int32),
        epsilons=0.2,
        attacks="gaussian",
        bounds=bounds,
        progress=False,
    )
    assert found.per_example["gaussian", 0.2].values.max <= 1
