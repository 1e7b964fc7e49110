"""One gradient for many labels: labels that are wrong already do not lead it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, autoattack, pgd, pgd_scan, predict
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._many_labels import scales_of
from steinnorm.attacks.losses import per_example
from tests.attacks.problems import KEY, draws

# Four labels depend on one number t, which is 0.15. The first is wrong there, and the larger t is
# the more so, ten times as fast as the others become right: they are wrong below 0.12. So the mean
# lead is largest at the largest t, where one label is wrong, and all four are between 0.1 and 0.12.
SLOPES, OFFSETS = jnp.array([10.0, -1.0, -1.0, -1.0]), jnp.array([-1.0, 0.12, 0.12, 0.12])
THREAT = Threat("linf", 0.2)


def leads(t):
    lead = SLOPES * t + OFFSETS
    return jnp.stack([-lead, lead, jnp.full_like(lead, -9.0), jnp.full_like(lead, -9.5)], axis=1)


def batch(x):
    """Four examples, whose answers all depend on the mean of the batch."""
    return leads(jnp.mean(x))


def label_map(x):
    """One example with four pixels, whose answers all depend on its mean."""
    return jax.vmap(lambda image: leads(jnp.mean(image))[:, None, :])(x)


X, Y = jnp.full((4, 1), 0.15), jnp.zeros(4, int)
IMAGE, PIXELS = jnp.full((1, 4, 1, 1), 0.15), jnp.zeros((1, 4, 1), int)


def wrong(model, x, y):
    return float(np.mean(np.asarray(predict(model, x).argmax(-1) != y)))


@pytest.mark.parametrize("loss", ["margin", "dlr", "targeted_margin", "targeted_dlr"])
def test_apgd_breaks_all_labels_of_a_batch_where_one_pulls_the_other_way(loss):
    result = apgd(batch, X, Y, threat=THREAT, steps=30, loss=loss, batch_dependent=True)
    assert wrong(batch, X, Y) == 0.25
    assert result.success.tolist() == [True] * 4


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_apgd_breaks_all_labels_of_a_map_where_one_pulls_the_other_way(loss):
    result = apgd(label_map, IMAGE, PIXELS, threat=THREAT, steps=30, loss=loss)
    assert np.asarray(result.success).all()


def test_autoattack_breaks_all_labels_of_such_a_batch():
    result = autoattack(
        batch, X, Y, threat=THREAT, key=KEY, steps=30, queries=1, batch_dependent=True
    )
    assert result.success.tolist() == [True] * 4


def test_pgd_scan_has_the_same_ceiling():
    settings = {"threat": THREAT, "steps": 7, "loss": "margin", "batch_dependent": True}
    expected = pgd(batch, X, Y, **settings).x_adv
    np.testing.assert_allclose(pgd_scan(batch, X, Y, **settings), expected, atol=1e-7)


@pytest.mark.parametrize(("axes", "joint"), [((), True), ((3, 2), False), ((3, 2), True)])
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_beyond_the_median_loss_there_is_a_hundredth_of_the_slope(axes, joint, loss):
    clean, logits = 8 * draws(5, *axes, 4) - 4, 8 * draws(6, 5, *axes, 4)[1] - 4
    y = jnp.argmax(draws(7, 5, *axes, 4)[2], axis=-1)
    ceiling = scales_of(loss, clean, y, joint=joint)[1]
    value = per_example(loss, logits, Criterion(y, ceiling=ceiling), joint=joint)

    def plain(z):
        z = np.asarray(z, np.float64)
        label = np.take_along_axis(z, np.asarray(y)[..., None], -1)[..., 0]
        other = np.where(np.arange(4) == np.asarray(y)[..., None], -np.inf, z).max(-1)
        top = np.sort(z, axis=-1)
        return (other - label) / (top[..., -1] - top[..., -3] if loss == "dlr" else 1)

    of = tuple(range(0 if joint else 1, y.ndim))
    median = np.median(np.abs(plain(clean)), axis=of, keepdims=True)
    above = np.maximum(plain(logits) - median, 0)
    assert (above > 0).any()
    assert (above == 0).any()
    expected = np.mean(plain(logits) - 0.99 * above, axis=of) * np.ones(5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_examples_that_stand_alone_have_no_ceiling():
    problem = Problem.of(batch, X, Y, THREAT)
    assert problem.criterion_for("margin", joint=False).ceiling is None
    assert problem.criterion_for("margin", joint=True).ceiling is not None
    assert problem.criterion_for("cross_entropy", joint=True).ceiling is None


def test_the_scale_of_the_logits_changes_no_step():
    found = [
        apgd(
            lambda x, scale=scale: scale * batch(x),
            X,
            Y,
            threat=THREAT,
            steps=15,
            loss="margin",
            batch_dependent=True,
        ).x_adv
        for scale in (1.0, 1024.0, 1 / 1024)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_logits_without_a_lead_leave_the_loss_as_it_is():
    void = jnp.full((2, 3, 3), 255)
    ceiling = scales_of("margin", jnp.zeros((2, 3, 3, 2)), void, joint=False)[1]
    assert ceiling.tolist() == [float("inf")] * 2
