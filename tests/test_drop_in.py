"""In Flax's place: empty batches, conversions, isinstance, one example, dtypes, pickles."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from steinnorm import RunningStatistics, stein_batch_norm
from steinnorm import shrinkage as rules
from steinnorm.linen import BatchNorm, SteinBatchNorm
from steinnorm.nnx import SteinBatchNorm as NNXSteinBatchNorm
from steinnorm.nnx import convert, revert
from steinnorm.rules import RidgeMean, RidgeVariance

RUNNING = RunningStatistics(jnp.full(8, 0.3, jnp.float32), jnp.full(8, 2.0, jnp.float32))


def draw(shape):
    return np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)


class TestEmptyBatches:
    """Flax's running statistics become NaN."""

    @pytest.mark.parametrize("shape", [(0, 6, 4, 8), (3, 0, 8), (0, 8)])
    @pytest.mark.parametrize("name", rules.NAMES)
    def test_running_statistics_are_left_alone(self, name, shape):
        run = jax.jit(lambda x: stein_batch_norm(x, running=RUNNING, shrinkage=name)[:2])
        y, running = run(jnp.zeros(shape))
        assert y.shape == shape
        np.testing.assert_array_equal(running.mean, RUNNING.mean)
        np.testing.assert_array_equal(running.variance, RUNNING.variance)

    @pytest.mark.parametrize("name", ["none", "stein", "toward_running"])
    def test_gradients_are_zero(self, name):
        def loss(scale, bias):
            x = jnp.zeros((0, 8))
            return jnp.sum(stein_batch_norm(x, scale, bias, RUNNING, shrinkage=name).y)

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.ones(8), jnp.zeros(8))
        np.testing.assert_array_equal(gradients, np.zeros((2, 8)))

    def test_layers(self):
        layer, x = NNXSteinBatchNorm(8, rngs=nnx.Rngs(0)), jnp.zeros((0, 8))
        assert layer(x).shape == (0, 8)
        module = SteinBatchNorm(use_running_average=False)
        variables = module.init(jax.random.key(0), draw((4, 8)))
        y, updated = module.apply(variables, x, mutable=["batch_stats"])
        assert y.shape == (0, 8)
        state = updated["batch_stats"]
        for mean, var in ((layer.mean[...], layer.var[...]), (state["mean"], state["var"])):
            np.testing.assert_array_equal(mean, np.zeros(8))
            np.testing.assert_array_equal(var, np.ones(8))


class Holder(nnx.Module):
    """Batch norms wherever a module may be held; some shared, some that know who holds them."""

    def __init__(self, rngs):
        def norm():
            return nnx.BatchNorm(3, rngs=rngs)

        self.tuple = nnx.data((norm(), nnx.Linear(3, 3, rngs=rngs)))
        self.nested = nnx.data({"a": norm(), "b": [norm(), {"c": (norm(),)}]})
        self.list = nnx.List([norm(), norm()])
        self.dict = nnx.Dict(a=norm())
        self.shared = self.tuple[0]
        self.itself = self
        self.child = nnx.Sequential(norm())
        self.child.parent = self

    def norms(self):
        nested = (self.nested["a"], self.nested["b"][0], self.nested["b"][1]["c"][0])
        return (self.tuple[0], *nested, *self.list, self.dict.a, self.shared, self.child.layers[0])

    def __call__(self, x):
        for norm in self.norms():
            x = jnp.sin(norm(x)) + self.tuple[1](x)
        return x


class TestConversions:
    def test_wherever_layers_are_held(self):
        model, x = Holder(nnx.Rngs(0)), draw((4, 3))
        model(x)
        converted = convert(model, "jsnorm")
        assert {type(m) for m in converted.norms()} == {NNXSteinBatchNorm}
        assert {m.shrinkage for m in converted.norms()} == {"jsnorm"}
        assert {type(m) for m in model.norms()} == {nnx.BatchNorm}
        converted(x)
        reverted = revert(converted)
        assert {type(m) for m in reverted.norms()} == {nnx.BatchNorm}
        converted.eval()
        reverted.eval()
        np.testing.assert_allclose(reverted(x), converted(x), rtol=1e-5, atol=1e-6)

    def test_what_was_shared_stays_shared(self):
        converted = convert(Holder(nnx.Rngs(0)))
        assert converted.shared is converted.tuple[0]
        assert converted.itself is converted
        assert converted.child.parent is converted
        distinct = {id(m) for m in converted.norms()}
        assert len(distinct) == len(converted.norms()) - 1

    def test_the_result_goes_through_flax(self):
        converted, x = convert(Holder(nnx.Rngs(0))), draw((4, 3))
        graph, state = nnx.split(converted)
        step = nnx.jit(lambda model, x: model(x))
        np.testing.assert_allclose(step(nnx.merge(graph, state), x), converted(x), rtol=1e-4)


