"""What is done to the layer: exported, scanned, branched on, mapped and differentiated in settings.

Each of these works with Flax's layer.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from steinnorm import RunningStatistics, lasso, ridge, stein_batch_norm
from steinnorm import shrinkage as rules
from steinnorm.linen import SteinBatchNorm
from steinnorm.nnx import SteinBatchNorm as NNXSteinBatchNorm

SHAPE = (6, 3, 2, 5)
RUNNING = RunningStatistics(jnp.full(5, 0.3), jnp.full(5, 2.0))
INFERENCE = {"use_running_average": True, "test_statistics": "shrunk"}


def draw(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def layer(x, mask=None, **options):
    result = stein_batch_norm(x, jnp.ones(5), jnp.zeros(5), RUNNING, mask=mask, **options)
    return result.y, result.running


def loss(x, weights, **options):
    return jnp.sum(weights * jnp.sin(layer(x, **options)[0]))


def assert_close(got, want, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


class TestExport:
    """``jax.export`` with sizes that are not known, for several platforms at once."""

    @pytest.mark.parametrize("name", rules.NAMES)
    def test_symbolic_batch(self, name):
        function = jax.jit(functools.partial(layer, shrinkage=name))
        (b,) = jax.export.symbolic_shape("b")
        exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(
            jax.ShapeDtypeStruct((b, *SHAPE[1:]), "float32")
        )
        assert_close(exported.call(draw()), function(draw()))

    @pytest.mark.parametrize("options", [{}, INFERENCE])
    def test_symbolic_batch_and_height_with_a_mask(self, options):
        function = jax.jit(functools.partial(layer, shrinkage="toward_running", **options))
        b, h = jax.export.symbolic_shape("b, h")
        exported = jax.export.export(function)(
            jax.ShapeDtypeStruct((b, h, 2, 5), "float32"),
            jax.ShapeDtypeStruct((b, 1, 1, 1), "bool"),
        )
        mask = np.arange(6).reshape(6, 1, 1, 1) % 3 > 0
        assert_close(exported.call(draw(), mask), function(draw(), mask))

    def test_gradient(self):
        function = jax.jit(jax.grad(functools.partial(loss, shrinkage="stein")))
        (b,) = jax.export.symbolic_shape("b")
        shape = jax.ShapeDtypeStruct((b, *SHAPE[1:]), "float32")
        exported = jax.export.export(function)(shape, shape)
        assert_close(exported.call(draw(), draw(1)), function(draw(), draw(1)))

    @pytest.mark.parametrize("test_statistics", ["running", "batch"])
    def test_features_alone(self, test_statistics):
        function = jax.jit(
            functools.partial(
                layer, use_running_average=True, test_statistics=test_statistics, shrinkage="stein"
            )
        )
        (b,) = jax.export.symbolic_shape("b")
        exported = jax.export.export(function)(jax.ShapeDtypeStruct((b, 5), "float32"))
        x = draw(shape=(7, 5))
        assert_close(exported.call(x), function(x))


class TestLinenState:
    """``mutable=True`` returns what the model has: a state that a loop can carry."""

    def test_structure_stays_and_one_program_serves_all_steps(self):
        module = SteinBatchNorm(use_running_average=False)
        x = jnp.asarray(draw(shape=(4, 3)))
        variables = module.init(jax.random.key(0), x)
        step = jax.jit(lambda v, x: module.apply(v, x, mutable=True)[1])
        for _ in range(3):
            variables = step(variables, x)
        assert sorted(variables) == ["batch_stats", "params"]
        assert step._cache_size() == 1

    def test_scan(self):
        module = SteinBatchNorm(use_running_average=False, momentum=0.5)
        x = jnp.asarray(draw(shape=(3, 4, 3)))
        variables = module.init(jax.random.key(0), x[0])

        def body(variables, x):
            y, updated = module.apply(variables, x, mutable=True)
            return updated, y

        last, ys = jax.lax.scan(body, variables, x)
        for i in range(3):
            y, variables = module.apply(variables, x[i], mutable=True)
            assert_close(ys[i], y)
        assert_close(last, variables)

    def test_cond_between_train_and_eval(self):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, train):
                return nn.cond(
                    train,
                    lambda m, x: m(x, use_running_average=False),
                    lambda m, x: m(x, use_running_average=True),
                    SteinBatchNorm(momentum=0.5),
                    x,
                )

        net, x = Net(), jnp.asarray(draw(shape=(4, 3)))
        variables = net.init(jax.random.key(0), x, True)
        inner = {c: v["SteinBatchNorm_0"] for c, v in variables.items()}
        for train in (True, False):
            y, updated = net.apply(variables, x, train, mutable=True)
            alone = SteinBatchNorm(use_running_average=not train)
            assert_close(y, alone.apply(inner, x, mutable=True)[0])
            moved = jax.tree.leaves(updated["batch_stats"])[0]
            assert bool(jnp.any(moved != 0)) == train

    def test_factors_come_when_they_are_named(self):
        module = SteinBatchNorm(use_running_average=False)
        x = jnp.asarray(draw(shape=(4, 3)))
        variables = module.init(jax.random.key(0), x)
        _, state = module.apply(variables, x, mutable=["batch_stats", "intermediates"])
        assert sorted(state["intermediates"]) == ["mean_factor", "variance_factor"]


def test_nnx_capture_around_cond():
    model, x = NNXSteinBatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0)), jnp.asarray(draw(shape=(4, 3)))

    def forward(model, x, train):
        return nnx.cond(
            train,
            lambda m, x: m(x, use_running_average=False),
            lambda m, x: m(x, use_running_average=True),
            model,
            x,
        )

    captured = nnx.capture(forward, nnx.Intermediate)
    np.testing.assert_allclose(captured(model, x, jnp.array(False))[0], x, rtol=1e-5, atol=1e-5)
    want = NNXSteinBatchNorm(3, rngs=nnx.Rngs(0))(x)
    assert_close(captured(model, x, jnp.array(True))[0], want)


def pure(strength, epsilon, rule):
    return stein_batch_norm(draw(), shrinkage=rule(strength), epsilon=epsilon).y


def linen(strength, epsilon, rule):
    module = SteinBatchNorm(use_running_average=False, shrinkage=rule(strength), epsilon=epsilon)
    variables = {
        "params": {"scale": jnp.ones(5), "bias": jnp.zeros(5)},
        "batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)},
    }
    return module.apply(variables, draw(), mutable=["batch_stats"])[0]


def in_nnx(strength, epsilon, rule):
    return NNXSteinBatchNorm(5, shrinkage=rule(strength), epsilon=epsilon, rngs=nnx.Rngs(0))(draw())


@pytest.mark.parametrize("call", [pure, linen, in_nnx])
@pytest.mark.parametrize("rule", [ridge, lasso])
def test_traced_strength_and_epsilon(call, rule):
    """Under jit, vmap and grad, in one program for all values."""
    want = jax.device_get(call(0.5, 1e-2, rule))
    arrays = jax.device_get(call(jnp.float32(0.5), jnp.full(5, 1e-2), rule))
    np.testing.assert_allclose(arrays, want, rtol=1e-5, atol=1e-5)

    def squared(strength, epsilon):
        y = call(strength, epsilon, rule)
        return jnp.sum(jnp.asarray(draw(1)) * y), y

    both = jax.jit(jax.vmap(jax.value_and_grad(squared, argnums=(0, 1), has_aux=True)))
    strengths, epsilons = jnp.array([0.1, 0.5]), jnp.array([1e-3, 1e-2])
    (values, ys), slopes = both(strengths, epsilons)
    np.testing.assert_allclose(ys[1], want, rtol=1e-5, atol=1e-5)
    step = 2e-2
    for slope, change in zip(slopes, ([step, 0.0], [0.0, step / 20]), strict=True):
        (above, _), _ = both(strengths + change[0], epsilons + change[1])
        (below, _), _ = both(strengths - change[0], epsilons - change[1])
        difference = (above - below)[1] / (2 * sum(change))
        np.testing.assert_allclose(slope[1], difference, rtol=2e-2, atol=1e-3 * abs(values[1]))


def test_epsilon_given_in_other_ways():
    x = draw()
    want = stein_batch_norm(x, epsilon=1e-3).y
    for epsilon in (np.float64(1e-3), jnp.float32(1e-3), jnp.full(5, 1e-3), np.full(5, 1e-3)):
        assert_close(stein_batch_norm(x, epsilon=epsilon).y, want)
    with pytest.raises(ValueError, match="epsilon must be a scalar or have the shape"):
        stein_batch_norm(x, epsilon=jnp.full(4, 1e-3))


def test_a_traced_fraction_of_stein():
    share = jax.jit(lambda f: stein_batch_norm(draw(), shrinkage=rules.stein(f)).y)
    assert_close(share(0.5), stein_batch_norm(draw(), shrinkage=rules.stein(0.5)).y)


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in rules.NAMES), ("stein", INFERENCE)]
)
def test_no_infinity_and_no_nan_on_the_way(name, options):
    """A batch of one, and a mask that leaves nothing: what JAX's debugging modes look for."""
    x, weights, nothing = draw(), draw(1), np.zeros((6, 1, 1, 1), bool)

    @jax.jit
    def everything(x, weights, mask=None):
        def total(x):
            y, running = layer(x, mask, shrinkage=name, **options)
            return jnp.sum(weights * jnp.sin(y)), (y, running)

        return jax.value_and_grad(total, has_aux=True)(x)

    with jax.debug_infs(True), jax.debug_nans(True):
        jax.block_until_ready(everything(x[:1, :1, :1], weights[:1, :1, :1]))
        if name in ("none", "stein", "toward_running"):
            jax.block_until_ready(everything(x, weights, nothing))
        if name == "toward_running":  # without jit too, as issue 10 has it
            jax.block_until_ready(layer(x[:1], shrinkage=name, **options))
