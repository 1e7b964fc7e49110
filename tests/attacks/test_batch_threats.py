"""Threat models of batches against closed forms, float64 NumPy and the plain attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import AttackResult, LeftThreatError, Threat, fgsm, pgd, predict
from steinnorm.attacks.apgd import apgd
from steinnorm.attacks.batch_threats import (
    alone_in_batch,
    as_companions,
    companion,
    expected_over_companions,
    independent,
)
from tests.attacks.problems import KEY, draws

THREAT = Threat("linf", 0.05)


def centred(weights, share, x):
    """A linear model of what is left after a share of the batch's mean is taken off."""
    flat = x.reshape(x.shape[0], -1)
    return (flat - share * jnp.mean(flat, axis=0, keepdims=True)) @ weights


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def batch_problem(share=0.9, examples=4, features=6, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(features, classes))
    x = generator.uniform(0.2, 0.8, size=(examples, features)).astype(np.float32)
    logits = (x - share * x.mean(axis=0)) @ weights
    model = jax.tree_util.Partial(centred, jnp.asarray(weights, jnp.float32), jnp.float32(share))
    return model, weights, jnp.asarray(x), jnp.asarray(logits.argmax(axis=1), jnp.int32)


def own_gradient(weights, share, x, y, i):
    """d loss_i / d x_i and d loss_i / d x_j, j != i: (1 - share / B) W r and -share / B W r."""
    logits = ((x - share * x.mean(axis=0)) @ weights)[i]
    rest = softmax(logits)
    rest[y[i]] -= 1
    return (1 - share / len(x)) * weights @ rest, -share / len(x) * weights @ rest


def test_without_companions_independent_is_the_plain_attack():
    model, _, x, y = batch_problem(0.0)
    plain = fgsm(model, x, y, threat=THREAT)
    found = independent(fgsm, model, x, y, threat=THREAT)
    np.testing.assert_allclose(found.x_adv, plain.x_adv, atol=1e-7)
    np.testing.assert_array_equal(found.success, plain.success)
    assert found.max_norm == pytest.approx(plain.max_norm, abs=1e-7)
    assert (found.nan_count, found.zero_gradients) == (0, 0)
    # of every batch that was evaluated, which the clean companions are a part of
    assert found.min == pytest.approx(min(plain.min, float(x.min())), abs=1e-7)
    assert found.max == pytest.approx(max(plain.max, float(x.max())), abs=1e-7)


def test_without_companions_nothing_reaches_a_victim_through_them():
    model, _, x, y = batch_problem(0.0)
    found = companion(fgsm, model, x, y, threat=Threat("linf", 0.5))
    assert not found.success.any()
    assert found.zero_gradients == len(x) * (len(x) - 1)


@pytest.mark.parametrize("share", [0.9, 3.0])
def test_independent_follows_the_gradient_of_its_own_loss(share):
    model, weights, x, y = batch_problem(share)
    x64, labels = np.asarray(x, np.float64), np.asarray(y)
    found = independent(fgsm, model, x, y, threat=Threat("l2", 0.1))
    joint = fgsm(model, x, y, threat=Threat("l2", 0.1))
    for i in range(len(x)):
        gradient, _ = own_gradient(weights, share, x64, labels, i)
        expected = x64[i] + 0.1 * gradient / np.linalg.norm(gradient)
        np.testing.assert_allclose(found.x_adv[i], expected, atol=2e-6)
    # not the column of the joint gradient, which has what the others' losses make of x_i
    assert np.abs(np.asarray(found.x_adv - joint.x_adv)).max() > 1e-2


def test_companions_follow_the_gradient_of_the_victims_loss():
    model, weights, x, y = batch_problem(2.0)
    x64, labels = np.asarray(x, np.float64), np.asarray(y)
    for i in (0, 2, 3):
        found = companion(fgsm, model, x, y, threat=Threat("l2", 0.1), victims=[i])
        _, gradient = own_gradient(weights, 2.0, x64, labels, i)
        expected = x64 + 0.1 * gradient / np.linalg.norm(gradient)
        expected[i] = x64[i]
        np.testing.assert_allclose(found.x_adv, expected, atol=2e-6)
        np.testing.assert_array_equal(found.x_adv[i], x[i])


def test_success_is_that_of_each_victims_own_batch():
    model, weights, x, y = batch_problem(2.0, seed=3)
    found = independent(fgsm, model, x, y, threat=Threat("linf", 0.1))

    def right(x):
        return np.argmax((x - 2.0 * x.mean(axis=0)) @ weights, axis=1) == np.asarray(y)

    images = np.asarray(found.x_adv, np.float64)
    own = []
    for i in range(len(x)):
        whole = np.array(x, np.float64)
        whole[i] = images[i]
        own.append(not right(whole)[i])
    np.testing.assert_array_equal(found.success, own)
    assert 0 < sum(own) < len(own)
    assert (~right(images) != own).any()  # rows put together were never a batch


