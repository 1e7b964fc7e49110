"""Models that are sure of themselves: rounding must neither hide nor make robustness.

The models are linear, so that the exact answer is known: in the ball of the norm an example stands
if its smallest margin over the dual norm of the difference of weights is larger than the radius.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, autoattack, fgsm, pgd, predict, sea, square
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks.losses import LOSSES, per_example, per_label

KEY = jax.random.key(3, impl="rbg")  # the default generator compiles for long
EXAMPLES, VALUES, CLASSES = 96, 48, 7
SCALES = [1.0, 3e3, 3e4, 1e6]
RADII = {"linf": 0.02, "l2": 0.1}


def linear(weights, x):
    return (x.reshape(len(x), -1) - 0.5) @ weights


def exact(norm):
    """The linear problem, and which of its examples are robust, in float64."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(VALUES, CLASSES))
    x = generator.uniform(0.3, 0.7, (EXAMPLES, VALUES))
    logits = (x - 0.5) @ weights
    y = logits.argmax(axis=1)
    pairs = weights[:, y].T[:, :, None] - weights[None]  # (N, D, K)
    dual = np.abs(pairs).sum(axis=1) if norm == "linf" else np.sqrt((pairs**2).sum(axis=1))
    lead = logits[np.arange(EXAMPLES), y][:, None] - logits
    others = np.arange(CLASSES)[None] != y[:, None]
    distance = np.where(others, lead / np.where(others, dual, 1), np.inf).min(axis=1)
    return weights, x, y, distance > RADII[norm]


@pytest.fixture(scope="module", params=["linf", "l2"])
def case(request):
    weights, x, y, robust = exact(request.param)
    assert 8 < robust.sum() < EXAMPLES - 8
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    return weights, x, y, robust, Threat(request.param, RADII[request.param])


def scaled(weights, scale):
    return jax.tree_util.Partial(linear, jnp.asarray(scale * weights, jnp.float32))


ATTACKS = {
    "fgsm": (fgsm, {}),
    "pgd": (pgd, {"steps": 20, "key": KEY}),
    "apgd": (apgd, {"steps": 20, "key": KEY}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_scale_of_the_logits_hides_nothing(case, name):
    weights, x, y, robust, threat = case
    attack, settings = ATTACKS[name]
    left = []
    for scale in SCALES:
        found = attack(scaled(weights, scale), x, y, threat=threat, **settings)
        assert found.zero_gradients == 0
        assert not np.asarray(found.success)[robust].any()  # what is robust nobody breaks
        left.append(EXAMPLES - int(found.success.sum()))
    assert max(left) <= left[0] + 2


def test_autoattack_leaves_exactly_the_robust_examples(case):
    weights, x, y, robust, threat = case
    for scale in SCALES:
        found = autoattack(scaled(weights, scale), x, y, threat=threat, steps=30, queries=20)
        np.testing.assert_array_equal(~np.asarray(found.success), robust)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd"])
def test_towards_a_target(name):
    weights, x, y, _ = exact("linf")
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    target = (y + 1) % CLASSES
    attack, settings = ATTACKS[name]
    threat = Threat("linf", 0.1)
    settings = {**settings, "threat": threat, "target": target}
    found = [attack(scaled(weights, scale), x, y, **settings) for scale in SCALES]
    reached = [int(one.success.sum()) for one in found]
    assert reached[0] > 20
    # A sure model's softmax follows the best other class alone, an unsure one's all of them.
    assert min(reached) >= reached[0] - 4


@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "dlr", "margin"])
def test_every_loss_at_every_scale(loss):
    weights, x, y, robust = exact("linf")
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    left = []
    for scale in SCALES:
        found = pgd(
            scaled(weights, scale), x, y, threat=Threat("linf", 0.02), key=KEY, steps=20, loss=loss
        )
        left.append(EXAMPLES - int(found.success.sum()))
    assert max(left) <= left[0] + 2
    assert left[0] < (EXAMPLES if loss == "kl" else robust.sum() + 20)


def _maps():
    """A label map of linear pixels that share their input, half of them void-free."""
    generator = np.random.default_rng(2)
    weights = generator.normal(size=(12, 4 * 5, 3))
    x = jnp.asarray(generator.uniform(0.3, 0.7, (16, 12)), jnp.float32)
    return weights, x


def _pixels(weights, x):
    logits = jnp.einsum("bd,dpk->bpk", x - 0.5, weights)
    return logits.reshape(len(x), 4, 5, 3)


def batch_network(weights, x):
    """Two layers with the statistics of the batch between them."""
    first, last, scale = weights
    hidden = x.reshape(len(x), -1) @ first
    deviation = jnp.sqrt(hidden.var(axis=0, keepdims=True) + 1e-5)
    hidden = (hidden - hidden.mean(axis=0, keepdims=True)) / deviation
    return scale * (jnp.maximum(hidden, 0) @ last)


