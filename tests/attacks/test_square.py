"""Square Attack: closed forms, its published shapes in NumPy, and AutoAttack's own on one MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, predict
from steinnorm.attacks._square_proposals import sides_of
from steinnorm.attacks.square import _size_factor, square
from tests.attacks.problems import (
    CLASSES,
    EXAMPLES,
    companions,
    draws,
    linear,
    problem,
)

KEY = jax.random.key(7, impl="rbg")  # the default generator compiles for long


def _margins(weights, x, y):
    """Clean margins to the wrong classes and their weights, (B, K - 1) and (B, K - 1, D)."""
    logits = np.asarray(x, np.float64).reshape(len(x), -1) @ weights
    wrong = np.array([[k for k in range(weights.shape[1]) if k != label] for label in y])
    rows = np.arange(len(y))[:, None]
    margin = logits[rows, np.asarray(y)[:, None]] - logits[rows, wrong]
    return margin, weights.T[wrong] - weights.T[np.asarray(y)][:, None]


def _smallest(weights, x, y, norm):
    """The least norm that fools a linear model, away from the box."""
    margin, normal = _margins(weights, x, y)
    size = np.abs(normal).sum(-1) if norm == "linf" else np.sqrt((normal**2).sum(-1))
    return (margin / size).min(axis=1)


def _flat(x):
    return jnp.asarray(np.asarray(x).reshape(len(x), -1))


@pytest.mark.parametrize(("norm", "enough"), [("linf", 1.03), ("l2", 2.5)])
def test_a_linear_model_falls_at_its_known_distance_and_not_before(norm, enough):
    # Single features are intervals of length 1 in the end, so that Linf finds the very corner;
    # bumps of the L2 attack are three wide and do not fit random weights.  Two classes, because
    # the largest of two wrong logits has local maxima.
    _, weights, x, _ = problem(low=0.35, high=0.65)
    weights = weights[:, :2]
    model = jax.tree_util.Partial(linear, jnp.asarray(weights, jnp.float32))
    y = jnp.argmax(predict(model, x), axis=1)
    smallest = _smallest(weights, x, y, norm)
    for i in range(3):
        one, label = _flat(x)[i : i + 1], y[i : i + 1]
        for factor, falls in ((0.98, False), (enough, True)):
            threat = Threat(norm, float(factor * smallest[i]))
            result = square(model, one, label, threat=threat, key=KEY, queries=1000)
            assert bool(result.success.all()) == falls


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.0, 0.03, 0.5, 3.0])
def test_ball_and_box_are_kept(norm, epsilon):
    model, _, x, y = problem(seed=1)
    result = square(model, x, y, threat=Threat(norm, epsilon), key=KEY, queries=60)
    delta = np.asarray(result.x_adv - x, np.float64).reshape(EXAMPLES, -1)
    sizes = np.abs(delta).max(axis=1) if norm == "linf" else np.sqrt((delta**2).sum(axis=1))
    assert sizes.max() <= epsilon + 1e-6
    assert result.max_norm == pytest.approx(sizes.max(), abs=1e-6)
    assert result.min >= 0
    assert result.max <= 1
    assert result.nan_count == 0
    assert result.zero_gradients == 0
    if norm == "linf" and epsilon < 1:  # every value is at the ball's or the box's edge
        z = np.asarray(result.x_adv)
        edge = np.isclose(np.abs(z - x), epsilon, atol=1e-6) | (z == 0) | (z == 1)
        assert edge.all()


def _bump(height, width):
    """Algorithm 3's pyramid: ever larger rectangles, each lower than the one before."""
    bump = np.zeros((height, width))
    for k in range(max(height // 2, width // 2) + 1):
        for i in range(height):
            for j in range(width):
                if abs(i - height // 2) <= k and abs(j - width // 2) <= k:
                    bump[i, j] += 1 / (k + 1) ** 2
    return bump / np.sqrt((bump**2).sum())


def _still(x):
    """A model that nothing changes."""
    return jnp.zeros((x.shape[0], 2), x.dtype)


def test_euclidean_start_is_the_published_grid_of_bumps_and_dents():
    x = jnp.full((3, 26, 26, 2), 0.5)
    y = jnp.zeros((3,), jnp.int32)
    result = square(_still, x, y, threat=Threat("l2", 0.5), key=KEY, queries=1)
    delta = np.asarray(result.x_adv, np.float64) - 0.5
    assert not delta[:, 25].any()  # five tiles of five, centred, leave the last row over
    tile = np.vstack([_bump(2, 5), -_bump(3, 5)]) / np.sqrt(2)
    tile *= 0.5 / np.sqrt(5 * 5 * 2)  # all tiles and channels share the radius
    found = set()
    for b, i, j, c in np.ndindex(3, 5, 5, 2):
        piece = delta[b, 5 * i : 5 * i + 5, 5 * j : 5 * j + 5, c]
        fits = [
            (sign, turned)
            for sign in (1, -1)
            for turned in (False, True)
            if np.allclose(piece, sign * (tile.T if turned else tile), atol=1e-6)
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) == 4


def test_linf_start_is_stripes():
    x = jnp.full((4, 3, 4, 9, 2), 0.5)
    y = jnp.zeros((4,), jnp.int32)
    result = square(_still, x, y, threat=Threat("linf", 0.25), key=KEY, queries=1)
    delta = np.asarray(result.x_adv - x)
    np.testing.assert_allclose(np.abs(delta), 0.25, atol=1e-6)
    grid = delta.reshape(4, -1, 9, 2)
    np.testing.assert_array_equal(grid, np.broadcast_to(grid[:, :1], grid.shape))
    signs = np.sign(grid[:, 0])
    assert len({row.tobytes() for row in signs}) == 4  # each example its own
    assert all(-1 < row.mean() < 1 for row in signs)


def test_squares_reach_the_last_row_and_column():
    # Published code draws corners from [0, size - side), so that this pixel stays as it started.
    weights = np.zeros((25, 2), np.float32)
    weights[-1, 1] = 1.0
    model = jax.tree_util.Partial(
        lambda w, x: linear(w, x) + jnp.array([[0.55, 0.0]]), jnp.asarray(weights)
    )
    x = jnp.full((16, 5, 5, 1), 0.5)
    y = jnp.zeros((16,), jnp.int32)
    start = square(model, x, y, threat=Threat("linf", 0.1), key=KEY, queries=1)
    assert 0 < int(start.success.sum()) < 16  # else the test shows nothing
    result = square(model, x, y, threat=Threat("linf", 0.1), key=KEY, queries=300)
    assert result.success.all()


def test_sizes_follow_the_published_schedule():
    halvings = [(0, 0), (10, 0), (11, 1), (51, 2), (201, 3), (501, 4), (1001, 5), (2001, 6)]
    halvings += [(4001, 7), (6001, 8), (8000, 8), (8001, 9)]
    for query, times in halvings:
        assert _size_factor(query, 10_000) == 0.5**times
    assert _size_factor(10, 500) == _size_factor(200, 10_000) == 0.25  # rescaled to fewer queries
    # sqrt(0.8 * 32 * 32) = 28.6; bumps are odd and at least three wide; cubes; intervals
    assert sides_of(0.8, (32, 32), "linf") == (29, 29)
    assert sides_of(0.4, (32, 32), "l2") == (21, 21)
    assert sides_of(0.001, (32, 32), "linf") == (1, 1)
    assert sides_of(0.001, (32, 32), "l2") == (3, 3)
    assert sides_of(0.8, (10, 10, 10), "linf") == (9, 9, 9)
    assert sides_of(0.8, (2, 50, 50), "linf") == (2, 16, 16)
    assert sides_of(0.1, (50,), "linf") == (5,)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        ("linf", (12, 2)),
        ("linf", (3, 4, 5, 2)),
        ("l2", (3, 4, 5, 2)),
    ],
)
def test_any_number_of_axes(norm, shape):
    # Unlike axes, so that one in the wrong place does not go unseen.
    generator = np.random.default_rng(5)
    x = generator.uniform(0.3, 0.7, size=(4, *shape)).astype(np.float32)
    weights = np.abs(generator.normal(size=(x[0].size, 1))).astype(np.float32)
    weights = np.concatenate([0 * weights, weights / weights.sum()], axis=1)
    model = jax.tree_util.Partial(
        lambda w, x: linear(w, x) - jnp.array([[0.0, 0.9]]), jnp.asarray(weights)
    )
    y = jnp.zeros((4,), jnp.int32)  # class 1 wants every value at 0.9 or more, on average
    result = square(model, x, y, threat=Threat(norm, 20.0), key=KEY, queries=400)
    assert result.x_adv.shape == x.shape
    if norm == "linf":
        assert result.success.all()
    mean = np.asarray(result.x_adv).reshape(4, -1) @ weights[:, 1]
    clean = x.reshape(4, -1) @ weights[:, 1]
    assert (mean > clean + 0.1).all()


def test_single_logit():
    _, weights, x, _ = problem()
    one = jnp.asarray(weights[:, :1], jnp.float32)
    model = jax.tree_util.Partial(linear, one)
    y = (linear(one, x)[:, 0] > 0).astype(jnp.int32)
    result = square(model, x, y, threat=Threat("linf", 1.0), key=KEY, queries=200)
    wrong = (linear(one, result.x_adv)[:, 0] > 0).astype(jnp.int32) != y
    np.testing.assert_array_equal(result.success, wrong)
    assert result.success.any()


def test_an_example_is_as_it_was_if_broken_and_does_not_see_who_else_is_left():
    model, _, x, y = problem()
    x, y = jnp.concatenate([x] * 3), jnp.concatenate([y] * 3)  # 18: sizes 18, 9
    threat = Threat("linf", 0.12)
    settings = {"threat": threat, "key": KEY, "queries": 120}
    everyone = square(model, x, y, **settings)
    assert 0 < int(everyone.success.sum()) < 18
    broken = np.arange(18) % 4 != 1
    some = square(model, x, jnp.where(broken, (y + 1) % CLASSES, y), **settings)
    np.testing.assert_array_equal(some.x_adv[broken], x[broken])
    np.testing.assert_array_equal(some.x_adv[~broken], everyone.x_adv[~broken])
    assert some.success[broken].all()
    # In a batch as a whole nobody leaves, and none of that holds.
    joint = square(model, x, y, batch_dependent=True, **settings)
    assert np.abs(np.asarray(joint.x_adv - everyone.x_adv)).max() > 1e-3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_keys_reproduce_and_restarts_help(norm):
    model, _, x, y = problem()

    def once(seed, **extra):
        threat = Threat(norm, 0.1 if norm == "linf" else 0.9)
        return square(model, x, y, threat=threat, key=jax.random.key(seed), queries=20, **extra)

    np.testing.assert_array_equal(once(1).x_adv, once(1).x_adv)
    assert np.abs(np.asarray(once(1).x_adv - once(2).x_adv)).max() > 1e-3
    assert bool(jnp.all(once(1, restarts=4).success | ~once(1).success))


@pytest.mark.filterwarnings("ignore::steinnorm.attacks.BatchDependenceWarning")
def test_what_is_kept_of_a_batch_that_hangs_together_never_gets_better_for_it():
    # Examples taken from several proposals make a batch that no query ever saw.
    x = draws(40, 2, 2, 1)
    y = jnp.argmax(predict(companions, x), axis=1)
    shares = []
    for queries in (1, 10, 30, 90):
        result = square(
            companions,
            x,
            y,
            threat=Threat("linf", 0.15),
            key=KEY,
            queries=queries,
            rescale_schedule=False,  # so that each run continues the one before
        )
        again = jnp.argmax(jax.jit(companions)(result.x_adv), axis=1) != y
        np.testing.assert_array_equal(result.success, again)
        shares.append(float(again.mean()))
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] + 0.1


