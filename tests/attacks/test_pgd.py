"""Attacks against NumPy and closed forms, and one test per mistake that others have made."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import ShortReachWarning, Threat, fgsm, pgd, predict
from tests.attacks.problems import CLASSES, EXAMPLES, KEY, SIDE, companions, draws, linear, problem


def _reference_gradient(weights, x, y):
    """Gradient of the cross-entropy of a linear model: W (softmax - onehot), in float64."""
    logits = x.reshape(len(x), -1) @ weights
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(x)), y] -= 1
    return (p @ weights.T).reshape(x.shape)


def _reference_pgd(weights, x, y, *, norm, epsilon, steps, step_size):
    x = np.asarray(x, np.float64)
    z = x.copy()
    for _ in range(steps):
        g = _reference_gradient(weights, z, y)
        if norm == "linf":
            z = np.clip(z + step_size * np.sign(g), x - epsilon, x + epsilon)
        else:
            z = z + step_size * g / np.sqrt((g**2).sum(axis=(1, 2, 3), keepdims=True))
            length = np.sqrt(((z - x) ** 2).sum(axis=(1, 2, 3), keepdims=True))
            z = x + (z - x) * np.minimum(1, epsilon / length)
        z = np.clip(z, 0, 1)
    return z


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.1), (7, 0.05), (20, 0.2)])
def test_pgd_is_the_reference_step_for_step(norm, steps, step_size):
    model, weights, x, y = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShortReachWarning)
        result = pgd(model, x, y, threat=Threat(norm, 0.2), steps=steps, step_size=step_size)
    expected = _reference_pgd(
        weights, x, np.asarray(y), norm=norm, epsilon=0.2, steps=steps, step_size=step_size
    )
    np.testing.assert_allclose(result.x_adv, expected, atol=2e-6)


def test_fgsm_linf_is_the_closed_form_and_the_best_possible():
    model, weights, x, y = problem()
    result = fgsm(model, x, y, threat=Threat("linf", 0.05))
    gradient = _reference_gradient(weights, np.asarray(x, np.float64), np.asarray(y))
    np.testing.assert_allclose(result.x_adv, np.clip(x + 0.05 * np.sign(gradient), 0, 1), atol=1e-6)
    # sign, not size: every value moves by the whole radius unless the box stops it
    inside = (result.x_adv > 0) & (result.x_adv < 1)
    np.testing.assert_allclose(jnp.abs(result.x_adv - x)[inside], 0.05, atol=1e-6)


def test_fgsm_l2_moves_each_example_by_the_radius():
    model, weights, x, y = problem(low=0.3, high=0.7)
    result = fgsm(model, x, y, threat=Threat("l2", 0.25))
    gradient = _reference_gradient(weights, np.asarray(x, np.float64), np.asarray(y))
    unit = gradient / np.sqrt((gradient**2).sum(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(result.x_adv, x + 0.25 * unit, atol=1e-6)
    assert result.max_norm == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-25, 1e-33])
def test_l2_step_is_not_shortened_by_a_small_gradient(scale):
    # A constant like 1e-12 beside the squared length would make the step vanish.
    model, _, x, y = problem(scale=scale, low=0.4, high=0.6)
    result = fgsm(model, x, y, threat=Threat("l2", 0.1))
    moved = jnp.sqrt(jnp.sum((result.x_adv - x) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(moved, 0.1, rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize("epsilon", [0.0, 0.03, 0.5, 3.0])
def test_ball_around_the_original_and_box_are_kept(norm, attack, epsilon):
    # Steps far longer than the radius: a projection around the previous iterate would drift.
    model, _, x, y = problem(seed=1)
    extra = {"steps": 5, "step_size": 2 * epsilon, "random_start": True} if attack is pgd else {}
    result = attack(model, x, y, threat=Threat(norm, epsilon), key=KEY, **extra)
    delta = np.asarray(result.x_adv - x, np.float64).reshape(EXAMPLES, -1)
    sizes = np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))
    assert sizes.max() <= epsilon + 1e-6
    assert result.max_norm == pytest.approx(sizes.max(), abs=1e-6)
    assert result.min >= 0
    assert result.max <= 1
    assert (result.min, result.max) == (float(result.x_adv.min()), float(result.x_adv.max()))
    assert result.nan_count == 0


def test_other_bounds():
    model, _, x, y = problem(low=-1.0, high=1.0)
    result = fgsm(model, x, y, threat=Threat("linf", 0.6, bounds=(-1.0, 1.0)))
    assert result.min == pytest.approx(-1)
    assert result.max == pytest.approx(1)


def test_random_start_is_in_the_ball_and_comes_from_the_key():
    model, _, x, y = problem(low=0.5, high=0.5)
    flat = jnp.full((2000, 2, 1, 1), 0.5)
    labels = jnp.zeros((2000,), jnp.int32)
    still = jax.tree_util.Partial(lambda x: jnp.zeros((x.shape[0], 2), x.dtype))
    for norm in ("linf", "l2"):
        starts = pgd(still, flat, labels, threat=Threat(norm, 0.2), key=KEY, steps=1, step_size=0.2)
        delta = np.asarray(starts.x_adv - 0.5).reshape(2000, 2)
        sizes = np.abs(delta).max(1) if norm == "linf" else np.sqrt((delta**2).sum(1))
        # uniform in two dimensions: the share inside half the radius is a quarter
        assert sizes.max() <= 0.2 + 1e-6
        assert np.mean(sizes < 0.1) == pytest.approx(0.25, abs=0.04)
        assert starts.zero_gradients == 2000

    def once(seed):
        result = pgd(
            model, x, y, threat=Threat("linf", 0.2), key=jax.random.key(seed), step_size=0.01
        )
        return np.asarray(result.x_adv)

    np.testing.assert_array_equal(once(1), once(1))
    assert np.abs(once(1) - once(2)).max() > 1e-3


def test_success_and_margin_loss_for_a_model_that_must_fall():
    model, _, x, y = problem()
    for loss in ("cross_entropy", "margin"):
        result = pgd(model, x, y, threat=Threat("linf", 1.0), steps=10, loss=loss)
        assert result.success.shape == (EXAMPLES,)
        assert result.success.all()
        wrong = jnp.argmax(predict(model, result.x_adv), axis=1) != y
        np.testing.assert_array_equal(result.success, wrong)
    assert not fgsm(model, x, y, threat=Threat("linf", 0.0)).success.any()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_a_very_sure_model_masks_no_gradient(loss):
    # What float32 leaves of 1 - p is 0 for some of these examples and rounding for others.
    model, _, x, y = problem(scale=1e4)
    found = fgsm(model, x, y, threat=Threat("linf", 0.5), loss=loss)
    assert found.zero_gradients == 0
    assert found.success.all()


def test_gradient_is_that_of_the_whole_batch():
    x = 0.3 + 0.4 * draws(4, 2, 2, 1)
    y = jnp.array([0, 1, 0, 1])

    def total(x):
        scores = jax.nn.log_softmax(companions(x))
        return -jnp.sum(scores[jnp.arange(4), y])

    batch = jax.jit(jax.grad(total))(x)  # jitted: eager operations compile one by one

    def alone(image, label):
        return -jax.nn.log_softmax(companions(image[None]))[0, label]

    single = jax.jit(jax.vmap(jax.grad(alone)))(x, y)
    assert bool(jnp.any(jnp.sign(batch) != jnp.sign(single)))  # else the test shows nothing
    result = fgsm(companions, x, y, threat=Threat("linf", 0.1))
    np.testing.assert_allclose(result.x_adv, x + 0.1 * jnp.sign(batch), atol=1e-6)


@pytest.mark.filterwarnings("ignore::steinnorm.attacks.BatchDependenceWarning")
def test_success_is_that_of_the_batch_handed_back():
    # With restarts the batch is put together from several runs, which no run ever evaluated.
    x = draws(40, 2, 2, 1)
    y = jnp.argmax(predict(companions, x), axis=1)
    result = pgd(
        companions, x, y, threat=Threat("linf", 0.1), key=KEY, steps=3, restarts=4, step_size=0.05
    )
    again = jnp.argmax(jax.jit(companions)(result.x_adv), axis=1) != y
    np.testing.assert_array_equal(result.success, again)
    assert 0 < int(again.sum()) < 40


def test_restarts_never_lose_on_a_model_without_companions():
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(3 * generator.normal(size=(25, 40)), jnp.float32)
    out = jnp.asarray(generator.normal(size=(40, 3)), jnp.float32)

    def bumpy(x):
        return jnp.sin(x.reshape(x.shape[0], -1) @ hidden) @ out

    x = draws(50, 5, 5, 1)
    y = jnp.argmax(predict(bumpy, x), axis=1)
    settings = {"threat": Threat("linf", 0.02), "key": KEY, "steps": 2, "step_size": 0.01}
    one = pgd(bumpy, x, y, **settings)
    many = pgd(bumpy, x, y, restarts=5, **settings)
    assert bool(jnp.all(many.success | ~one.success))
    assert int(many.success.sum()) > int(one.success.sum())


def test_states_and_radii_share_one_compilation():
    traces = []

    def counted(weights, x):
        traces.append(1)
        return linear(weights, x)

    _, weights, x, y = problem()
    for scale in (1.0, 2.0, 3.0):
        model = jax.tree_util.Partial(counted, jnp.asarray(scale * weights, jnp.float32))
        for epsilon in (0.1, 0.2):
            fgsm(model, x, y, threat=Threat("linf", epsilon))
            pgd(model, x, y, threat=Threat("linf", epsilon), steps=3)
    assert len(traces) == 2  # the step and the scoring


def test_an_attack_that_cannot_cross_its_ball_warns():
    model, _, x, y = problem()
    with pytest.warns(ShortReachWarning, match=r"5 steps of 0\.0039"):
        pgd(model, x, y, threat=Threat("linf", 7.65 / 255), steps=5, step_size=1 / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(model, x, y, threat=Threat("linf", 0.1), steps=5)


def test_targets_schedules_momentum_and_relative_steps():
    model, weights, x, y = problem(low=0.3, high=0.7)
    threat = Threat("linf", 0.3)
    target = (y + 1) % CLASSES
    aimed = pgd(model, x, y, threat=threat, target=target, steps=10)
    np.testing.assert_array_equal(
        aimed.success, jnp.argmax(predict(model, aimed.x_adv), axis=1) == target
    )
    assert aimed.success.all()
    # Towards a target the linear model's gradient is the same all along: one closed form.
    rows = np.asarray(weights).T.reshape(CLASSES, SIDE, SIDE, 1)
    one = fgsm(model, x, y, threat=Threat("linf", 0.01), target=target, loss="margin")
    best = np.array(predict(model, x))
    best[np.arange(EXAMPLES), target] = -np.inf
    difference = rows[np.asarray(target)] - rows[best.argmax(axis=1)]
    np.testing.assert_allclose(one.x_adv, x + 0.01 * np.sign(difference), atol=1e-6)

    still = jax.tree_util.Partial(lambda x: 3 * jnp.stack([x[:, 0, 0, 0], x[:, 1, 0, 0]], axis=1))
    half, labels = jnp.full((1, 2, 1, 1), 0.5), jnp.array([0])

    def reach(**settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortReachWarning)
            moved = pgd(still, half, labels, threat=Threat("linf", 0.4), loss="margin", **settings)
        return float(jnp.abs(moved.x_adv - half).max())

    assert reach(steps=4, step_size=0.01) == pytest.approx(0.04, rel=1e-4)
    assert reach(steps=4, relative_step_size=0.1) == pytest.approx(0.16, rel=1e-4)
    assert reach(steps=4, step_size=0.01, schedule="linear") == pytest.approx(0.025, rel=1e-4)
    assert reach(steps=2, step_size=0.01, schedule="cosine") == pytest.approx(0.015, rel=1e-4)
    tripled = reach(steps=2, step_size=0.01, schedule=lambda done: 3.0)
    assert tripled == pytest.approx(0.06, rel=1e-4)
    # With momentum an alternating gradient averages out, a steady one does not.
    assert reach(steps=4, step_size=0.01, momentum=1.0) == pytest.approx(0.04, rel=1e-4)


def test_momentum_is_that_of_dong_et_al():
    model, weights, x, y = problem(low=0.3, high=0.7)
    decay, size, epsilon = 0.7, 0.02, 0.06
    z, velocity = np.asarray(x, np.float64), 0.0
    for _ in range(5):
        gradient = _reference_gradient(weights, z, np.asarray(y))
        size_of = np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
        velocity = decay * velocity + gradient / size_of
        z = np.clip(z + size * np.sign(velocity), x - epsilon, x + epsilon)
    result = pgd(
        model, x, y, threat=Threat("linf", epsilon), steps=5, step_size=size, momentum=decay
    )
    np.testing.assert_allclose(result.x_adv, z, atol=2e-6)


def test_kl_needs_a_start_and_moves_the_prediction():
    model, _, x, y = problem()
    with pytest.raises(ValueError, match="no gradient at the clean input"):
        fgsm(model, x, y, threat=Threat("linf", 0.1), loss="kl")
    # The default generator's draws: how far KL gets depends on the start.
    key = jax.random.key(7)
    moved = pgd(model, x, y, threat=Threat("linf", 0.3), loss="kl", key=key, steps=10)
    clean, there = jax.nn.log_softmax(predict(model, x)), predict(model, moved.x_adv)
    away = jnp.sum(jnp.exp(clean) * (clean - jax.nn.log_softmax(there)), axis=1)
    assert float(away.mean()) > 0.5
