"""Auto-PGD against an independent implementation in NumPy, and what it must never do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, pgd, predict
from steinnorm.attacks._survivors import WorstInputs, pad_indices, padded_size
from steinnorm.attacks.apgd import _checkpoints
from tests.attacks.problems import KEY, companions, draws, problem

WAVES = np.random.default_rng(5).normal(size=(25, 40)) * 2
OUT = np.random.default_rng(6).normal(size=(40, 5))


def _bumpy(parameters, x):
    """A network whose loss has many maxima."""
    waves, out = parameters
    return jnp.sin(x.reshape(x.shape[0], -1) @ waves) @ out


def _bumps(count=60):
    model = jax.tree_util.Partial(_bumpy, (jnp.float32(WAVES), jnp.float32(OUT)))
    x = draws(count, 5, 5, 1)
    return model, x, jnp.argmax(predict(model, x), axis=1)


def _loss_and_gradient(x, y):
    """Cross-entropy of the bumpy network and its gradient, one example, float64."""
    inner = x.ravel() @ WAVES
    logits = np.sin(inner) @ OUT
    p = np.exp(logits - logits.max())
    p /= p.sum()
    loss = -np.log(p[y])
    p[y] -= 1
    gradient = WAVES @ (np.cos(inner) * (OUT @ p))
    return loss, gradient.reshape(x.shape), int(np.argmax(logits)) != y


def _reference(x, y, *, norm, epsilon, steps):
    """Algorithm 1 of Croce & Hein 2020 for one example, from ``x`` itself; the points seen."""

    def project(z):
        delta = z - x
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        else:
            delta = delta * min(1, epsilon / max(np.sqrt((delta**2).sum()), 1e-30))
        return np.clip(x + delta, 0, 1)

    def direction(g):
        return np.sign(g) if norm == "linf" else g / np.sqrt((g**2).sum())

    eta = 2 * epsilon
    at, before = x.copy(), x.copy()
    loss, gradient, wrong = _loss_and_gradient(at, y)
    best, best_loss, best_gradient = at, loss, gradient
    seen = [(wrong, loss, at)]
    gains, last_best, was_reduced = 0, loss, True
    width, since = max(int(0.22 * steps), 1), 0
    for k in range(steps):
        inertia = 0.75 if k else 1.0
        ahead = project(at + eta * direction(gradient))
        moved = project(at + inertia * (ahead - at) + (1 - inertia) * (at - before))
        before, at = at, moved
        new_loss, gradient, wrong = _loss_and_gradient(at, y)
        gains += new_loss > loss
        loss = new_loss
        seen.append((wrong, loss, at))
        if loss > best_loss:
            best, best_loss, best_gradient = at, loss, gradient
        since += 1
        if since == width:
            reduce = gains <= 0.75 * width or (not was_reduced and last_best >= best_loss)
            if reduce:
                eta, at, gradient, loss = eta / 2, best, best_gradient, best_loss
            was_reduced, last_best, gains, since = reduce, best_loss, 0, 0
            width = max(width - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return max(seen, key=lambda s: (s[0], s[1]))[2]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.004), ("l2", 0.01)])
def test_it_is_the_published_algorithm_step_for_step(norm, epsilon):
    # From the input itself and with small radii, where rounding cannot send it elsewhere.
    model, x, y = _bumps(12)
    result = apgd(model, x, y, threat=Threat(norm, epsilon), steps=25, batch_dependent=False)
    for i in range(12):
        image = np.asarray(x[i], np.float64)
        expected = _reference(image, int(y[i]), norm=norm, epsilon=epsilon, steps=25)
        np.testing.assert_allclose(result.x_adv[i], expected, atol=1e-4)


def test_checkpoints_are_the_published_ones():
    # p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 (Croce & Hein 2020, section 3.1)
    assert list(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize(
    ("norm", "epsilon", "loss"),
    [("linf", 0.03, "cross_entropy"), ("linf", 0.03, "targeted_dlr"), ("l2", 0.1, "dlr")],
)
def test_never_weaker_than_pgd_and_always_inside(norm, epsilon, loss):
    model, x, y = _bumps()
    threat = Threat(norm, epsilon)
    strong = apgd(model, x, y, threat=threat, key=KEY, steps=40, loss=loss)
    plain = pgd(model, x, y, threat=threat, key=KEY, steps=40)
    strong.check(threat)
    assert strong.max_norm == pytest.approx(threat.epsilon, rel=1e-3)
    assert 0 < int(plain.success.sum()) < 60
    # Another loss finds other examples.
    assert int(strong.success.sum()) >= int(plain.success.sum()) - 2


def test_examples_leave_the_batch_without_changing_the_others():
    # The same without dropping: a model that is said to depend on its batch keeps all of it.
    model, x, y = _bumps()
    threat = Threat("linf", 0.03)
    all_at_once = apgd(model, x, y, threat=threat, key=KEY, steps=12, batch_dependent=False)
    for part in (slice(0, 20), slice(20, 60)):
        rows = np.zeros(60, bool)
        rows[part] = True
        # Already wrong examples are never touched, so those are a way to leave some out.
        labels = jnp.where(rows, y, (y + 1) % 5)
        some = apgd(model, x, labels, threat=threat, key=KEY, steps=12, batch_dependent=False)
        np.testing.assert_allclose(some.x_adv[part], all_at_once.x_adv[part], atol=1e-6)
        np.testing.assert_array_equal(some.x_adv[~rows], x[~rows])


def test_restarts_and_start():
    model, x, y = _bumps()
    settings = {"threat": Threat("linf", 0.02), "steps": 5}
    one = apgd(model, x, y, key=KEY, **settings)
    many = apgd(model, x, y, key=KEY, restarts=4, **settings)
    assert bool(jnp.all(many.success | ~one.success))
    assert int(many.success.sum()) > int(one.success.sum())
    again = apgd(model, x, y, start=many.x_adv, **settings)
    assert bool(jnp.all(again.success | ~many.success))


@pytest.mark.filterwarnings("ignore::steinnorm.attacks.BatchDependenceWarning")
def test_a_batch_that_hangs_together_is_kept_as_a_whole():
    x = draws(40, 2, 2, 1)
    y = jnp.argmax(predict(companions, x), axis=1)
    result = apgd(companions, x, y, threat=Threat("linf", 0.1), key=KEY, steps=20)
    wrong = jnp.argmax(jax.jit(companions)(result.x_adv), axis=1) != y
    np.testing.assert_array_equal(result.success, wrong)
    plain = pgd(companions, x, y, threat=Threat("linf", 0.1), key=KEY, steps=20)
    assert int(result.success.sum()) >= int(plain.success.sum()) > 0


def test_two_classes_and_a_single_logit():
    model, _, x, _ = problem()
    pair = jax.tree_util.Partial(lambda model, x: model(x)[:, :2], model)
    single = jax.tree_util.Partial(lambda model, x: model(x)[:, 1:2] - model(x)[:, :1], model)
    y = jnp.argmax(predict(pair, x), axis=1)
    threat = Threat("linf", 0.1)
    a = apgd(pair, x, y, threat=threat, steps=10, loss="margin")
    b = apgd(single, x, y, threat=threat, steps=10, loss="targeted_margin")
    assert a.success.any()
    np.testing.assert_array_equal(a.success, b.success)
    with pytest.raises(ValueError, match="dlr needs 3 logits, got 2; take the margin"):
        apgd(pair, x, y, threat=threat, loss="dlr")
    with pytest.raises(ValueError, match="targeted dlr needs 4 logits, got 3"):
        apgd(model, x, y, threat=threat, loss="targeted_dlr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"restarts": 2}, "pass a key"),
        ({"loss": "hinge"}, "cross_entropy, margin"),
        ({"loss": "targeted_margin", "target_classes": 0}, "target_classes"),
        ({"start": jnp.zeros((1, 2))}, "start must have the shape"),
    ],
)
def test_apgd_refuses(change, message):
    model, _, x, y = problem()
    with pytest.raises(ValueError, match=message):
        apgd(model, x, y, threat=Threat("linf", 0.1), **change)


def test_buckets():
    assert [padded_size(n, 128) for n in (128, 65, 64, 33, 9, 8, 1, 0)] == [
        128,
        128,
        64,
        64,
        16,
        8,
        8,
        8,
    ]
    assert [padded_size(n, 100) for n in (100, 51, 50, 26, 25, 13, 1)] == [
        100,
        100,
        50,
        50,
        25,
        13,
        13,
    ]
    assert [padded_size(n, 5) for n in (5, 1)] == [5, 5]
    np.testing.assert_array_equal(pad_indices(np.array([4, 7]), 4), [4, 7, 4, 4])


def test_the_worst_is_kept():
    kept = WorstInputs(jnp.zeros((3, 2)), jnp.zeros(3))
    kept.update(np.array([0, 2]), jnp.ones((4, 2)), jnp.array([0.5, 1.0, 9, 9]))
    np.testing.assert_array_equal(kept.share, [0.5, 0, 1])
    kept.update(np.array([0, 1]), 2 * jnp.ones((2, 2)), jnp.array([0.4, 0.0]), jnp.array([5.0, 5]))
    np.testing.assert_array_equal(kept.x[:, 0], [1, 2, 1])
    np.testing.assert_array_equal(kept.unbroken, [0, 1])