def _per_pixel(weights, x):
    return jnp.concatenate([x[..., :1] * weights, 0.0 * x[..., :1] + 0.5], axis=-1)


def test_label_maps():
    model = jax.tree_util.Partial(_per_pixel, jnp.ones(()))
    x = draws(3, 5, 6, 1)
    y = jnp.argmax(predict(model, x), axis=-1).at[0, :2].set(255)
    one = square(model, x, y, threat=Threat("linf", 0.2), key=KEY, queries=100)
    assert one.success.shape == (3, 5, 6)
    assert not one.success[0, :2].any()
    reachable = np.abs(np.asarray(x[..., 0]) - 0.5) < 0.2
    assert not np.asarray(one.success)[~reachable].any()
    assert np.asarray(one.success).sum() > 0.5 * (reachable & np.asarray(y != 255)).sum()
    shares = [
        float(
            square(
                model,
                x,
                y,
                threat=Threat("linf", 0.2),
                key=KEY,
                queries=queries,
                rescale_schedule=False,
            ).success.mean()
        )
        for queries in (1, 20, 60)
    ]
    assert shares == sorted(shares)


def test_masked_gradients_do_not_matter():
    _, weights, x, y = problem()

    def stairs(weights, x):
        return jax.lax.stop_gradient(jnp.round(4 * linear(weights, x)) / 4)

    model = jax.tree_util.Partial(stairs, jnp.asarray(weights, jnp.float32))
    y = jnp.argmax(predict(model, x), axis=1)
    result = square(model, x, y, threat=Threat("linf", 0.5), key=KEY, queries=200)
    assert result.success.all()