def test_companions_flip_a_victim_through_the_mean_alone():
    # Logits +-(x_i - mean) of the first value: the victim's 0.5 is 0.02 above the others' 0.48.
    def above(x):
        z = (x - jnp.mean(x, axis=0, keepdims=True))[:, :1]
        return jnp.concatenate([z, -z], axis=1)

    x = jnp.asarray(np.full((4, 6), 0.48), jnp.float32).at[2].set(0.5)
    y = jnp.asarray([1, 1, 0, 1], jnp.int32)
    near = companion(fgsm, above, x, y, threat=Threat("linf", 0.019), victims=[2])
    far = companion(fgsm, above, x, y, threat=Threat("linf", 0.021), victims=[2])
    np.testing.assert_array_equal(near.success, [False])
    np.testing.assert_array_equal(far.success, [True])
    np.testing.assert_allclose(far.x_adv[:, 0], [0.501, 0.501, 0.5, 0.501], atol=1e-6)
    assert far.max_norm == pytest.approx(0.021, abs=1e-6)


def test_the_batch_handed_back_is_that_of_the_worst_victim():
    model, _, x, y = batch_problem(3.0)
    wrong = jnp.asarray([False, False, True, True])  # from the start, so that none is worse
    y = jnp.where(wrong, (y + 1) % 3, y)
    found = companion(fgsm, model, x, y, threat=Threat("linf", 1e-4))
    np.testing.assert_array_equal(found.success, wrong)
    moved = np.asarray(found.x_adv != x).any(axis=1)
    np.testing.assert_array_equal(moved, [True, True, False, True])


def test_victims_and_models_share_one_compilation():
    traces = []

    def counted(weights, x):
        traces.append(x.shape)
        return centred(weights, 0.9, x)

    _, weights, x, y = batch_problem()
    for scale in (1.0, 2.0):
        model = jax.tree_util.Partial(counted, jnp.asarray(scale * weights, jnp.float32))
        for epsilon in (0.1, 0.2):
            threat = Threat("linf", epsilon)
            independent(pgd, model, x, y, threat=threat, key=KEY, steps=3, restarts=2)
            companion(pgd, model, x, y, threat=threat, key=KEY, steps=3, restarts=2)
    # the whole batch's forward pass; then a forward pass and a step of each of the two views
    assert traces == [x.shape] * 5


def test_every_attack_and_setting_passes_through():
    model, _, x, y = batch_problem(classes=2)
    seen = []
    common = {"threat": Threat("linf", 1.0), "target": 1 - y, "loss": "margin", "victims": [1, 2]}
    found = independent(
        functools.partial(pgd, steps=4),
        model,
        x,
        y,
        on_progress=lambda done, total: seen.append((done, total)),
        **common,
    )
    assert seen == [(1, 2), (2, 2)]
    np.testing.assert_array_equal(found.success, [True, True])
    for i in (1, 2):
        whole = predict(model, x.at[i].set(found.x_adv[i]))
        assert int(jnp.argmax(whole[i])) == 1 - int(y[i])
    np.testing.assert_array_equal(found.x_adv[0], x[0])
    through = companion(functools.partial(pgd, steps=4), model, x, y, **common)
    worst = int(np.flatnonzero((np.asarray(through.x_adv) == np.asarray(x)).all(axis=1))[0])
    after = jnp.argmax(predict(model, through.x_adv), axis=1)
    assert bool(through.success[worst - 1]) == (int(after[worst]) != int(y[worst]))


@pytest.mark.parametrize("view", [independent, companion])
def test_any_attack_will_do(view):
    # One step is the best there is against two linear logits, so that no attack differs from it.
    model, _, x, y = batch_problem(2.0, classes=2)
    threat = Threat("linf", 0.04)
    best, found = (
        view(attack, model, x, y, threat=threat, key=KEY, **settings)
        for attack, settings in ((fgsm, {}), (apgd, {"steps": 5}))
    )
    np.testing.assert_array_equal(found.success, best.success)
    assert 0 < int(best.success.sum()) < 4


def test_each_victim_has_its_own_randomness():
    still = jax.tree_util.Partial(lambda x: jnp.zeros((x.shape[0], 2), x.dtype))
    x, y = jnp.full((4, 6), 0.5), jnp.zeros(4, jnp.int32)
    found = independent(pgd, still, x, y, threat=THREAT, key=KEY, steps=1, step_size=0.05)
    assert len(np.unique(np.asarray(found.x_adv), axis=0)) == 4
    assert found.zero_gradients == 4