@pytest.mark.parametrize("name", ATTACKS)
def test_joint_batches_at_every_scale(name):
    """The weights between examples must not leave one of them alone."""
    generator = np.random.default_rng(0)
    first = jnp.asarray(generator.normal(size=(12, 32)), jnp.float32)
    last = jnp.asarray(generator.normal(size=(32, 5)), jnp.float32)
    x = jnp.asarray(generator.uniform(size=(24, 12)), jnp.float32)
    y = jnp.argmax(batch_network((first, last, 1.0), x), axis=1)
    attack, settings = ATTACKS[name]
    left = []
    for scale in (1.0, 10.0, *SCALES[1:]):
        model = jax.tree_util.Partial(batch_network, (first, last, jnp.float32(scale)))
        found = attack(model, x, y, threat=Threat("linf", 0.04), batch_dependent=True, **settings)
        left.append(found.robust_accuracy)
    assert max(left) <= left[0] + 0.1
    assert left[0] < 0.8


@pytest.mark.parametrize("loss", ["cross_entropy", "masked_cross_entropy", "segpgd", "js"])
def test_label_maps(loss):
    weights, x = _maps()
    model = lambda s: jax.tree_util.Partial(_pixels, jnp.asarray(s * weights, jnp.float32))  # noqa: E731
    y = jnp.argmax(predict(model(1.0), x), axis=-1)
    left = []
    for scale in SCALES:
        found = pgd(model(scale), x, y, threat=Threat("linf", 0.02), steps=20, loss=loss)
        assert found.zero_gradients == 0
        left.append(found.robust_accuracy)
    assert max(left) <= left[0] + 0.05
    assert left[0] < 0.95


def test_sea_and_square_on_sure_label_maps():
    weights, x = _maps()
    left = {"sea": [], "square": []}
    for scale in SCALES:
        model = jax.tree_util.Partial(_pixels, jnp.asarray(scale * weights, jnp.float32))
        y = jnp.argmax(predict(model, x), axis=-1)
        threat = Threat("linf", 0.05)
        left["sea"].append(sea(model, x, y, threat=threat, steps=20).robust_accuracy)
        left["square"].append(square(model, x, y, threat=threat, queries=40).robust_accuracy)
    for found in left.values():
        assert max(found) <= found[0] + 0.02


def centred(weights, scale, x):  # batch statistics
    return scale * ((x - x.mean(axis=0, keepdims=True)) @ weights)


def plain_total(logits_of, y, x):
    return -jnp.sum(jax.nn.log_softmax(logits_of(x))[jnp.arange(len(y)), y])


def safe_total(logits_of, y, x):
    criterion = Criterion(jnp.asarray(y, jnp.int32))
    return jnp.sum(per_example("cross_entropy", logits_of(x), criterion, joint=True))


def test_joint_batches_keep_the_weights_between_examples():
    """Where examples depend on each other the gradient is that of the summed loss, in float64."""
    generator = np.random.default_rng(4)
    weights = generator.normal(size=(6, 3))
    x, y = generator.uniform(size=(5, 6)), generator.integers(0, 3, 5)

    for scale in (1.0, 60.0):
        logits_of = functools.partial(centred, weights, scale)
        with jax.enable_x64(True):
            total = functools.partial(plain_total, logits_of, y)
            expected = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(x, jnp.float64)))
        total = functools.partial(safe_total, logits_of, y)
        got = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(x, jnp.float32)), np.float64)
        np.testing.assert_allclose(
            got / np.abs(got).max(), expected / np.abs(expected).max(), atol=2e-5
        )


@pytest.mark.parametrize("name", ["cross_entropy", "kl", "js"])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_values_and_logarithms_are_those_of_float64(name, scale):
    generator = np.random.default_rng(5)
    z, reference = scale * generator.normal(size=(2, 8, 5))
    y = generator.integers(0, 5, 8)
    criterion = Criterion(jnp.asarray(y, jnp.int32), None, jnp.asarray(reference, jnp.float32))

    def log_softmax(z):
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    log_p, log_q = log_softmax(z), log_softmax(reference)
    others = np.array([np.delete(row, label) for row, label in zip(z, y, strict=True)])
    peak = others.max(axis=1)
    lead = peak + np.log(np.exp(others - peak[:, None]).sum(axis=1)) - z[np.arange(8), y]
    p = 1 / (1 + np.exp(lead))
    expected = {
        "cross_entropy": np.logaddexp(0, lead),
        "kl": (np.exp(log_q) * (log_q - log_p)).sum(axis=-1),
        "js": np.log(2) + 0.5 * (p * np.log(np.maximum(p, 1e-300)) - (1 + p) * np.log1p(p)),
    }[name]
    got = per_label(name, jnp.asarray(z, jnp.float32), criterion)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-12)
    log_value = LOSSES[name](jnp.asarray(z, jnp.float32), criterion).log_value
    large = expected > 1e-9  # below, the cancellation is that of the expected values
    np.testing.assert_allclose(np.asarray(log_value)[large], np.log(expected[large]), atol=2e-4)
