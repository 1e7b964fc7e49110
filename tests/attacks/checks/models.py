"""Models of few values on which a check must fail or must not, and batches for them."""

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import Threat
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.checks.runs import AttackRuns, Twin

KEY = jax.random.key(5, impl="rbg")  # the default generator compiles for long
EXAMPLES, VALUES, CLASSES = 40, 6, 3
THREAT = Threat("linf", 0.1)
SMALL = CheckSettings(steps=10, restarts=4, square_queries=60, directions=3)


def draws(*shape, low=0.0, high=1.0, seed=0):
    return np.random.default_rng(seed).uniform(low, high, size=shape).astype(np.float32)


def linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


def squashed(logits):
    """Softmax in the model, ten times as large so that nobody warns of probabilities."""
    return 10 * jax.nn.softmax(logits)


def linear_problem(scale=1.0, last=None):
    """A linear model, as attackable as can be, with labels that it gets right.

    ``last`` is what the model does to its logits inside, such as a softmax.
    """
    # Two classes: with more, the cross-entropy's gradient is not the way to the nearest border,
    # and Square does find more than PGD.
    weights = draws(VALUES, 2, low=-1, high=1, seed=3)
    weights -= weights.mean(axis=0)  # grey is at the border of all classes
    x = draws(EXAMPLES, VALUES, low=0.1, high=0.9, seed=4)
    y = np.argmax(x @ weights, axis=1).astype(np.int32)
    scaled = jnp.asarray(scale * weights)
    model = jax.tree_util.Partial(linear, scaled)
    if last is not None:
        model = jax.tree_util.Partial(lambda weights, x: last(linear(weights, x)), scaled)
    return model, jnp.asarray(x), jnp.asarray(y)


def runs_of(
    model, x, y, settings=SMALL, *, twin=None, reason="no twin in this test", threat=THREAT, **known
):
    return AttackRuns(
        model, x, y, threat=threat, settings=settings, key=KEY, twin=Twin(twin, reason), **known
    )


def point(values=1):
    """The same input for all, of class 0: what happens to it depends on random starts only."""
    return jnp.full((EXAMPLES, values), 0.5), jnp.zeros(EXAMPLES, jnp.int32)


def two_logits(margin):
    """Class 1 where the margin is positive."""
    return jnp.stack([jnp.zeros_like(margin), 5 * margin], axis=1)


def trapping(x):
    """A slope with waves: one long step climbs it, short ones stay on the first crest."""
    t = (x - 0.5) / THREAT.epsilon
    return two_logits(jnp.mean(t + 0.2 * jnp.sin(2 * jnp.pi * t), axis=1) - 0.7)


def dead_outside(x):
    """Wrong at the edge of the ball, right and flat beyond it."""
    t = jnp.abs(x[:, 0] - 0.5) / THREAT.epsilon
    return two_logits(jnp.where(t < 1.05, 2 * t - 1, jnp.full_like(t, -1)))


def needle(x):
    """Wrong in a place so narrow that it is a matter of luck and of short steps to hit it."""
    t = (x[:, 0] - 0.5) / THREAT.epsilon
    return two_logits(0.06 - jnp.abs(t - 0.3))


def crowded(x):
    """A class that wins at one edge of the ball, and thirty that do not at the other, but weigh.

    Up the slope of the cross-entropy goes the way of the thirty, that of the margin is the one's.
    """
    t = (x[:, :1] - 0.5) / THREAT.epsilon
    crowd = jnp.broadcast_to(0.15 - 0.5 * t, (len(x), 30))
    return jnp.concatenate([jnp.ones_like(t), 0.2 + t, crowd], axis=1)


def sure_brightness(x):
    """Right for dark and bright inputs, noise or not, and so sure that no gradient is left."""
    return squashed(two_logits(1e6 * (jnp.mean(x, axis=1) - 0.5)))


def partly_dead(x):
    """Flat where the first value is below 0.5; the second value never matters."""
    slope = jnp.maximum(x[:, 0] - 0.5, 0)
    return two_logits(-1 - slope * (x[:, 2] + 1))


# Gradients -----------------------------------------------------------------------------------


def network(x, through=lambda h: h):
    """Two layers with ReLUs; ``through`` is what happens between them."""
    first = jnp.asarray(draws(VALUES, 30, low=-1, high=1, seed=8))
    second = jnp.asarray(draws(30, CLASSES, low=-1, high=1, seed=9))
    return jax.nn.relu(through(x @ first)) @ second


def _normalised(h, hold):
    mean = hold(jnp.mean(h, axis=0, keepdims=True))
    variance = hold(jnp.mean((h - mean) ** 2, axis=0, keepdims=True))
    return (h - mean) * jax.lax.rsqrt(variance + 1e-5) + 0.1


def batch_norm(x):
    return network(x, lambda h: _normalised(h, lambda s: s))


def batch_norm_without_its_gradient(x):
    return network(x, lambda h: _normalised(h, jax.lax.stop_gradient))


def with_gradient(change):
    """The network, with another gradient than its own."""

    @jax.custom_vjp
    def same(h):
        return h

    same.defvjp(lambda h: (h, None), lambda _, g: (change(g),))
    return lambda x: network(same(x))


def quantised(x):
    """Sixteen levels, and the gradient that there would be without them."""
    steps = jnp.round(15 * x) / 15
    return network(x + jax.lax.stop_gradient(steps - x))


def in_bfloat16(x):
    return network(x.astype(jnp.bfloat16).astype(jnp.float32))


def all_in_bfloat16(x, dtype=jnp.bfloat16, common=0.0):
    """Four layers; ``common`` is added to the last weights, so that all logits share a part."""
    h = x.astype(dtype)
    for seed, width in ((8, 64), (9, 64), (10, 64), (11, CLASSES)):
        weights = draws(h.shape[1], width, low=-1, high=1, seed=seed) / np.sqrt(h.shape[1] / 6)
        last = common if width == CLASSES else 0.0
        h = (h if seed == 8 else jax.nn.relu(h)) @ jnp.asarray(weights + last, dtype)
    return h


def centred(x):
    """Every prediction depends on the whole batch."""
    return network(x - jnp.mean(x, axis=0, keepdims=True))


def per_pixel(x):
    """Logits (B, H, W, 2) of images (B, H, W, 1)."""
    return jnp.concatenate([0.5 - x, x - 0.5], axis=-1)
