"""Joint attacks put the results of several runs together, and believe only what they evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, autoattack, pgd, predict, sea
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._mixtures import Mixtures

THREAT = Threat("linf", 0.4)
X, Y = jnp.full((4, 2), 0.5), jnp.zeros(4, int)


def alone(x):
    """Wrong where the first value is over 0.7."""
    return jnp.stack([0.7 - x[:, 0], x[:, 0] - 0.7], axis=1)


def crowded(x):
    """The same, but the other way round if that makes more than two wrong."""
    turned = jnp.sum(x[:, 0] > 0.7) > 2
    return jnp.where(turned, -alone(x), alone(x))


def breaking(*examples):
    return X.at[jnp.array(examples), 0].set(0.8)


def wrong(model, x):
    return np.asarray(predict(model, x).argmax(-1) != Y).mean()


def test_a_mixture_breaks_what_each_result_broke():
    mixtures = Mixtures(Problem.of(alone, X, Y, THREAT))
    assert mixtures.add(breaking(0, 1))[1].tolist() == [0.5] * 4
    x, share = mixtures.add(breaking(2))
    assert share.tolist() == [0.75] * 4
    np.testing.assert_array_equal(x, breaking(0, 1, 2))


def test_a_mixture_counts_for_what_the_model_says_to_it():
    # Together the three are answered rightly, and the fourth wrongly.
    assert wrong(crowded, breaking(0, 1, 2)) == 0.25
    mixtures = Mixtures(Problem.of(crowded, X, Y, THREAT))
    mixtures.add(breaking(0, 1))
    x, share = mixtures.add(breaking(2))
    assert share.tolist() == [0.5] * 4
    np.testing.assert_array_equal(x, breaking(0, 1))


def test_a_worse_result_replaces_a_mixture():
    mixtures = Mixtures(Problem.of(crowded, X, Y, THREAT))
    mixtures.add(breaking(0))
    x, share = mixtures.add(breaking(1, 2))
    assert share.tolist() == [0.5] * 4
    np.testing.assert_array_equal(x, breaking(1, 2))


def test_no_result_is_worse_than_clean_inputs_that_are_wrong():
    mixtures = Mixtures(Problem.of(alone, breaking(0, 1, 2), Y, THREAT))
    x, share = mixtures.add(X)
    assert share.tolist() == [0.75] * 4
    np.testing.assert_array_equal(x, breaking(0, 1, 2))


def test_bfloat16_counts_all_examples():
    # Adding ones in bfloat16 stops at 256: shares must be those of float32 logits.
    def rounded(x):
        return alone(x).astype(jnp.bfloat16)

    x, y = jnp.full((600, 2), 0.5), jnp.zeros(600, int)
    mixtures = Mixtures(Problem.of(rounded, x, y, THREAT))
    half, most = x.at[:300, 0].set(0.8), x.at[100:500, 0].set(0.8)
    assert mixtures.add(half)[1][0] == 0.5
    found, share = mixtures.add(most)
    assert float(share[0]) == pytest.approx(500 / 600, rel=2**-8)
    np.testing.assert_array_equal(predict(rounded, found).argmax(-1), np.arange(600) < 500)


def blind(x):
    """Wrong where the first value is over 0.7, without a gradient: an attack must be lucky.

    The second values of the batch make the logits larger or smaller, so that they depend on it.
    """
    sign = jnp.sign(x[..., 0] - 0.7) * (1 + jnp.mean(x[..., 1]))
    return jnp.stack([-sign, sign], axis=-1)


SETTINGS = {"threat": THREAT, "key": jax.random.key(0), "batch_dependent": True}
ATTACKS = {
    "pgd": lambda x, y: pgd(blind, x, y, steps=1, restarts=5, **SETTINGS),
    "apgd": lambda x, y: apgd(blind, x, y, steps=1, restarts=5, **SETTINGS),
    "autoattack": lambda x, y: autoattack(blind, x, y, steps=1, queries=1, **SETTINGS),
    "sea": lambda x, y: sea(blind, x, y, steps=1, **SETTINGS),
}


@pytest.mark.filterwarnings("ignore::steinnorm.attacks.ShortReachWarning")
@pytest.mark.parametrize("name", ATTACKS)
def test_lucky_runs_add_up(name, monkeypatch):
    pixels = (2, 2) if name == "sea" else ()
    x, y = jnp.full((16, *pixels, 2), 0.5), jnp.zeros((16, *pixels), int)
    result = ATTACKS[name](x, y)
    result.check(THREAT)
    np.testing.assert_array_equal(result.success, predict(blind, result.x_adv).argmax(-1) == 1)
    monkeypatch.setattr(Mixtures, "add", lambda self, x_adv: (x_adv, np.zeros(16)))
    best_run = ATTACKS[name](x, y)
    assert jnp.mean(result.success) > jnp.mean(best_run.success) + 0.1
