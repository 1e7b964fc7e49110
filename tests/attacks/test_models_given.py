"""The forms in which a model is given, and what is said of one that is not ready."""

import gc
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from steinnorm.attacks import (
    BatchDependenceWarning,
    ProbabilitiesWarning,
    RandomLogitsWarning,
    Threat,
    apgd,
    autoattack,
    batch_dependence,
    evaluate_robustness,
    expected_over_randomness,
    fab,
    fgsm,
    gaussian,
    pgd,
    pgd_scan,
    predict,
    sea,
    segpgd,
    square,
)
from steinnorm.attacks.batch_threats import companion, independent
from tests.attacks.problems import KEY, draws, problem

THREAT = Threat("linf", 0.05)
X = 0.3 + 0.4 * draws(12, 4, 4, 1)
Y = jnp.asarray(np.arange(12) % 3)


class Network(nnx.Module):
    """Two layers with batch norm and dropout between."""

    def __init__(self, rngs):
        self.first = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.first(x.reshape(len(x), -1)))
        return self.last(self.dropout(nnx.relu(x)))


class LinenNetwork(linen.Module):
    """The same in Linen."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(8)(x.reshape(len(x), -1))
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(3)(linen.relu(x))


def numbers(model):
    """All that a model knows but its random keys."""
    return jax.tree.map(np.asarray, nnx.state(model, (nnx.Param, nnx.BatchStat)))


def five_classes():
    """A linear model of five classes, inputs and right labels."""
    model = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, draws(16, 5) - 0.5)
    return model, X, jnp.argmax(predict(model, X), axis=1)


def test_an_nnx_model_is_taken_as_it_is():
    model = Network(nnx.Rngs(0))
    model.eval()
    before = numbers(model)
    found = pgd(model, X, Y, threat=THREAT, steps=3)
    graphdef, state = nnx.split(model)
    partial = jax.tree_util.Partial(lambda state, x: nnx.merge(graphdef, state)(x), state)
    np.testing.assert_array_equal(found.x_adv, pgd(partial, X, Y, threat=THREAT, steps=3).x_adv)
    function = pgd(lambda x: model(x), X, Y, threat=THREAT, steps=3)  # noqa: PLW0108
    np.testing.assert_allclose(function.x_adv, found.x_adv, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, numbers(model))


def test_an_nnx_model_in_training_mode_is_noticed_and_left_alone():
    model = Network(nnx.Rngs(0))
    model.eval()
    model.norm.use_running_average = False
    before = numbers(model)
    for attack in (fgsm, pgd):
        with pytest.warns(BatchDependenceWarning, match=r"model.eval\(\)"):
            attack(model, X, Y, threat=THREAT)
    jax.tree.map(np.testing.assert_array_equal, before, numbers(model))


def test_a_function_around_an_nnx_model_in_training_mode_names_the_cure():
    model = Network(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"model.eval\(\) first, or pass the model itself"):
        fgsm(lambda x: model(x), X, Y, threat=THREAT)  # noqa: PLW0108


def test_dropout_that_is_on_warns():
    model = Network(nnx.Rngs(0))
    model.eval()
    model.dropout.deterministic = False
    with pytest.warns(RandomLogitsWarning, match="dropout is on"):
        pgd(model, X, Y, threat=THREAT, steps=1)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_a_linen_model_in_training_mode_is_noticed_by_single_runs_too(attack):
    model = LinenNetwork()
    variables = model.init(jax.random.key(0), X, train=False)

    def training(x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    with pytest.warns(BatchDependenceWarning, match="use_running_average=True in Linen"):
        attack(training, X, Y, threat=THREAT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(training, X, Y, threat=THREAT, batch_dependent=True)
        attack(lambda x: model.apply(variables, x, train=False), X, Y, threat=THREAT)


def centred(x):
    """Batch statistics of their own: one example alone has logits of zero but for a bias."""
    flat = x.reshape(len(x), -1)
    return (flat - flat.mean(axis=0, keepdims=True))[:, :3] + jnp.asarray([[0.0, 1e-3, 0.0]])


def told_by_its_size(x):
    flat = x.reshape(len(x), -1)
    deviation = jnp.sqrt(jnp.mean(jnp.square(flat - 0.5), axis=0, keepdims=True))
    return ((flat - 0.5) / deviation)[:, :3] + 0.3 * len(x) * jnp.asarray([[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("told", [None, True])
@pytest.mark.filterwarnings("ignore::steinnorm.attacks.BatchDependenceWarning")
def test_autoattack_never_makes_another_model_of_a_small_batch(count, told):
    """Copies behind a small batch would change its statistics: stages and result must agree."""
    x = X[:count]
    y = jnp.argmax(predict(told_by_its_size, x), axis=1)
    settings = {"threat": Threat("linf", 0.2), "steps": 5, "queries": 10}
    found = autoattack(told_by_its_size, x, y, batch_dependent=told, **settings)
    broken = sum(stage.broken for stage in found.stages)
    assert broken == int(found.success.sum())
    assert all(stage.attacked <= count for stage in found.stages)


def test_a_single_example_in_training_mode_is_noticed():
    with pytest.warns(BatchDependenceWarning):
        pgd(centred, X[:1], Y[:1], threat=THREAT, steps=1)

    def only_one(x):
        return x.reshape(1, 16)[:, :3]

    pgd(only_one, X[:1], Y[:1], threat=THREAT, steps=1)  # takes no second example: fine


def test_probabilities_warn_once_in_an_ensemble():
    model, x, y = five_classes()
    softmax = jax.tree_util.Partial(lambda model, x: jax.nn.softmax(model(x)), model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        autoattack(softmax, x, y, threat=THREAT, steps=2, queries=3, batch_size=2)
    found = [w for w in caught if w.category is ProbabilitiesWarning]
    assert len(found) == 1
    assert found[0].filename == __file__


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, fab, square, autoattack, sea, segpgd])
def test_a_seed_for_a_key_is_refused_in_words(attack):
    model, _, x, y = problem()
    with pytest.raises(ValueError, match=r"must be a jax.random.key; got int; write jax.random.ke"):
        attack(model, x, y, threat=THREAT, key=0)
    with pytest.raises(ValueError, match=r"must be a jax.random.key"):
        batch_dependence(model, x, key=3)


def test_a_numpy_model_is_refused_in_words():
    weights = np.ones((16, 3), np.float32)

    def in_numpy(x):
        return np.asarray(x).reshape(len(x), -1) @ weights

    with pytest.raises(ValueError, match=r"wrap it in jax.pure_callback"):
        square(in_numpy, X, Y, threat=THREAT, queries=2)

    def wrapped(x):
        shape = jax.ShapeDtypeStruct((len(x), 3), jnp.float32)
        return jax.pure_callback(lambda x: in_numpy(np.asarray(x)), shape, x)

    square(wrapped, X, Y, threat=THREAT, queries=2, key=KEY)
    with pytest.raises(ValueError, match="floating logits; got dtype int32"):
        fgsm(lambda x: jnp.zeros((len(x), 3), jnp.int32), X, Y, threat=THREAT)


def test_models_as_arguments_are_let_go():
    """Of a Partial or an NNX model nothing is kept; a plain function stays in JAX's caches."""

    class Owner:
        pass

    model, owner = Network(nnx.Rngs(0)), Owner()
    model.eval()
    model.owner = nnx.static(owner) if hasattr(nnx, "Pytree") else None
    watched = weakref.ref(model)
    for _ in range(2):
        pgd(model, X, Y, threat=THREAT, steps=1)
    del model
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("name", ["fab", "square"])
def test_targets_of_attacks_that_had_none(name):
    model, x, y = five_classes()
    target = (y + 1) % 5
    threat = Threat("linf", 0.6)
    attack = {"fab": fab, "square": square}[name]
    settings = {"fab": {"steps": 30}, "square": {"queries": 200, "key": KEY}}[name]
    found = attack(model, x, y, threat=threat, target=target, **settings)
    reached = np.argmax(np.asarray(predict(model, found.x_adv)), axis=1) == np.asarray(target)
    np.testing.assert_array_equal(found.success, reached)
    assert reached.sum() >= len(x) // 2
    with pytest.raises(ValueError, match="target must differ from y"):
        attack(model, x, y, threat=threat, target=y, **settings)


