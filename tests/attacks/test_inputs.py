"""What every attack is given is checked, and what it hands back is judged."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.evaluation.attack_batch import as_logits_fn
from experiments.models.norms import in_evaluation, norm_factory
from experiments.models.resnet import ResNet
from steinnorm.attacks import (
    AttackResult,
    BatchDependenceWarning,
    LeftThreatError,
    NotFiniteError,
    ProbabilitiesWarning,
    RandomLogitsWarning,
    Threat,
    apgd,
    autoattack,
    batch_dependence,
    evaluate_robustness,
    fab,
    fgsm,
    pgd,
    pgd_scan,
    predict,
    square,
)
from steinnorm.attacks._dependence_check import depends_on_batch, resolve_batch_dependence
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks.batch_threats import independent
from tests.attacks.problems import CLASSES, EXAMPLES, KEY, companions, draws, problem

THREAT = Threat("linf", 0.1)


def test_soft_labels_are_refused_with_a_way_out():
    model, _, x, y = problem()
    for soft in (jax.nn.one_hot(y, CLASSES), jax.nn.one_hot(y, CLASSES, dtype=jnp.int32)):
        with pytest.raises(ValueError, match=r"soft and one-hot labels are not supported.*argmax"):
            fgsm(model, x, soft, threat=THREAT)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    model, _, x, y = problem()
    broken = jax.tree_util.Partial(lambda model, x: model(x).at[2, 1].set(bad), model)
    with pytest.raises(ValueError, match=f"NaN or infinite logits for 1 of {EXAMPLES} clean"):
        pgd(broken, x, y, threat=THREAT)


def test_normalised_inputs_are_refused_with_a_way_out():
    # Normalising outside the model makes a radius mean something else, and the box wrong.
    model, _, x, y = problem()
    with pytest.raises(ValueError, match=r"normalise inside logits_fn, or set the threat's bounds"):
        fgsm(model, (x - 0.47) / 0.25, y, threat=THREAT)
    # The round-off of undoing a normalisation is let pass, and mended.
    close = x.at[0, 0, 0, 0].set(-3e-8)
    assert fgsm(model, close, y, threat=THREAT).min >= 0


def test_probabilities_instead_of_logits_warn():
    model, _, x, y = problem()
    softmax = jax.tree_util.Partial(lambda model, x: jax.nn.softmax(model(x)), model)
    with pytest.warns(ProbabilitiesWarning, match="hides gradients"):
        fgsm(softmax, x, y, threat=THREAT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fgsm(model, x, y, threat=THREAT)


def test_labels_of_pixels_may_be_void_but_not_targets():
    per_pixel = jax.tree_util.Partial(lambda x: jnp.concatenate([x, 2 - x], axis=-1))
    x, y = draws(2, 3, 4, 1), jnp.zeros((2, 3, 4), jnp.int32).at[0, 0, 0].set(255)
    result = fgsm(per_pixel, x, y, threat=THREAT)
    assert result.success.shape == y.shape
    assert not result.success[0, 0, 0]
    np.testing.assert_array_equal(result.x_adv[0, 0, 0], x[0, 0, 0])  # no gradient comes from it
    with pytest.raises(ValueError, match=r"or 255 \(void\)"):
        fgsm(per_pixel, x, y.at[0, 0, 1].set(7), threat=THREAT)
    with pytest.raises(ValueError, match=r"target must lie in \[0, 2\)"):
        pgd(per_pixel, x, y, threat=THREAT, target=y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x + 0.100002, "largest change 0.1"),
        (lambda x: x.at[0, 0].set(1.000002), "values in"),
        (lambda x: x.at[0, 0].set(jnp.nan), "1 not finite"),
    ],
)
def test_a_result_outside_its_threat_fails_loudly(change, message):
    x = jnp.full((3, 2), 0.95) if "values" in message else jnp.full((3, 2), 0.5)
    model = jax.tree_util.Partial(lambda x: 5 * x)
    given = Problem.of(model, x, jnp.zeros(3, jnp.int32), THREAT)
    with pytest.raises(LeftThreatError, match=message):
        given.result(change(x))
    result = given.result(x + 0.04)
    result.check(THREAT)
    with pytest.raises(LeftThreatError, match="an attack left its ball"):
        result.check(Threat("linf", 0.03), "an attack")


def _network():
    return ResNet(
        norm_factory("batch"),
        channels_in=1,
        outputs=4,
        width=2,
        stage_sizes=(1,),
        rngs=nnx.Rngs(jax.random.key(0, impl="rbg")),
    )


def test_a_model_left_in_training_mode_is_found_out():
    x, y = draws(6, 6, 6, 1), jnp.array([0, 1, 2, 3, 0, 1])
    model = _network()
    training = as_logits_fn(model)
    assert depends_on_batch(Problem.of(training, x, y, THREAT))
    with pytest.warns(BatchDependenceWarning, match="logits change with its companions"):
        autoattack(training, x, y, threat=THREAT, key=KEY, steps=2, queries=2)
    for attack, settings in ((apgd, {"steps": 2}), (square, {"queries": 2})):
        with pytest.warns(BatchDependenceWarning, match="training mode"):
            attack(training, x, y, threat=THREAT, key=KEY, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attack(training, x, y, threat=THREAT, key=KEY, batch_dependent=True, **settings)
    evaluated = as_logits_fn(in_evaluation(model, "running"))
    assert not depends_on_batch(Problem.of(evaluated, x, y, THREAT))
    assert depends_on_batch(Problem.of(as_logits_fn(in_evaluation(model, "batch")), x, y, THREAT))


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


def test_a_function_is_attacked_as_it_is_now_not_as_it_was_compiled():
    model, _, x, y = problem()
    held = {"sign": 1.0}

    def changing(x):
        return held["sign"] * model(x)

    still = Threat("linf", 0.0)
    assert not pgd(changing, x, y, threat=still, steps=1).success.any()
    held["sign"] = -1.0
    assert pgd(changing, x, y, threat=still, steps=1).success.all()
    held["sign"] = 1.0
    assert not pgd(changing, x, y, threat=still, steps=1).success.any()


def test_a_model_that_answers_at_random_warns():
    model, _, x, y = problem()
    generator = np.random.default_rng(0)

    def noisy(x):
        return model(x) + jnp.float32(generator.normal())

    with pytest.warns(RandomLogitsWarning, match="attack on its mean answer"):
        fgsm(noisy, x, y, threat=THREAT)


def test_constants_in_a_function_are_compiled_right():
    # With an experimental option of XLA that our training uses, this product was NaN.
    x, y = draws(4, 8, 8, 3), jnp.zeros(4, jnp.int32)

    def grey(x):
        return (x.reshape(4, -1) @ jnp.ones((192, 5))) * jnp.arange(5.0)[None]

    expected = np.asarray(x).reshape(4, -1).sum(axis=1)[:, None] * np.arange(5)[None]
    np.testing.assert_allclose(predict(grey, x), expected, rtol=1e-5)
    assert fgsm(grey, x, y, threat=THREAT).success.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bytes_as_floats_keep_their_ball(norm):
    # x + 8 is rounded by up to 8e-6 near 255: to be on the safe side is the projection's task.
    model, _, x, y = problem()
    wide = jax.tree_util.Partial(lambda model, x: model(x / 255), model)
    threat = Threat(norm, 8.0 if norm == "linf" else 90.0, bounds=(0.0, 255.0))
    result = pgd(wide, 255 * x, y, threat=threat, key=KEY, steps=5)
    assert result.max_norm <= threat.epsilon * (1 + 1e-6)
    small = Threat(norm, threat.epsilon / 255)
    again = pgd(model, x, y, threat=small, key=KEY, steps=5)
    np.testing.assert_array_equal(result.success, again.success)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_inputs_are_attacked_in_single_precision(dtype):
    model, _, x, y = problem()
    single = jax.tree_util.Partial(lambda model, x: model(x.astype(jnp.float32)), model)
    result = pgd(single, x.astype(dtype), y, threat=Threat("linf", 1.0), steps=5)
    assert result.x_adv.dtype == jnp.float32
    assert result.success.all()


def _with_broken_gradient(model, x):
    z = model(x)
    return z + jnp.sqrt(jnp.maximum(0 * z, 0))


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, fab])
def test_gradients_that_are_not_finite_are_no_robustness(attack):
    model, _, x, y = problem()
    broken = jax.tree_util.Partial(_with_broken_gradient, model)
    more = {} if attack is fgsm else {"steps": 3}
    with pytest.raises(NotFiniteError, match=f"gradients are NaN or infinite for {EXAMPLES} of"):
        attack(broken, x, y, threat=THREAT, **more)


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, square])
def test_logits_that_are_not_finite_on_the_way_are_no_robustness(attack):
    model, _, x, y = problem(low=0.4, high=0.6)
    far = jax.tree_util.Partial(
        lambda model, x: jnp.where(jnp.max(jnp.abs(x - 0.5)) > 0.15, jnp.nan, model(x)), model
    )
    more = {"queries": 9, "key": KEY} if attack is square else {}
    with pytest.raises(NotFiniteError, match="NaN or infinite for"):
        attack(far, x, y, threat=Threat("linf", 0.3), **more)


def test_a_sigmoid_for_a_single_logit_warns():
    model, _, x, _ = problem()
    single = jax.tree_util.Partial(lambda model, x: jax.nn.sigmoid(model(x)[:, :1]), model)
    with pytest.warns(ProbabilitiesWarning, match="0 is the threshold of a single logit"):
        fgsm(single, x, jnp.ones(EXAMPLES, jnp.int32), threat=THREAT)


def test_more_classes_than_labels_in_a_map_are_refused():
    many = jax.tree_util.Partial(lambda x: jnp.broadcast_to(x, (*x.shape[:3], 300)))
    with pytest.raises(ValueError, match="at most 255 classes per pixel"):
        fgsm(many, draws(2, 3, 4, 1), jnp.zeros((2, 3, 4), jnp.int32), threat=THREAT)


@pytest.mark.parametrize("attack", [square, autoattack])
def test_without_a_key_the_numbers_are_the_same_at_every_call(attack):
    model, _, x, y = problem()
    more = {"steps": 3} if attack is autoattack else {}
    one, two = (attack(model, x, y, threat=THREAT, queries=10, **more) for _ in range(2))
    np.testing.assert_array_equal(one.x_adv, two.x_adv)


def test_attacks_inside_jit_say_what_to_use():
    model, _, x, y = problem()
    with pytest.raises(ValueError, match="use pgd_scan"):
        jax.jit(lambda x: pgd(model, x, y, threat=THREAT).x_adv)(x)
    with pytest.raises(ValueError, match="one array of logits"):
        fgsm(lambda x: (model(x), x), x, y, threat=THREAT)
    for change, message in (
        ({"loss": "kl"}, "needs the clean logits"),
        ({"step_size": -1.0}, "not negative"),
        ({"y": y.astype(jnp.float32)}, "integer labels"),
    ):
        with pytest.raises(ValueError, match=message):
            pgd_scan(model, x, change.pop("y", y), threat=THREAT, **change)
    with pytest.raises(ValueError, match="must be a number"):
        Threat("linf", "8/255")


def test_labels_that_32_bits_cannot_hold_are_refused():
    x, y = draws(3, 4), np.array([0, 1, 2])
    weights = draws(4, 3)
    with pytest.raises(ValueError, match=r"y must lie in \[0, 3\); got labels in \[4294967296"):
        pgd(lambda x: x @ weights, x, y + 2**32, threat=THREAT, steps=1, step_size=0.1)
    with pytest.raises(ValueError, match="target must lie in"):
        pgd(lambda x: x @ weights, x, y, threat=THREAT, target=y + 2**32, steps=1, step_size=0.1)


def test_the_right_label_is_no_target():
    x, y = draws(3, 4), np.array([0, 1, 2])
    weights = draws(4, 3)
    with pytest.raises(ValueError, match="1 of 3 targets are the true label"):
        fgsm(lambda x: x @ weights, x, y, threat=THREAT, target=np.array([0, 2, 1]))


def test_logits_that_are_not_finite_are_no_randomness():
    x, y = draws(3, 4), np.array([0, 1, 2])
    weights = draws(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotFiniteError, match="clean examples"):
            fgsm(lambda x: (x @ weights).at[0, 0].set(jnp.nan), x, y, threat=THREAT)


@pytest.mark.parametrize(
    ("bounds", "excess"),
    [((0.0, 1.0), 2e-6), ((-1.0, 1.0), 2e-6), ((0.0, 255.0), 1e-4), ((-1e5, 1e5), 0.1)],
)
def test_what_leaves_the_ball_is_void_in_boxes_of_any_size(bounds, excess):
    threat = Threat("linf", 0.01, bounds)
    result = AttackResult(jnp.zeros((1, 1)), jnp.zeros(1), 0.01 + excess, 0.0, 0.0, 0, 0)
    with pytest.raises(LeftThreatError, match="left its ball"):
        result.check(threat)
    result._replace(max_norm=0.01).check(threat)


def test_a_box_without_an_end_is_refused():
    for bounds in ((-np.inf, np.inf), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="bounds must be finite"):
            Threat("linf", 0.1, bounds)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_box_far_from_zero(norm):
    threat = Threat(norm, 0.05, (1000.0, 1001.0))
    x = 1000 + draws(4, 3, 3, 1)
    weights = draws(9, 3)
    y = jnp.array([0, 1, 2, 0])
    model = lambda x: (x.reshape(4, 9) - 1000) @ weights  # noqa: E731
    assert pgd(model, x, y, threat=threat, steps=3).max_norm > 0.04


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


def test_a_defence_that_leaves_the_logits_alone_is_attacked_as_it_is_now():
    model, _, x, y = problem()
    held = {"hide": True}

    def defended(x):
        return model(jax.lax.stop_gradient(x) if held["hide"] else x)

    threat = Threat("linf", 0.5)
    hidden = pgd(defended, x, y, threat=threat, steps=3)
    assert hidden.zero_gradients == len(x)
    held["hide"] = False
    shown = pgd(defended, x, y, threat=threat, steps=3)
    fresh = pgd(lambda x: defended(x), x, y, threat=threat, steps=3)  # noqa: PLW0108
    np.testing.assert_array_equal(shown.x_adv, fresh.x_adv)
    assert shown.success.all()


def test_a_number_for_a_threat_is_refused_in_words():
    model, _, x, y = problem()
    for attack in (fgsm, pgd, apgd, square, autoattack):
        with pytest.raises(ValueError, match=r"threat must be a Threat; got float: write Threat\("):
            attack(model, x, y, threat=8 / 255)


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, fab, square, autoattack])
def test_whatever_is_traced_says_what_to_use(attack):
    model, _, x, y = problem()
    weights = model.args[0]

    def attacked(x=x, y=y, weights=weights, threat=THREAT, key=KEY):
        model_of_weights = jax.tree_util.Partial(model.func, weights)
        return attack(model_of_weights, x, y, threat=threat, key=key).x_adv

    for name, value in (("y", y), ("weights", weights), ("threat", THREAT), ("key", KEY)):
        with pytest.raises(ValueError, match=r"attacks cannot be traced; .* use pgd_scan"):
            jax.jit(lambda value, name=name: attacked(**{name: value}))(value)
    with pytest.raises(ValueError, match=r"use pgd_scan \(traced: logits_fn\)"):
        jax.grad(lambda weights: attacked(weights=weights).sum())(weights)


def test_other_calls_inside_jit_say_what_to_use():
    model, _, x, y = problem()
    function = model.func
    for call in (
        lambda w: pgd(lambda x: function(w, x), x, y, threat=THREAT).x_adv,
        lambda w: batch_dependence(lambda x: function(w, x), x, key=KEY).images,
        lambda w: evaluate_robustness(model, x + 0 * w.sum(), y, progress=False).rows,
        lambda w: independent(pgd, model, x, y, threat=THREAT).x_adv,
        lambda w: pgd(model, x, y, threat=THREAT, step_size=w.sum()).x_adv,
    ):
        with pytest.raises(ValueError, match="use pgd_scan"):
            jax.jit(call)(model.args[0])
    with pytest.raises(ValueError, match="traced: an array that logits_fn closes over"):
        jax.grad(lambda w: pgd(lambda x: function(w, x), x, y, threat=THREAT).x_adv.sum())(
            model.args[0]
        )


def test_labels_of_a_single_logit_are_told_their_form():
    model, _, x, _ = problem()
    single = jax.tree_util.Partial(lambda model, x: model(x)[:, :1], model)
    y = np.arange(EXAMPLES) % 2
    for labels, hint in (
        (y[:, None], "y.squeeze(-1)"),
        (y.astype(np.float32), "y.astype(int)"),
        (y[:, None] == 1, "y.squeeze(-1).astype(int)"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"; use {hint}") + "$"):
            fgsm(single, x, labels, threat=THREAT)