def test_states_radii_and_sizes_share_one_compilation():
    traces = []

    def counted(weights, x):
        traces.append(1)
        return linear(weights, x)

    _, weights, x, y = problem()
    for scale in (1.0, 2.0):
        model = jax.tree_util.Partial(counted, jnp.asarray(scale * weights, jnp.float32))
        for epsilon in (0.01, 0.02):
            square(model, x, y, threat=Threat("linf", epsilon), key=KEY, queries=60)
    assert len(traces) == 2  # the clean logits and the proposals'


def test_progress():
    model, _, x, y = problem()
    seen = []
    square(
        model,
        x,
        y,
        threat=Threat("linf", 0.001),
        key=KEY,
        queries=120,
        restarts=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(50, 240), (100, 240), (120, 240), (170, 240), (220, 240), (240, 240)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"p_init": 0.0}, "p_init"),
        ({"p_init": 1.5}, "p_init"),
        ({"loss": "hinge"}, "cross_entropy, margin"),
        ({"y": jnp.zeros((EXAMPLES,))}, "integer"),
        ({"x": jnp.full((EXAMPLES, 5, 5, 1), 2.0)}, "must lie in"),
    ],
)
def test_square_refuses(change, message):
    model, _, x, y = problem()
    arguments = {"x": x, "y": y, "threat": Threat("linf", 0.1), "key": KEY} | change
    with pytest.raises(ValueError, match=message):
        square(model, **arguments)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.008), ("l2", 0.2)])