def test_apgd_towards_several_classes_and_one_target_are_two_things():
    model, x, y = five_classes()
    with pytest.raises(ValueError, match="goes through several targets itself"):
        apgd(model, x, y, threat=THREAT, loss="targeted_dlr", target=(y + 1) % 5, steps=2)


def test_memory_does_not_grow_with_the_number_of_examples():
    """The model never sees more than a batch."""
    seen = []

    def model(weights, x):
        seen.append(len(x))
        return x.reshape(len(x), -1) @ weights

    partial = jax.tree_util.Partial(model, draws(16, 3))
    x = np.asarray(0.3 + 0.4 * draws(42, 4, 4, 1))
    y = np.asarray(jnp.argmax(predict(partial, x), axis=1))
    seen.clear()
    found = autoattack(partial, x, y, threat=THREAT, steps=3, queries=5, batch_size=8)
    assert len(found.x_adv) == len(found.success) == 42
    assert max(seen) == 8
    again = np.argmax(np.asarray(predict(partial, found.x_adv)), axis=1) != y
    np.testing.assert_array_equal(found.success, again)


def test_a_linen_module_is_refused_with_the_call_that_works():
    model = LinenNetwork()
    variables = model.init(jax.random.key(0), X, train=False)
    bound = model.bind(variables)
    for given in (model, bound):
        with pytest.raises(ValueError, match=r"is a Linen module.*lambda x: model\.apply"):
            fgsm(given, X, Y, threat=THREAT)
    with pytest.raises(ValueError, match=r"is a Linen module"):
        pgd_scan(model, X, Y, threat=THREAT)
    with pytest.raises(ValueError, match=r"is a Linen module"):
        evaluate_robustness(model, X, Y, progress=False)
    with pytest.raises(ValueError, match=r"without its variables: .*model\.apply\(variables, x\)"):
        fgsm(lambda x: model(x, train=False), X, Y, threat=THREAT)


