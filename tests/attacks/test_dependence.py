"""The check finds models that depend on the batch and clears those that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, predict
from steinnorm.attacks._dependence_check import depends_on_batch, resolve_batch_dependence
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks.dependence import batch_dependence
from tests.attacks.problems import KEY, companions, draws

THREAT = Threat("linf", 0.1)


def centred(weights, share, x):
    flat = x.reshape(x.shape[0], -1)
    return (flat - share * jnp.mean(flat, axis=0, keepdims=True)) @ weights


def of(share, features=4):
    weights = np.random.default_rng(0).normal(size=(features, 3))
    model = jax.tree_util.Partial(centred, jnp.asarray(weights, jnp.float32), jnp.float32(share))
    return model, weights


@pytest.mark.parametrize("count", [6, 5])
def test_a_model_of_single_images_is_cleared(count):
    model, _ = of(0.0)
    report = batch_dependence(model, draws(count, 2, 2, 1), key=KEY)
    assert not report.found
    assert report.gradient_shares == (0.0,) * 3
    for change in (report.alone, report.shuffled, report.companions):
        assert (change.images, change.labels) == (0, 0.0)
        assert change.logit < 1e-6


def test_numbers_are_those_of_numpy():
    model, weights = of(0.5)
    x = draws(6, 2, 2, 1)
    report = batch_dependence(model, x, key=KEY, gradients=6)
    flat = np.asarray(x, np.float64).reshape(6, -1)
    there = (flat - 0.5 * flat.mean(axis=0)) @ weights
    alone = 0.5 * flat @ weights
    changed = there.argmax(axis=1) != alone.argmax(axis=1)
    assert report.alone.images == changed.sum() > 0
    assert report.alone.labels == pytest.approx(changed.mean())
    expected = np.abs(there - alone).max() / np.ptp(there, axis=1).max()
    assert report.alone.logit == pytest.approx(expected, rel=1e-4)
    # a mean does not see the order
    assert report.shuffled.images == 0
    assert report.shuffled.logit < 1e-5
    assert report.companions.logit > 1e-2
    # d margin_i / d x_j is c for the other five and (1 + 5 c) for i itself, c = -share / 6
    others, own = 5 * (0.5 / 6) ** 2, (1 - 0.5 / 6) ** 2
    np.testing.assert_allclose(report.gradient_shares, np.sqrt(others / (others + own)), rtol=1e-4)
    assert report.found


def test_the_verdict_has_a_number_and_what_changed():
    report = batch_dependence(of(0.5)[0], draws(6, 2, 2, 1), key=KEY)
    changes = (report.alone, report.shuffled, report.companions)
    numbers = [*(change.logit for change in changes), *report.gradient_shares]
    assert report.largest == max(numbers)
    said = str(report)
    assert said.startswith(f"DEPENDS ON THE BATCH: a largest change of {report.largest:.2g}, ")
    assert said.endswith(
        f"of 6 images: {report.alone.images} alone, 0 in another order, "
        f"{report.companions.images} with other companions"
    )
    assert str(batch_dependence(of(0.0)[0], draws(6, 2, 2, 1), key=KEY)).startswith(
        "independent of the batch: changes of "
    )
    broken = report._replace(alone=report.alone._replace(logit=np.nan))
    assert np.isnan(broken.largest)
    assert broken.found


def test_the_same_batch_again_finds_nothing_and_ours_does():
    x = draws(6, 2, 2, 1)
    runs = [np.asarray(predict(companions, x)) for _ in range(5)]
    assert all((run == runs[0]).all() for run in runs)  # the check of others
    assert batch_dependence(companions, x, key=KEY).found


def test_a_model_of_the_place_in_the_batch_is_found_by_the_order():
    def placed(x):
        place = jnp.arange(x.shape[0], dtype=x.dtype)[:, None]
        return jnp.concatenate([x.reshape(x.shape[0], -1)[:, :2], place], axis=1)

    for seed in range(5):
        report = batch_dependence(placed, draws(6, 2, 2, 1), key=jax.random.key(seed))
        # the largest of six places is 5, and no image keeps its own
        assert report.shuffled.logit >= 1 / 5
        assert report.found


def test_pairs_are_found_though_means_over_the_batch_stay():
    # Logits of image i look at image i - 1 alone.
    def before(x):
        flat = x.reshape(x.shape[0], -1)
        return flat[:, :2] + 0.1 * jnp.roll(flat, 1, axis=0)[:, :2]

    report = batch_dependence(before, draws(6, 2, 2, 1), key=KEY)
    assert report.shuffled.logit > 1e-2
    assert report.companions.logit > 1e-3
    np.testing.assert_allclose(report.gradient_shares, 0.1 / np.sqrt(1.01), rtol=1e-4)


def test_given_companions_are_used():
    model, weights = of(1.0)
    x, others = draws(4, 2, 2, 1), jnp.ones((1, 2, 2, 1))
    report = batch_dependence(model, x, key=KEY, others=others)
    flat = np.asarray(x, np.float64).reshape(4, -1)
    there = (flat - flat.mean(axis=0)) @ weights
    after = []
    for half in ([0, 1], [2, 3]):
        mean = (flat[half].sum(axis=0) + 2) / 4
        after.append((flat[half] - mean) @ weights)
    after = np.concatenate(after)
    expected = np.abs(there - after).max() / np.ptp(there, axis=1).max()
    assert report.companions.logit == pytest.approx(expected, rel=1e-4)
    assert report.companions.images == (there.argmax(1) != after.argmax(1)).sum()


def test_label_maps_count_images_and_share_of_pixels():
    # Only the pixel (0, 0) of an image depends on the batch.
    def corner(x):
        corners = jnp.zeros_like(x).at[:, 0, 0, :].set(1.0)
        return x - 0.5 + 40 * corners * (x - jnp.mean(x, axis=0, keepdims=True))

    x = draws(4, 2, 3, 1)
    report = batch_dependence(corner, x, key=KEY)
    assert 0 < report.alone.images <= 4  # of a batch of one, the pixel is its own mean
    assert report.alone.labels == pytest.approx(report.alone.images / (4 * 6))


def test_a_very_sure_model_is_found_and_its_gradient_is_not_lost():
    model, _ = of(0.5)
    sure = jax.tree_util.Partial(centred, 1e4 * model.args[0], model.args[1])
    x = draws(6, 2, 2, 1)
    plain, scaled = (batch_dependence(m, x, key=KEY).gradient_shares for m in (model, sure))
    np.testing.assert_allclose(plain, scaled, rtol=1e-4)
    assert min(plain) > 0.1


def test_the_report_comes_from_the_key():
    x = draws(6, 2, 2, 1)
    reports = [batch_dependence(companions, x, key=jax.random.key(s)) for s in (0, 0, 1)]
    assert reports[0] == reports[1]
    assert reports[0].companions.logit != reports[2].companions.logit


def test_what_is_refused():
    model, _ = of(0.5)
    with pytest.raises(ValueError, match="no companions"):
        batch_dependence(model, draws(1, 2, 2, 1), key=KEY)
    with pytest.raises(ValueError, match="others"):
        batch_dependence(model, draws(4, 2, 2, 1), key=KEY, others=draws(4, 2, 1, 1))
    broken = draws(64, 2, 2, 1).at[7, 1, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="x must be finite"):
        batch_dependence(model, broken, key=KEY)
    with pytest.raises(ValueError, match="others must be finite"):
        batch_dependence(model, draws(4, 2, 2, 1), key=KEY, others=broken)
    with pytest.raises(ValueError, match="x must be images"):
        batch_dependence(model, np.array(["a", "b"]), key=KEY)


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_a_number_that_all_logits_share_hides_and_feigns_nothing(offset):
    x, weights = draws(12, 9), draws(9, 4) - 0.5

    def centred(x):
        return 0.1 * (x - jnp.mean(x, axis=0, keepdims=True)) @ weights + offset

    def alone(x):
        return 0.1 * x @ weights + offset

    assert (
        batch_dependence(centred, x, key=KEY, gradients=0 if offset else 3).companions.logit > 0.1
    )
    assert not batch_dependence(alone, x, key=KEY).found


def test_dependence_is_seen_in_small_batches_too():
    for count in (2, 3, 5):
        x = draws(count, 2, 2, 1)
        labels = jnp.zeros(count, jnp.int32)
        assert depends_on_batch(Problem.of(companions, x, labels, THREAT))
    assert depends_on_batch(Problem.of(companions, x[:1], labels[:1], THREAT))


def test_duplicated_halves_do_not_hide_a_dependence():
    x = draws(4, 2, 2, 1)
    twice = jnp.concatenate([x, x])
    assert depends_on_batch(Problem.of(companions, twice, jnp.zeros(8, jnp.int32), THREAT))


def _standardised(p, x):
    flat = x.reshape(len(x), -1)
    deviation = jnp.sqrt(flat.var(axis=0, keepdims=True) + 1e-5)
    return ((flat - flat.mean(axis=0, keepdims=True)) / deviation) @ p["w"] + p["offset"]


def _found(p, x, **threat):
    model = jax.tree_util.Partial(_standardised, p)
    y = np.zeros(len(x), np.int32)
    return resolve_batch_dependence(
        Problem.of(model, x, y, Threat("linf", 0.1, **threat)), None, quiet=True
    )


def test_what_was_independent_at_other_weights_is_looked_at_again():
    """Behind a head of zeros nothing shows."""
    x = draws(12, 3, 3, 1)
    head = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.float32)
    zero = {"w": jnp.zeros((9, 4)), "offset": jnp.zeros((1, 4))}
    assert not _found(zero, x)
    assert _found({**zero, "w": head}, x)
    assert not _found(zero, x)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
def test_a_number_that_all_logits_share_hides_no_dependence(offset):
    head = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.float32)
    p = {"w": head, "offset": jnp.full((1, 4), offset)}
    assert _found(p, draws(12, 3, 3, 1))


def test_data_that_are_their_own_negatives_hide_no_dependence():
    x = draws(10, 3, 3, 1)
    head = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.float32)
    both = jnp.concatenate([x, 1 - x])
    assert _found({"w": head, "offset": jnp.zeros((1, 4))}, both)
    assert _found({"w": head, "offset": jnp.zeros((1, 4))}, 5 * both, bounds=None)


def test_a_large_batch_hides_no_dependence():
    generator = np.random.default_rng(0)
    kernel = jnp.asarray(generator.normal(size=(3, 3, 3, 8)) / 5, jnp.float32)
    head = jnp.asarray(generator.normal(size=(8, 4)), jnp.float32)

    def network(kernel, head, x):
        lax = jax.lax
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
        axes = (0, 1, 2)
        y = (y - y.mean(axes, keepdims=True)) * lax.rsqrt(y.var(axes, keepdims=True) + 1e-5)
        return jnp.maximum(y, 0).mean(axis=(1, 2)) @ head

    model = jax.tree_util.Partial(network, kernel, head)
    x = jnp.asarray(generator.uniform(size=(256, 16, 16, 3)), jnp.float32)
    problem = Problem.of(model, x, np.zeros(256, np.int32), THREAT)
    assert depends_on_batch(problem)


def _from_groups(x, size):
    groups = x.reshape(-1, size, x.shape[-1])
    return groups, lambda companions: (groups - companions).reshape(x.shape)


def _group_norm(x, size=3):
    groups, minus = _from_groups(x, size)
    return minus(groups.mean(axis=1, keepdims=True))


def _first_of_group(x):
    groups, minus = _from_groups(x, 3)
    return minus(groups[:, :1])


def _last_of_group(x):
    groups, minus = _from_groups(x, 3)
    return minus(groups[:, -1:])


def _by_place(x):
    return x + 0.3 * jax.random.normal(jax.random.key(7), x.shape)


PARTS_OF_THE_BATCH = {
    "running mean": lambda x: x - jnp.cumsum(x, 0) / jnp.arange(1.0, 1 + len(x))[:, None],
    "first": lambda x: x - x[:1],
    "last": lambda x: x - x[-1:],
    "previous": lambda x: x - jnp.roll(x, 1, axis=0).at[0].set(0.5),
    "next": lambda x: x - jnp.roll(x, -1, axis=0).at[-1].set(0.5),
    "mixed with its mirror": lambda x: x + x[::-1] / 2,
    "groups": _group_norm,
    "pairs": lambda x: _group_norm(x, 2),
    "strided groups": lambda x: x - jnp.tile(x.reshape(-1, 4, 9).mean(axis=0), (len(x) // 4, 1)),
    "first of the group": _first_of_group,
    "last of the group": _last_of_group,
    "noise by place": _by_place,
    "factor by place": lambda x: x * (1 + jnp.arange(len(x))[:, None] / len(x)),
}
HEAD = jnp.asarray(np.random.default_rng(1).normal(size=(9, 4)), jnp.float32)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("name", PARTS_OF_THE_BATCH)
def test_dependence_on_a_part_of_the_batch_is_found(name, repeated):
    x = draws(12, 9)
    x = jnp.repeat(x[:1], 12, axis=0) if repeated else x

    def model(x):
        return PARTS_OF_THE_BATCH[name](x) @ HEAD

    assert depends_on_batch(Problem.of(model, x, np.zeros(12, np.int32), THREAT))


def test_standardised_images_hide_no_dependence():
    """Another brightness or contrast of a companion does not reach such a model."""

    def model(x):
        x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
        return (x - x.mean(axis=0, keepdims=True)) @ HEAD

    x = jnp.repeat(draws(1, 9), 8, axis=0)
    assert depends_on_batch(Problem.of(model, x, np.zeros(8, np.int32), THREAT))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("count", [2, 3, 33, 64])
def test_no_model_of_single_examples_is_taken_for_dependent(count, dtype):
    generator = np.random.default_rng(3)
    sizes = [(64, 256), (256, 256), (256, 10)]
    weights = [jnp.asarray(generator.normal(size=s) / s[0] ** 0.5, dtype) for s in sizes]

    def model(x):
        x = x.astype(dtype)
        for w in weights[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ weights[-1] + 3

    x = draws(count, 64)
    assert not depends_on_batch(Problem.of(model, x, np.zeros(count, np.int32), THREAT))


def _gated(p, x):
    """The logits of black images are zero, whatever their companions are."""
    return x.mean(axis=1, keepdims=True) * ((x - x.mean(axis=0, keepdims=True)) @ p["w"])


@pytest.mark.parametrize("model", [_standardised, _gated])
@pytest.mark.parametrize("first", [0.0, 0.25])
def test_one_batch_that_hides_the_dependence_clears_no_other(model, first):
    x = draws(12, 9)
    p = {"w": HEAD, "offset": jnp.zeros((1, 4))}
    model = jax.tree_util.Partial(model, p)

    def found(x):
        problem = Problem.of(model, x, np.zeros(12, np.int32), THREAT)
        return resolve_batch_dependence(problem, None, quiet=True)

    found(jnp.full_like(x, first))
    assert found(x)


def test_an_answer_is_remembered_where_the_examples_tell():
    calls = []

    def model(p, x):
        jax.debug.callback(lambda: calls.append(1))
        return x @ p

    model = jax.tree_util.Partial(model, HEAD)
    for images in (draws(12, 9), 1 - draws(12, 9)):
        problem = Problem.of(model, images, np.zeros(12, np.int32), THREAT)
        assert problem.logits.shape == (12, 4)
        assert not resolve_batch_dependence(problem, None)
        jax.effects_barrier()
    assert len(calls) == 2 + 3  # the clean logits of both, and the exchanges of the first


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_black_box_is_judged_by_its_logits(share):
    model, weights = of(share)

    def black_box(x):
        # Without JAX, which can wait for itself for ever in a callback (jax-ml/jax#24255).
        def answers(images):
            flat = np.asarray(images).reshape(len(images), -1)
            return ((flat - share * flat.mean(axis=0)) @ weights).astype(np.float32)

        shape = jax.ShapeDtypeStruct((len(x), weights.shape[1]), jnp.float32)
        return jax.pure_callback(answers, shape, x)

    x = draws(6, 2, 2, 1)
    report = batch_dependence(black_box, x, key=KEY)
    assert report.gradient_shares == ()
    assert report.found == bool(share)
    of_model = batch_dependence(model, x, key=KEY)
    for ours, theirs in zip(report[1:4], of_model[1:4], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