def test_robust_accuracy_is_that_of_autoattack(norm, epsilon):
    torch = pytest.importorskip("torch", reason="a cross-check with AutoAttack's own code")
    peer = pytest.importorskip("pyautoattack.square", reason="a cross-check with its own code")
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    shapes = ((28 * 28, 32), (32,), (32, 5))
    a, b, c = (0.3 * generator.normal(size=shape).astype(np.float32) for shape in shapes)
    x = generator.uniform(size=(100, 28, 28, 1)).astype(np.float32)

    def mlp(weights, x):
        a, b, c = weights
        return jax.nn.relu((x - 0.5).reshape(x.shape[0], -1) @ a + b[None]) @ c

    def net(z):
        a_, b_, c_ = (torch.from_numpy(w) for w in (a, b, c))
        return torch.relu((z - 0.5).reshape(len(z), -1) @ a_ + b_) @ c_

    model = jax.tree_util.Partial(mlp, tuple(jnp.asarray(w) for w in (a, b, c)))
    y = np.array(jnp.argmax(predict(model, x), axis=1))
    ours = square(model, x, y, threat=Threat(norm, epsilon), key=KEY, queries=150)
    images, labels = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(y).long()
    theirs = peer.SquareAttack(
        net,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        n_queries=150,
        eps=epsilon,
        seed=0,
        device="cpu",
    ).perturb(images, labels)
    robust = float((net(theirs).argmax(1) == labels).float().mean())
    assert 0.1 < robust < 0.9
    assert 1 - float(ours.success.mean()) == pytest.approx(robust, abs=0.06)