class TestIsFlaxLayer:
    @pytest.mark.parametrize("layer", [SteinBatchNorm, BatchNorm])
    def test_isinstance(self, layer):
        assert isinstance(layer(), nn.BatchNorm)

    def test_an_interceptor_finds_it(self):
        found = []

        def interceptor(call, args, kwargs, context):
            if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
                found.append(type(context.module).__name__)
                kwargs = {**kwargs, "use_running_average": True}
            return call(*args, **kwargs)

        module, x = SteinBatchNorm(), draw((4, 8))
        variables = module.init(jax.random.key(0), x, use_running_average=False)
        with nn.intercept_methods(interceptor):
            y = module.apply(variables, x)
        assert found == ["SteinBatchNorm"]
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)

    def test_nnx(self):
        assert isinstance(NNXSteinBatchNorm(3, rngs=nnx.Rngs(0)), nnx.BatchNorm)


@pytest.mark.parametrize("name", rules.NAMES)
class TestOneExampleWithoutABatchAxis:
    """Its variance is zero: training gives the bias, as in Flax."""

    def test_pure(self, name):
        run = jax.jit(lambda x, bias: stein_batch_norm(x, None, bias, RUNNING, shrinkage=name).y)
        bias = jnp.arange(8, dtype=jnp.float32)
        np.testing.assert_allclose(run(draw(8), bias), bias, atol=1e-4)

    def test_linen(self, name):
        module = SteinBatchNorm(
            use_running_average=False, shrinkage=name, bias_init=nn.initializers.constant(0.7)
        )
        y, _ = module.init_with_output(jax.random.key(0), draw(8))
        np.testing.assert_allclose(y, 0.7, atol=1e-4)

    def test_nnx(self, name):
        constant = nnx.initializers.constant(0.7)
        layer = NNXSteinBatchNorm(8, shrinkage=name, bias_init=constant, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(layer(draw(8)), 0.7, atol=1e-4)


def test_nnx_with_a_small_dtype_does_not_round_before_it_subtracts():
    layer = NNXSteinBatchNorm(1, dtype=jnp.bfloat16, use_running_average=True, rngs=nnx.Rngs(0))
    layer.mean[...] = jnp.array([1000.3])
    y = layer(jnp.array([[1001.0]], jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(y[0, 0]), 0.7, atol=3e-3)
    module = SteinBatchNorm(use_running_average=True, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), jnp.ones((1, 1)))
    variables["batch_stats"]["mean"] = jnp.array([1000.3])
    assert module.apply(variables, jnp.array([[1001.0]], jnp.float32))[0, 0] == y[0, 0]


EVERY_RULE = {
    **{name: lambda name=name: rules.by_name(name) for name in rules.NAMES},
    "stein(0.5)": lambda: rules.stein(0.5),
    "ridge(0.1)": lambda: rules.ridge(0.1),
    "lasso(0.1)": lambda: rules.lasso(0.1),
    "toward_running(running)": lambda: rules.toward_running("running"),
    "combined": lambda: rules.combine("ridge", rules.stein(0.5)),
}


class TestShrinkageIsAValue:
    @pytest.mark.parametrize("made", EVERY_RULE.values(), ids=EVERY_RULE)
    def test_copies_are_equal(self, made):
        rule = made()
        for other in (made(), pickle.loads(pickle.dumps(rule)), copy.deepcopy(rule)):
            assert other == rule
            assert hash(other) == hash(rule)
            assert (other.mean, other.variance) == (rule.mean, rule.variance)

    def test_different_ones_differ(self):
        made = [make() for make in EVERY_RULE.values()]
        assert len(set(made)) == len(made)

    @pytest.mark.parametrize("made", EVERY_RULE.values(), ids=EVERY_RULE)
    def test_it_is_a_pytree(self, made):
        rule = made()
        leaves, structure = jax.tree.flatten(rule)
        assert jax.tree.unflatten(structure, leaves) == rule
        assert all(isinstance(leaf, float) for leaf in leaves)

    def test_numbers_are_traced_through_jit_in_one_program(self):
        x = draw((6, 8))

        @jax.jit
        def run(rule, x):
            return stein_batch_norm(x, shrinkage=rule).y

        halves = rules.Shrinkage("mine", RidgeMean(0.1), RidgeVariance(0.5))
        others = rules.Shrinkage("mine", RidgeMean(2.0), RidgeVariance(0.3))
        for rule in (halves, others):
            want = stein_batch_norm(x, shrinkage=rule).y
            np.testing.assert_allclose(run(rule, x), want, rtol=1e-5, atol=1e-6)
        assert run._cache_size() == 1

    def test_functions_in_it_stay_as_they_are(self):
        mine = rules.Shrinkage(
            "mine", mean=lambda batch, running: batch.mean / 2, variance=RidgeVariance(0.5)
        )
        returned = jax.jit(lambda rule: rule)(mine)
        assert returned.mean is mine.mean
        assert returned.variance == RidgeVariance(0.5)
        assert not returned.needs_noise
