"""FAB: its projection against linear programming, closed forms, AutoAttack's own on one MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, linprog

from steinnorm.attacks import Threat, predict
from steinnorm.attacks._fab_projection import step_to_plane
from steinnorm.attacks.fab import fab
from tests.attacks.problems import (
    CLASSES,
    EXAMPLES,
    companions,
    draws,
    linear,
    problem,
)

KEY = jax.random.key(7, impl="rbg")  # the default generator compiles for long


def _linprog_step(at, normal, gap, low, high):
    """min t subject to |d| <= t, <w, d> = gap, low <= at + d <= high; None where there is none."""
    count = len(at)
    eye, ones = np.eye(count), np.ones((count, 1))
    found = linprog(
        np.r_[np.zeros(count), 1],
        A_ub=np.vstack([np.hstack([eye, -ones]), np.hstack([-eye, -ones])]),
        b_ub=np.zeros(2 * count),
        A_eq=np.r_[normal, 0][None],
        b_eq=[gap],
        bounds=[*zip(low - at, high - at, strict=True), (0, None)],
    )
    return found.x[:-1] if found.success else None


def _shortest_step(at, normal, gap, low, high):
    """d = clip(m w) with the multiplier m that meets the plane, in float64."""

    def step(m):
        return np.clip(m * normal, low - at, high - at)

    bound = np.sign(gap) * 1e6
    if abs(normal @ step(bound)) <= abs(gap):
        return None
    m = brentq(lambda m: normal @ step(m) - gap, *sorted((0, bound)), xtol=1e-14, rtol=1e-14)
    return step(m)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.0)])
def test_projection_is_the_shortest_step_there_is(norm, bounds):
    generator = np.random.default_rng(0)
    count, size = 60, 12
    at = generator.uniform(*bounds, size=(count, size))
    at[::4, :6] = generator.choice(bounds, size=at[::4, :6].shape)  # already at the box
    normal = generator.normal(size=(count, size)) * 10 ** generator.uniform(-3, 3, (count, 1))
    normal[1::3, 2:5] = 0
    reach = np.abs(normal).sum(axis=1)
    share = generator.uniform(-0.7, 0.7, size=count) * 10.0 ** -generator.integers(0, 4, count)
    gap = (bounds[1] - bounds[0]) * reach * share
    arrays = (jnp.asarray(a, jnp.float32) for a in (at, normal, gap))
    d = jax.jit(step_to_plane)(*arrays, Threat(norm, 1.0, bounds))
    d = np.asarray(d, np.float64)
    assert (at + d >= bounds[0] - 1e-6).all()
    assert (at + d <= bounds[1] + 1e-6).all()
    reference = _linprog_step if norm == "linf" else _shortest_step
    unreachable = 0
    for i in range(count):
        expected = reference(at[i], normal[i], gap[i], *bounds)
        gained = normal[i] @ d[i]
        if expected is None:  # then as near as the box lets it
            way = np.sign(normal[i] * gap[i])
            corner = np.where(way > 0, bounds[1], bounds[0]) - at[i]
            np.testing.assert_allclose(d[i], np.where(way == 0, 0, corner), atol=1e-6)
            unreachable += 1
            continue
        np.testing.assert_allclose(gained, gap[i], rtol=1e-4, atol=1e-6 * reach[i])
        order = np.inf if norm == "linf" else 2
        length = np.linalg.norm(expected, order)
        np.testing.assert_allclose(np.linalg.norm(d[i], order), length, rtol=1e-4, atol=1e-6)
        if norm == "l2":  # the solution is the only one
            np.testing.assert_allclose(d[i], expected, atol=1e-5)
    assert 3 < unreachable < count / 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_of_degenerate_planes_is_finite(norm):
    at = jnp.full((4, 3), 0.5)
    normal = jnp.array([[0.0, 0, 0], [1e-30, 0, 0], [1.0, 1e-38, 0], [1e30, 1e30, 0]])
    d = step_to_plane(at, normal, jnp.array([1.0, 1e-31, 0.1, 0.0]), Threat(norm, 1.0))
    np.testing.assert_allclose(d, [[0, 0, 0], [0.1, 0, 0], [0.1, 0, 0], [0, 0, 0]], atol=1e-2)
    assert not np.asarray(d)[[0, 3]].any()


def _two_classes(low, high):
    _, weights, x, _ = problem(low=low, high=high)
    weights = weights[:, :2]
    model = jax.tree_util.Partial(linear, jnp.asarray(weights, jnp.float32))
    return model, weights, x, jnp.argmax(predict(model, x), axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.0, 0.2)])
def test_finds_the_nearest_point_of_a_linear_model(norm, low, high):
    # Near the box's lower bound the closed form is that of the constrained problem.
    model, weights, x, y = _two_classes(low, high)
    result = fab(model, x, y, threat=Threat(norm, 20.0), steps=30)
    assert result.success.all()
    reference = _linprog_step if norm == "linf" else _shortest_step
    for i in range(EXAMPLES):
        flat = np.asarray(x[i], np.float64).ravel()
        normal = (weights[:, 1] - weights[:, 0]) * (1 - 2 * int(y[i]))
        order = np.inf if norm == "linf" else 2
        nearest = np.linalg.norm(reference(flat, normal, -flat @ normal, 0.0, 1.0), order)
        found = np.linalg.norm(np.asarray(result.x_adv[i], np.float64).ravel() - flat, order)
        assert nearest * (1 - 1e-5) <= found <= 1.01 * nearest
        if low > 0:
            size = np.abs(normal).sum() if norm == "linf" else np.sqrt((normal**2).sum())
            assert nearest == pytest.approx(-flat @ normal / size, rel=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radius_decides_which_of_the_nearest_points_count(norm):
    model, weights, x, y = problem(low=0.3, high=0.7)
    logits = np.asarray(x, np.float64).reshape(EXAMPLES, -1) @ weights
    rows = np.arange(EXAMPLES)
    margin = logits[rows, y][:, None] - logits
    normal = weights.T[None] - weights.T[np.asarray(y)][:, None]
    size = np.abs(normal).sum(-1) if norm == "linf" else np.sqrt((normal**2).sum(-1))
    smallest = np.where(margin > 0, margin / np.where(size > 0, size, 1), np.inf).min(axis=1)
    for i in range(EXAMPLES):
        for factor in (0.98, 1.02):
            threat = Threat(norm, float(factor * smallest[i]))
            result = fab(model, x, y, threat=threat, steps=30)
            assert bool(result.success[i]) == (factor > 1)
            # what is not broken is as it was, and what is lies in the ball
            assert bool((result.x_adv[i] == x[i]).all()) == (factor < 1)
            assert result.max_norm <= threat.epsilon + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.0, 0.03, 0.5, 3.0])
def test_ball_and_box_are_kept(norm, epsilon):
    model, _, x, y = problem(seed=1)
    result = fab(model, x, y, threat=Threat(norm, epsilon), key=KEY, steps=10, restarts=2)
    delta = np.asarray(result.x_adv - x, np.float64).reshape(EXAMPLES, -1)
    sizes = np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))
    assert sizes.max() <= epsilon + 1e-6
    assert result.max_norm == pytest.approx(sizes.max(), abs=1e-6)
    assert result.min >= 0
    assert result.max <= 1
    assert result.nan_count == 0
    assert result.success.all() == (epsilon >= 0.5)


def test_other_bounds():
    model, _, x, y = problem(low=-1.0, high=1.0)
    threat = Threat("linf", 2.0, bounds=(-1.0, 1.0))
    result = fab(model, x, y, threat=threat, steps=10)
    assert result.success.all()
    assert result.min < -0.5


@pytest.mark.parametrize(("shape", "outputs"), [((30,), 1), ((3, 4, 5, 2), 2)])
def test_features_volumes_and_a_single_logit(shape, outputs):
    generator = np.random.default_rng(2)
    x = generator.uniform(size=(4, *shape)).astype(np.float32)
    weights = generator.normal(size=(x[0].size, 1)).astype(np.float32)
    weights = weights if outputs == 1 else np.concatenate([0 * weights, weights], axis=1)
    model = jax.tree_util.Partial(linear, jnp.asarray(weights))
    y = jnp.argmax(predict(model, x), axis=1)
    result = fab(model, x, y, threat=Threat("l2", 20.0), steps=10)
    assert result.x_adv.shape == x.shape
    assert result.success.all()
    flat = (x.reshape(4, -1) @ weights)[:, -1]
    lengths = np.sqrt(((np.asarray(result.x_adv) - x).reshape(4, -1) ** 2).sum(axis=1))
    assert (lengths >= np.abs(flat) / np.sqrt((weights[:, -1] ** 2).sum()) * (1 - 1e-5)).all()


def test_broken_examples_are_left_alone():
    model, _, x, y = problem()
    x, y = jnp.concatenate([x] * 3), jnp.concatenate([y] * 3)
    broken = np.arange(18) % 4 != 1
    labels = jnp.where(broken, (y + 1) % CLASSES, y)
    threat = Threat("linf", 1.0)
    some = fab(model, x, labels, threat=threat, steps=5)
    np.testing.assert_array_equal(some.x_adv[broken], x[broken])
    everyone = fab(model, x, y, threat=threat, steps=5)
    np.testing.assert_allclose(some.x_adv[~broken], everyone.x_adv[~broken], atol=1e-6)
    assert some.success.all()


def _plateau(x):
    """Class 1 is near where values are off 0.5 by 0.02 or more, and until then out of sight."""
    off = jnp.maximum(jnp.abs(x - 0.5) - 0.02, 0.0).reshape(x.shape[0], -1)
    lead = 40 * jnp.sum(off, axis=1, keepdims=True) - 1.0
    return jnp.concatenate([jnp.zeros_like(lead), lead], axis=1)


def test_restarts_leave_plateaus_and_come_from_the_key():
    x, y = jnp.full((4, 3, 3, 1), 0.5), jnp.zeros((4,), jnp.int32)

    def once(seed=None, **extra):
        key = None if seed is None else jax.random.key(seed, impl="rbg")
        return fab(_plateau, x, y, threat=Threat("linf", 0.08), key=key, steps=10, **extra)

    assert not once().success.any()
    assert not once(1).success.any()  # the first start is x, with a key too
    several = once(1, restarts=2)
    assert several.success.all()
    np.testing.assert_array_equal(several.x_adv, once(1, restarts=2).x_adv)
    assert np.abs(np.asarray(several.x_adv - once(2, restarts=2).x_adv)).max() > 1e-4


def test_classes_are_tried_in_the_order_of_their_logits():
    def deaf(x):  # class 1 is likelier than 2, but nothing leads there
        lead = 2 * jnp.mean(x.reshape(x.shape[0], -1), axis=1, keepdims=True) - 1.0
        return jnp.concatenate([0 * lead + 1.5, 0 * lead + 1.4, lead, 0 * lead - 9.0], axis=1)

    x, y = 0.5 * draws(4, 2, 2, 1), jnp.zeros((4,), jnp.int32)
    hits = [
        bool(fab(deaf, x, y, threat=Threat("linf", 1.0), steps=3, target_classes=n).success.any())
        for n in (1, 2, 9)
    ]
    assert hits == [False, False, False]  # the box is in the way: no logit above 1.0
    higher = Threat("linf", 2.0, bounds=(0.0, 2.0))
    hits = [
        int(fab(deaf, x, y, threat=higher, steps=3, target_classes=n).success.sum())
        for n in (1, 2, 9)
    ]
    assert hits == [0, 4, 4]


def test_flat_models_are_reported():
    def still(x):
        return jnp.zeros((x.shape[0], 2), x.dtype) + jnp.array([[2.0, 0.0]])

    x = draws(3, 2, 2, 1)
    result = fab(still, x, jnp.zeros((3,), jnp.int32), threat=Threat("linf", 0.1), steps=2)
    assert result.zero_gradients == 3
    assert not result.success.any()
    np.testing.assert_array_equal(result.x_adv, x)


def test_states_and_radii_share_one_compilation():
    traces = []

    def counted(weights, x):
        traces.append(1)
        return linear(weights, x)

    _, weights, x, y = problem()
    for scale in (1.0, 2.0):
        model = jax.tree_util.Partial(counted, jnp.asarray(scale * weights, jnp.float32))
        for epsilon in (0.01, 0.02):
            fab(model, x, y, threat=Threat("linf", epsilon), steps=3, alpha_max=10 * epsilon)
    assert len(traces) == 3  # the clean logits; in the step, the gradient and where it leads


def test_progress():
    model, _, x, y = problem()
    seen = []
    threat = Threat("linf", 0.001)
    fab(model, x, y, threat=threat, steps=30, on_progress=lambda *done: seen.append(done))
    assert seen == [(25, 60), (55, 60), (60, 60)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"target_classes": 0}, "at least 1"),
        ({"restarts": 2}, "key"),
        ({"alpha_max": 1.5}, "alpha_max"),
        ({"eta": 0.9}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"beta": 0.0}, "beta"),
        ({"batch_dependent": True}, "apgd or square"),
        ({"y": jnp.zeros((EXAMPLES,))}, "integer"),
        ({"x": jnp.full((EXAMPLES, 5, 5, 1), 2.0)}, "must lie in"),
    ],
)
def test_fab_refuses(change, message):
    model, _, x, y = problem()
    arguments = {"x": x, "y": y, "threat": Threat("linf", 0.1)} | change
    with pytest.raises(ValueError, match=message):
        fab(model, **arguments)


def test_fab_refuses_label_maps_and_batches_that_hang_together():
    x = draws(6, 2, 2, 1)
    threat = Threat("linf", 0.1)
    with pytest.raises(ValueError, match="label per pixel"):
        fab(lambda x: x * jnp.ones((1, 1, 1, 3)), x, jnp.zeros((6, 2, 2), int), threat=threat)
    with pytest.raises(ValueError, match="companions"):
        fab(companions, x, jnp.zeros((6,), int), threat=threat)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.2)])
def test_robust_accuracy_is_that_of_autoattack(norm, epsilon):
    torch = pytest.importorskip("torch", reason="a cross-check with AutoAttack's own code")
    peer = pytest.importorskip("pyautoattack.fab_pt", reason="a cross-check with its own code")
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    shapes = ((100, 32), (32,), (32, 5))
    a, b, c = (0.3 * generator.normal(size=shape).astype(np.float32) for shape in shapes)
    x = generator.uniform(size=(100, 10, 10, 1)).astype(np.float32)

    def mlp(weights, x):
        a, b, c = weights
        return jax.nn.relu((x - 0.5).reshape(x.shape[0], -1) @ a + b[None]) @ c

    def net(z):
        a_, b_, c_ = (torch.from_numpy(w) for w in (a, b, c))
        return torch.relu((z - 0.5).reshape(len(z), -1) @ a_ + b_) @ c_

    model = jax.tree_util.Partial(mlp, tuple(jnp.asarray(w) for w in (a, b, c)))
    y = np.array(jnp.argmax(predict(model, x), axis=1))
    ours = fab(model, x, y, threat=Threat(norm, epsilon), steps=20)
    images, labels = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(y).long()
    theirs = peer.FABAttack_PT(
        net,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        n_iter=20,
        eps=epsilon,
        targeted=True,
        n_target_classes=4,
        device="cpu",
    ).perturb(images, labels)
    robust = (net(theirs).argmax(1) == labels).numpy()
    assert 0.1 < robust.mean() < 0.9
    # It draws no random numbers, so that example by example the two agree, but for rounding.
    assert (robust != np.asarray(ours.success)).mean() >= 0.97
