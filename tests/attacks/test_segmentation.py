"""Losses per pixel against float64 NumPy, and attacks on label maps against closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import BatchDependenceWarning, Threat, pgd, predict
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks.apgd import run_apgd
from steinnorm.attacks.losses import per_example, per_label
from steinnorm.attacks.segmentation import SEA_LOSSES, _radius_schedule, sea, segpgd
from tests.attacks.problems import KEY

VOID = 255
SHAPE = (2, 2, 3, 4)  # B, H, W, K


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def at(values, y):
    return np.take_along_axis(values, y[..., None], axis=-1)[..., 0]


def np_cross_entropy(logits, y):
    return -np.log(at(softmax(logits), y))


def np_spherical(logits, y):
    return -at(logits, y) / np.sqrt((logits**2).sum(axis=-1))


def np_js(logits, y):
    """By the definition: half of both divergences from the mixture, summed over the classes."""
    p, q = softmax(logits), np.eye(logits.shape[-1])[y]
    m = (p + q) / 2
    from_q = np.where(q > 0, np.log(np.where(q > 0, q, 1) / m), 0) * q
    return 0.5 * (p * np.log(p / m) + from_q).sum(axis=-1)


def np_weights(name, right, step_fraction):
    if name == "js":
        return np.ones(right.shape)
    late = step_fraction / 2 if name == "segpgd" else 0.0
    return np.where(right, 1 - late, late)


PLAIN = {
    "segpgd": np_cross_entropy,
    "js": np_js,
    "masked_cross_entropy": np_cross_entropy,
    "masked_spherical": np_spherical,
}


def logits_and_labels(seed=0):
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=SHAPE)
    y = np.where(
        generator.uniform(size=SHAPE[:3]) < 0.5,
        logits.argmax(axis=-1),
        generator.integers(0, SHAPE[-1], size=SHAPE[:3]),
    )
    return logits, y


def gradient(name, logits, y, step_fraction):
    def total(logits):
        return jnp.sum(
            per_label(
                name, logits, Criterion(jnp.asarray(y, jnp.int32), step_fraction=step_fraction)
            )
        )

    return jax.jit(jax.grad(total))(jnp.asarray(logits, jnp.float32))


@pytest.mark.parametrize("name", SEA_LOSSES)
@pytest.mark.parametrize("step_fraction", [0.0, 0.6])
def test_losses_are_those_of_numpy(name, step_fraction):
    logits, y = logits_and_labels()
    right = logits.argmax(axis=-1) == y
    assert 0 < right.sum() < right.size
    criterion = Criterion(jnp.asarray(y, jnp.int32), step_fraction=step_fraction)
    got = per_label(name, jnp.asarray(logits, jnp.float32), criterion)
    np.testing.assert_allclose(got, PLAIN[name](logits, y), atol=2e-6)
    # the weights of the gradient are constants: differences are taken with the mask as it was
    weights = np_weights(name, right, step_fraction)
    expected = np.empty(SHAPE)
    for k in range(SHAPE[-1]):
        step = np.zeros(SHAPE)
        step[..., k] = 1e-6
        expected[..., k] = PLAIN[name](logits + step, y) - PLAIN[name](logits - step, y)
    expected *= weights[..., None] / 2e-6
    same_direction(gradient(name, logits, y, step_fraction), expected, atol=5e-6)


def same_direction(slope, expected, atol):
    """Gradients are those of the loss but for one positive factor for each image."""
    slope, expected = np.asarray(slope, np.float64), np.asarray(expected)
    factor = (slope * expected).sum(axis=(1, 2, 3)) / (expected**2).sum(axis=(1, 2, 3))
    assert (factor > 0).all()
    np.testing.assert_allclose(slope / factor[:, None, None, None], expected, atol=atol)


def test_weights_go_from_the_right_pixels_to_all():
    logits, y = logits_and_labels()
    right = logits.argmax(axis=-1) == y
    p = softmax(logits) - np.eye(SHAPE[-1])[y]
    for step_fraction in (0.0, 0.5, 1.0):  # one half everywhere in the end
        weight = np.where(right, 1 - 0.5 * step_fraction, 0.5 * step_fraction)
        same_direction(
            gradient("segpgd", logits, y, step_fraction), weight[..., None] * p, atol=1e-6
        )


@pytest.mark.parametrize("name", SEA_LOSSES)
def test_void_pixels_have_no_part_in_any_loss(name):
    logits, y = logits_and_labels()
    y[0, 0, :2] = VOID
    y[1] = VOID  # a whole image without labels
    void = y == VOID
    other = np.where(void[..., None], 100 * np.random.default_rng(1).normal(size=SHAPE), logits)
    criterion = Criterion(jnp.asarray(y, jnp.int32), step_fraction=0.6)

    def total(logits):
        losses = per_example(name, logits, criterion)
        return jnp.sum(losses), losses

    for values in (logits, other):
        slope, loss = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(values, jnp.float32))
        assert np.all(np.asarray(slope)[void] == 0)
        assert np.abs(np.asarray(slope)[~void]).max() > 0
        known = PLAIN[name](logits, np.where(void, 0, y))[0][~void[0]].mean()
        # Of losses that fall to 0 the logarithm is compared, that of no pixel being the lowest.
        logarithm = name != "masked_spherical"
        expected = [np.log(known), -1e30] if logarithm else [known, 0]
        np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", SEA_LOSSES)
def test_extreme_logits_have_finite_gradients(name):
    logits = np.zeros((1, 1, 4, 3))
    logits[0, 0, 1] = (1e4, 0, 0)
    logits[0, 0, 2] = (0, 1e4, 0)
    logits[0, 0, 3] = (1e-30, 0, 0)
    slope = gradient(name, logits, np.zeros((1, 1, 4), int), 0.6)
    assert np.isfinite(slope).all()


def one_knob(x):
    """Two pixels of one logit each, that pull the single value of an image in two directions.

    The first is wrong wherever the ball reaches and gets more so as x grows; the second becomes
    wrong below 0.35.
    """
    value = x[:, :, :, 0]
    pixels = [0.9 + 3 * (value - 0.5), -0.9 - 6 * (value - 0.5)]
    return jnp.concatenate(pixels, axis=2)[..., None]


@pytest.mark.parametrize("loss", ["segpgd", "masked_cross_entropy", "js"])
def test_pixels_that_are_wrong_already_do_not_lead_the_attack_astray(loss):
    x, y = jnp.full((2, 1, 1, 1), 0.5), jnp.zeros((2, 1, 2), jnp.int32)
    settings = {"threat": Threat("linf", 0.2), "steps": 10, "step_size": 0.04}
    plain = pgd(one_knob, x, y, **settings)
    np.testing.assert_allclose(plain.x_adv, 0.7, atol=1e-6)
    np.testing.assert_array_equal(plain.success[:, 0], [[True, False]] * 2)
    if loss == "segpgd":
        found = segpgd(one_knob, x, y, **settings)
    else:
        found = pgd(one_knob, x, y, loss=loss, **settings)
    assert (found.x_adv < 0.35).all()
    assert found.success.all()


def waves(inner, outer, x):
    """Logits (B, H, W, 4) of each pixel by itself, with many bends."""
    return jnp.sin(x @ inner) @ outer


def image_problem():
    generator = np.random.default_rng(0)
    inner = jnp.asarray(6 * generator.normal(size=(3, 12)), jnp.float32)
    outer = jnp.asarray(generator.normal(size=(12, 4)), jnp.float32)
    model = jax.tree_util.Partial(waves, inner, outer)
    x = jnp.asarray(generator.uniform(size=(3, 4, 5, 3)), jnp.float32)
    y = np.array(jax.jit(waves)(inner, outer, x).argmax(axis=-1), np.int32)
    y[0, 0, :3] = VOID
    return model, x, jnp.asarray(y)


def share_wrong(result, y):
    return np.asarray(result.success).sum(axis=(1, 2)) / (np.asarray(y) != VOID).sum(axis=(1, 2))


def test_void_pixels_are_not_moved_and_never_a_success():
    model, x, y = image_problem()
    found = segpgd(model, x, y, threat=Threat("linf", 0.3), steps=5)
    np.testing.assert_array_equal(found.x_adv[0, 0, :3], x[0, 0, :3])
    assert not found.success[0, 0, :3].any()
    assert found.success.any()


def test_the_ensemble_is_the_worst_of_its_losses_for_each_image():
    model, x, y = image_problem()
    settings = {"threat": Threat("linf", 0.03), "key": KEY, "steps": 10}
    together = sea(model, x, y, **settings)
    assert [stage.name for stage in together.stages] == [
        "masked_cross_entropy",
        "segpgd",
        "js",
        "masked_spherical",
    ]
    assert [(stage.attacked, stage.broken) for stage in together.stages] == [(3, 0)] * 4
    alone = [
        share_wrong(sea(model, x, y, losses=[stage.name], **settings), y)
        for stage in together.stages
    ]
    np.testing.assert_allclose(share_wrong(together, y), np.max(alone, axis=0), atol=1e-7)
    assert len({tuple(shares) for shares in alone}) > 1  # else the test shows nothing
    assert 0 < share_wrong(together, y).mean() < 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_larger_balls_on_the_way_leave_the_result_in_its_own(norm):
    model, x, y = image_problem()
    threat, seen = Threat(norm, 0.05), []
    found = sea(
        model,
        x,
        y,
        threat=threat,
        key=KEY,
        steps=10,
        losses=["js"],
        on_progress=lambda *step_fraction: seen.append(step_fraction),
    )
    found.check(threat)
    delta = np.asarray(found.x_adv - x, np.float64).reshape(3, -1)
    size = np.abs(delta).max(axis=1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    assert size.max() <= 0.05 + 1e-6
    assert size.min() > 0.04  # it ends at the edge, whence the larger ball was left
    done = [step for _, step, _ in seen]
    assert seen[-1] == ("js", 10, 10)
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (300, [(2.0, 90), (1.5, 90), (1.0, 120)]),
        (10, [(2.0, 3), (1.5, 3), (1.0, 4)]),
        (3, [(1.0, 3)]),
    ],
)
def test_steps_of_the_shrinking_ball(steps, expected):
    assert _radius_schedule(steps) == expected


def test_each_ball_begins_where_the_larger_one_ended(monkeypatch):
    calls = []

    def spy(problem, key, *, steps, start, **settings):
        x_adv, zero_gradients = run_apgd(problem, key, steps=steps, start=start, **settings)
        calls.append((problem.threat.epsilon, steps, start, x_adv))
        return x_adv, zero_gradients

    monkeypatch.setattr("steinnorm.attacks.segmentation.run_apgd", spy)
    model, x, y = image_problem()
    found = sea(model, x, y, threat=Threat("linf", 0.05), key=KEY, steps=10, losses=["js"])
    assert [call[:2] for call in calls] == [(0.1, 3), (pytest.approx(0.075), 3), (0.05, 4)]
    assert calls[0][2] is None
    for before, after in itertools.pairwise(calls):
        np.testing.assert_array_equal(after[2], before[3])
    np.testing.assert_array_equal(found.x_adv, calls[-1][3])


def test_single_logits_and_images_that_are_done():
    x, y = jnp.full((2, 1, 1, 1), 0.5), jnp.zeros((2, 1, 2), jnp.int32)
    found = sea(one_knob, x, y, threat=Threat("linf", 0.2), key=KEY, steps=10)
    assert found.success.all()
    stages = [(stage.name, stage.attacked, stage.broken) for stage in found.stages]
    # a single logit has no direction; and what is broken is not attacked again
    assert stages == [("masked_cross_entropy", 2, 2), ("segpgd", 0, 0), ("js", 0, 0)]


def test_batches_that_hang_together_are_kept_as_a_whole():
    model, x, y = image_problem()

    def centred(x):
        return model(x - 0.5 * jnp.mean(x, axis=(0, 1, 2), keepdims=True))

    y = jnp.where(y == VOID, y, jnp.argmax(predict(centred, x), axis=-1).astype(y.dtype))
    # With these draws each loss is the worst for some image, which is asserted below.
    settings = {"threat": Threat("linf", 0.03), "key": jax.random.key(7), "steps": 10}
    losses = ["js", "masked_cross_entropy"]
    with pytest.warns(BatchDependenceWarning, match="whole"):
        together = sea(centred, x, y, losses=losses, **settings)
    alone = [sea(centred, x, y, losses=[loss], batch_dependent=True, **settings) for loss in losses]
    shares = np.stack([share_wrong(result, y) for result in alone])
    assert len(set(shares.argmax(axis=0))) == 2  # no loss is the worst for all images
    best = int(shares.mean(axis=1).argmax())
    np.testing.assert_array_equal(together.x_adv, alone[best].x_adv)
    wrong = (jnp.argmax(predict(centred, together.x_adv), axis=-1) != y) & (y != VOID)
    np.testing.assert_array_equal(together.success, wrong)


def test_what_is_refused():
    x, y = jnp.full((2, 1, 1, 1), 0.5), jnp.zeros((2, 1, 2), jnp.int32)
    settings = {"threat": Threat("linf", 0.2), "key": KEY, "steps": 2}
    with pytest.raises(ValueError, match="at least one loss"):
        sea(one_knob, x, y, losses=["masked_spherical"], **settings)
    with pytest.raises(ValueError, match="loss must be one of"):
        sea(one_knob, x, y, losses=["iou"], **settings)

    def one_label(x):
        return jnp.concatenate([x, -x], axis=1)[:, :, 0, 0]

    for attack in (sea, segpgd):
        with pytest.raises(ValueError, match="per pixel"):
            attack(one_label, x, y[:, 0, 0], **settings)