def test_an_attack_that_leaves_its_ball_fails_loudly():
    def cheat(logits_fn, x, y, *, threat, key):
        right = jnp.ones(y.shape, bool)
        return AttackResult(x + 0.2, right, 0.0, 0.0, 1.0, 0, 0)

    model, _, x, y = batch_problem(30.0)
    y = (y + 1) % 3  # wrong everywhere, so that only the ball can speak against it
    for view in (independent, companion):
        with pytest.raises(LeftThreatError, match=r"largest change 0\.2"):
            view(cheat, model, x, y, threat=THREAT)


def test_views_are_rows_of_the_whole_batch():
    model, weights, x, _ = batch_problem(2.0)
    x64 = np.asarray(x, np.float64)
    rows = np.random.default_rng(1).uniform(size=(2, 6))
    for i in (0, 1, 3):
        expected = []
        for row in rows:
            whole = x64.copy()
            whole[i] = row
            expected.append(((whole - 2.0 * whole.mean(axis=0)) @ weights)[i])
        view = alone_in_batch(model, x, i)
        for count in (1, 2):
            got = predict(view, jnp.asarray(rows[:count], jnp.float32))
            np.testing.assert_allclose(got, expected[:count], atol=2e-6)
        victim = jnp.asarray(rows[0], jnp.float32)
        others = jnp.asarray(np.delete(x64, i, axis=0), jnp.float32)
        shared = predict(as_companions(model, victim, i), others)
        np.testing.assert_allclose(shared, [expected[0]] * 3, atol=2e-6)


def test_expectation_over_companions_is_the_mean_of_probabilities():
    model, weights, x, _ = batch_problem(2.0)
    sets = np.random.default_rng(1).uniform(size=(2, 3, 6))
    example = np.asarray(x[:2], np.float64)
    expected = []
    for row in example:
        p = []
        for others in sets:
            whole = np.insert(others, 1, row, axis=0)
            p.append(softmax((whole - 2.0 * whole.mean(axis=0)) @ weights)[1])
        expected.append(np.log(np.mean(p, axis=0)))
    view = expected_over_companions(model, jnp.asarray(sets, jnp.float32), i=1)
    np.testing.assert_allclose(predict(view, x[:2]), expected, atol=2e-6)
    np.testing.assert_allclose(predict(view, x[:1]), expected[:1], atol=2e-6)


def test_an_attack_on_the_expectation_holds_in_batches_that_it_never_saw():
    model, _, x, y = batch_problem(examples=6, features=12)
    generator = np.random.default_rng(1)

    def sets(count):
        return jnp.asarray(generator.uniform(0.2, 0.8, size=(count, 5, 12)), jnp.float32)

    seen, unseen = sets(8), sets(32)
    i, threat = 2, Threat("linf", 0.1)
    view = expected_over_companions(model, seen, i=i)
    found = pgd(view, x[i : i + 1], y[i : i + 1], threat=threat, steps=10)
    assert found.max_norm == pytest.approx(0.1, abs=1e-6)

    def right(image):
        batches = [jnp.concatenate([s[:i], image[None], s[i:]]) for s in unseen]
        return np.mean([int(predict(model, batch)[i].argmax()) == int(y[i]) for batch in batches])

    assert right(found.x_adv[0]) < right(x[i]) - 0.3


def test_label_maps_and_single_logits():
    def per_pixel(x):
        return 8 * (x - jnp.mean(x, axis=(0, 1, 2), keepdims=True))  # (B, H, W, 1)

    x = draws(3, 2, 3, 1)
    y = np.array(predict(per_pixel, x).argmax(axis=-1), np.int32)
    y[0, 0, 0] = 255
    y = jnp.asarray(y)
    found = independent(fgsm, per_pixel, x, y, threat=Threat("linf", 1.0), victims=[0, 2])
    assert found.success.shape == (2, 2, 3)
    assert not found.success[0, 0, 0]
    assert found.success[1].any()
    through = companion(fgsm, per_pixel, x, y, threat=Threat("linf", 1.0))
    assert through.success.shape == (3, 2, 3)
    assert through.success.any()
    assert not through.success[0, 0, 0]


def test_what_is_refused():
    model, _, x, y = batch_problem()
    with pytest.raises(ValueError, match="batch of one"):
        companion(fgsm, model, x[:1], y[:1], threat=THREAT)
    assert independent(fgsm, model, x[:1], y[:1], threat=THREAT).success.shape == (1,)
    for victims in ([4], [-1], []):
        with pytest.raises(ValueError, match=r"\[0, 4\)"):
            independent(fgsm, model, x, y, threat=THREAT, victims=victims)