def test_linen_in_training_mode_names_the_cure():
    model = LinenNetwork()
    variables = model.init(jax.random.key(0), X, train=False)

    def training(x):
        return model.apply(variables, x, train=True)

    def with_dropout(x):
        return linen.Dropout(0.5, deterministic=False).apply({}, x.reshape(len(x), -1))

    for attack in (fgsm, pgd_scan):
        with pytest.raises(ValueError, match=r"Linen model in training mode.*train=False"):
            attack(training, X, Y, threat=THREAT)
        with pytest.raises(ValueError, match="dropout is on, without a key"):
            attack(with_dropout, X, Y, threat=THREAT)


def test_keys_are_refused_in_the_same_words_everywhere():
    model, _, x, y = problem()
    for call in (
        lambda key: batch_dependence(model, x, key=key),
        lambda key: companion(pgd, model, x, y, threat=THREAT, key=key),
        lambda key: independent(pgd, model, x, y, threat=THREAT, key=key),
        lambda key: pgd_scan(model, x, y, threat=THREAT, key=key),
        lambda key: expected_over_randomness(lambda key, x: model(x), key),
        lambda key: gaussian(key, x, 0.1),
    ):
        with pytest.raises(ValueError, match=r"got int; write jax\.random\.key\(0\)"):
            call(0)
        with pytest.raises(ValueError, match=r"got ndarray; write jnp\.asarray\(key\)"):
            call(np.asarray(jax.random.PRNGKey(0)))
    with pytest.raises(ValueError, match="got NoneType; write"):
        batch_dependence(model, x, key=None)


def test_batch_dependence_takes_floating_images():
    model, _, x, _ = problem()
    with pytest.raises(ValueError, match=r"floating batch .* dtype int32"):
        batch_dependence(model, x.astype(jnp.int32), key=KEY)
    with pytest.raises(ValueError, match=r"others must be images \(n, 5, 5, 1\)"):
        batch_dependence(model, x, key=KEY, others=[[0.5]])


def test_a_model_of_one_batch_size_is_padded_by_its_caller():
    """As docs/attacks.md shows it."""
    weights = draws(16, 3)

    def of_twelve(x):
        return x.reshape(12, 16) @ weights

    def of_any(x):
        padding = [(0, 12 - len(x))] + [(0, 0)] * (x.ndim - 1)
        return of_twelve(jnp.pad(x, padding))[: len(x)]

    settings = {"threat": THREAT, "steps": 3, "queries": 5, "batch_dependent": False}
    found = autoattack(of_any, X, Y, **settings)
    plain = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    np.testing.assert_array_equal(found.success, autoattack(plain, X, Y, **settings).success)
